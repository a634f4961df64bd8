"""Every field of a request, and the words for a wrong one."""

import numpy as np
import pytest

from align.factory import make_play
from selfalign.serve.config import Limits
from selfalign.serve.requests import RequestError, RequestReader, check_range
from serve.serving import observation

IMAGE, STATE, TASK = "observation.images.scene", "observation.state", "task"
reader = RequestReader(Limits(image_side=64, prompt_chars=40), {"cam_high": IMAGE})


def test_a_request_is_read_as_it_was_meant():
    request = reader.read({**observation(), "embodiment": "slow", "reset": True, "seed": 3})
    assert request.observation is not None and request.observation.keys() == {IMAGE, STATE, TASK}
    assert (request.embodiment, request.reset, request.seed) == ("slow", True, 3)
    assert reader.read({"reset": True}).observation is None
    assert reader.read({"reset": np.True_, "seed": np.int64(3)}).seed == 3
    assert RequestReader(Limits(), {}, learns=True).read({**observation(), "executed": np.uint8(4)}).executed == 4
    assert reader.read({**observation(), "task": "go left\n"}).observation is not None
    plain = reader.read(observation())
    assert (plain.embodiment, plain.reset, plain.seed) == (None, False, None)


def test_openpis_spelling_and_other_names_are_the_same():
    raw = observation()
    other = {"cam_high": raw[IMAGE], "observation/state": raw[STATE], "prompt": raw[TASK]}
    assert reader.read(other).observation == raw


def with_(**changes) -> dict:
    return {**observation(), **{{"state": STATE, "image": IMAGE}.get(k, k): v for k, v in changes.items()}}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ([1], "a request is a map with text keys.*got list"),
        ({}, "has no 'observation.state', 'task'; send observation.images"),
        ({b"task": "x"}, "a map with text keys"),
        (with_(speed=1), "has unknown 'speed'; send"),
        (with_(prompt="again"), "'prompt' means 'task', which the request has already"),
        (with_(state=np.zeros(3, np.int64)), r"observation.state must be a float array \[S\].*got int64 \[3\]"),
        (with_(state=np.zeros((1, 3))), r"must be a float array \[S\].*got float64 \[1, 3\]"),
        (with_(state=[0.0, 1.0]), "must be a float array.*got list"),
        (with_(state=np.array([0.0, np.nan, 0.0])), r"observation.state\[1\] is nan; check the robot's sensors"),
        (with_(state=np.array([0.0, 0.0, -np.inf])), r"observation.state\[2\] is -inf"),
        (with_(image=np.zeros((16, 16, 3))), r"scene must be uint8 \[H, W, 3\].*got float64"),
        (with_(image=np.zeros((3, 16, 16), np.uint8)), r"got uint8 \[3, 16, 16\]"),
        (with_(image=np.zeros((0, 16, 3), np.uint8)), r"got uint8 \[0, 16, 3\]"),
        (with_(image=np.zeros((65, 16, 3), np.uint8)), "at most 64 pixels a side"),
        (with_(image=b"\xff\xd8"), "got bytes"),
        (with_(task=""), "task must say what to do in 1 to 40 printable characters"),
        (with_(task="x" * 41), "1 to 40 printable characters"),
        (with_(task="go\x00"), "printable"),
        (with_(task=["go"]), "printable characters.*got list"),
        (with_(embodiment=""), "embodiment must be a name"),
        (with_(embodiment=7), "embodiment must be a name"),
        (with_(reset="yes"), "reset must be True or False"),
        (with_(reset=True, seed=-1), "seed must be an integer from 0"),
        (with_(reset=True, seed=True), "seed must be an integer"),
        (with_(seed=1), "sent with reset"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_send(message, words):
    with pytest.raises(RequestError, match=words) as error:
        reader.read(message)
    assert len(str(error.value)) < 600


def test_a_state_beyond_all_play_is_most_likely_in_other_units():
    stats = make_play().stats()
    middle, spread = stats.state.mean, stats.state.std
    check_range(middle + 99 * spread, stats, 100.0)
    for number in (101.0, 1e300):  # the second has no float32
        state = middle + np.array([0.0, number, 0.0]) * spread
        with pytest.raises(
            RequestError, match=r"observation.state\[1\] = .* spreads from the middle.*radians or degrees"
        ):
            check_range(state, stats, 100.0)
    with pytest.raises(RequestError, match="has 2 dimensions, this embodiment has 3"):
        check_range(middle[:2], stats, 100.0)

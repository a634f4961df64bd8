"""What configs refuse, in one line each: a number that is too small, a value of another type, a setting that is not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from selfalign.align.heldout import HeldOutConfig
from selfalign.align.settings import RehearsalConfig
from selfalign.bench.methods import complete
from selfalign.commands.features import FeaturesConfig
from selfalign.configs import changed
from selfalign.train.pointing import PointingConfig

NOWHERE = Path("nowhere")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PointingConfig(steps=0), r"learning to point: refused: steps=0 \(at least 1\)"),
        (lambda: HeldOutConfig(rigs=-1, bodies=0), r"refused: rigs=-1 \(at least 0\), bodies=0 \(at least 1\)"),
        (
            lambda: FeaturesConfig(("a",), NOWHERE, NOWHERE, batch_size=0),
            r"features: refused: batch_size=0 \(at least 1",
        ),
        (lambda: RehearsalConfig(slots=0), r"rehearsal: refused: slots=0 \(at least 1\)"),
        (lambda: RehearsalConfig(scheme="per_body", source_bodies=8), r"source_bodies=8 \(at least slots=16"),
        (lambda: RehearsalConfig(scheme="per_body", slots=128), r"source_bodies=64 \(at least slots=128"),
    ],
)
def test_numbers_that_nothing_can_be_made_of(make: Callable[[], object], told: str):
    with pytest.raises(ValueError, match=told):
        make()


def test_a_value_of_another_type_is_named():
    with pytest.raises(ValueError, match=r"PointingConfig does not take steps='many': '<' not supported"):
        changed(PointingConfig(), {"steps": "many"})
    with pytest.raises(ValueError, match="does not take steps='x'"):
        complete("lora", {"steps": "x"}, False, True)
    with pytest.raises(ValueError, match="PointingConfig has no setting 'step'; it has steps"):
        changed(PointingConfig(), {"step": 1})


def test_bodies_without_rehearsal_are_64_or_as_many_as_is_said():
    assert RehearsalConfig(scheme="per_body").fixed_bodies == 64
    assert RehearsalConfig(scheme="per_body", source_bodies=512).fixed_bodies == 512

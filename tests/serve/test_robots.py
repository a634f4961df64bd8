"""A server of robots with conventions of their own: targets come in and go out, the model sees displacements."""

import dataclasses

import numpy as np
import pytest

import selfalign as sa
from align.factory import HORIZON, small_policy
from online.steps import many_steps
from selfalign.align.offline import AlignConfig
from selfalign.checkpoint import save_checkpoint
from selfalign.online.jobs import AlignJob, Material, MeasureJob
from selfalign.online.ring import Ring
from selfalign.policy import Policy
from selfalign.serve import server as serving
from selfalign.serve.client import Client
from selfalign.serve.config import ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.server import in_background
from test_policy_robot import ROBOT, gantry_play

CONFIG = ServeConfig(port=0, num_steps=10, max_wait_ms=1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return dataclasses.replace(small_policy(), robot=ROBOT)


@pytest.fixture(scope="module")
def contexts(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contexts")
    sa.align(policy, gantry_play(), config=AlignConfig(steps=2), progress=False).fitted.save(
        folder / "gantry.safetensors"
    )
    return folder


def look(frame: int = 3) -> dict:
    episode = gantry_play().episodes[0]
    return {
        "observation.images.overhead": episode.images["overhead"][frame],
        "observation.state": episode.state[frame],
        "task": "go",
    }


def test_a_robot_is_answered_in_its_own_numbers(policy, contexts, monkeypatch):
    drawn = policy.model.prior().tensors[0].new_zeros(HORIZON, policy.model.config.action_dim)
    monkeypatch.setattr("selfalign.serve.session.Session._draw", lambda self: drawn)
    with in_background(policy, ContextTable(policy, contexts), CONFIG) as server, Client(server.address) as client:
        answer = client.infer(look())["actions"]
    context = policy.load_context(contexts / "gantry.safetensors")
    np.testing.assert_allclose(answer, policy.act(look(), context, noise=drawn), rtol=1e-5, atol=1e-6)
    seen = {**look(), "observation.images.scene": look()["observation.images.overhead"]}
    del seen["observation.images.overhead"]
    plain = dataclasses.replace(policy, robot=None).act(seen, context.with_info(robot=""), noise=drawn)
    np.testing.assert_allclose(answer[:, :2] - look()["observation.state"][:2], plain[:, :2], rtol=1e-4, atol=1e-5)


def test_its_context_is_not_served_without_it(policy, contexts):
    plain = dataclasses.replace(policy, robot=None)
    with pytest.raises(
        ValueError, match="gantry: the numbers of 'gantry' went through the steps of the robot 'gantry'"
    ):
        ContextTable(plain, contexts)


def test_a_context_that_does_not_say_is_served_with_a_warning(policy, contexts, tmp_path, caplog):
    old = policy.load_context(contexts / "gantry.safetensors").with_info(robot=None)
    old.save(tmp_path / "old.safetensors")
    assert ContextTable(policy, contexts).names == ["gantry"] and not caplog.records
    assert ContextTable(policy, tmp_path).names == ["old"]
    assert "'old' does not say whose steps its numbers took; they take those of gantry here" in caplog.text


def test_the_command_takes_the_robot(policy, contexts, tmp_path, monkeypatch):
    save_checkpoint(dataclasses.replace(policy, robot=None), tmp_path / "model")
    file = tmp_path / "gantry_file.py"
    file.write_text("from test_policy_robot import ROBOT\n\nROBOTS = (ROBOT,)\n")
    served = []

    async def instead(policy, contexts, config, learning):
        served.append((policy.robot.name, contexts.names))

    monkeypatch.setattr(serving, "_run", instead)
    serving.run(ServeConfig(tmp_path / "model", contexts, robot=str(file), port=0))
    assert served == [("gantry", ["gantry"])]


def test_what_it_does_can_be_learned_from(policy, contexts, tmp_path):
    """Steps with the data set's camera names and targets: measured and fitted as play of the robot is."""
    ring, live = Ring(tmp_path / "ring", 2**22), contexts / "gantry.safetensors"
    for step in many_steps(6, every=1):
        ring.append(dataclasses.replace(step, pictures={"overhead": step.pictures["scene"]}).pack())
    material = Material("gantry", ring.snapshot(), 0, 64)
    losses = MeasureJob(material, live, {}).run(policy, 512)["losses"]
    named = dataclasses.replace(policy, robot=dataclasses.replace(ROBOT, steps=()))
    plain = sa.EmbodimentContext.load(live).with_info(robot="").save(tmp_path / "plain.safetensors")
    assert losses["live"] != pytest.approx(MeasureJob(material, plain, {}).run(named, 512)["losses"]["live"])
    AlignJob(material, live, tmp_path / "fitted.safetensors", 20, -10.0).run(policy, 512)
    assert policy.load_context(tmp_path / "fitted.safetensors").info.robot == "gantry"

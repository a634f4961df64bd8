"""The example of a simulated robot over the wire, for a few steps."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from align.factory import small_policy
from selfalign.data.normalize import NormStats
from selfalign.serve.config import ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.server import in_background
from selfalign.sim.envs import make_body

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulated_robot.py"


def test_a_simulated_robot_acts_over_the_wire(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("simulated_robot", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    body, policy, rng = make_body("panda"), small_policy(), np.random.default_rng(0)
    stats = NormStats.from_arrays(rng.normal(size=(50, body.state_dim)), rng.normal(size=(50, body.action_dim)))
    context = policy.model.prior().detach().with_info(fingerprint=policy.fingerprint(), norm_stats=stats.to_dict())
    context.save(tmp_path / "contexts" / "my_robot.safetensors")
    (tmp_path / "body.json").write_text(json.dumps(body.to_dict()))
    with in_background(policy, ContextTable(policy, tmp_path / "contexts"), ServeConfig(port=0, num_steps=1)) as server:
        config = example.Config(tmp_path / "body.json", "my_robot", server.address, episodes=1, steps=6, smoothing=0.1)
        assert example.main(config) in (0, 1)
    assert "of 1 episodes succeeded" in capsys.readouterr().out

"""Which bodies pretraining may make of a simulated source rig."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from selfalign.data.perturb import EmbodimentPerturbation
from selfalign.sim.bodies import sample_spaces
from selfalign.sim.robots import RobotSpec

JOINT_SHARE = 0.05
"""Share of virtual bodies that are moved by their joints; the others by their end effector."""


def source_perturbation(rng: np.random.Generator, rig: Mapping[str, Any], width: float = 1.0) -> EmbodimentPerturbation:
    """Action and state spaces of the source region for a rig (a row of `meta/embodiments.json`).

    At width 0 they are the canonical ones, at width 1 any. Joint bodies have no near relatives of the canonical ones;
    they come in with the width.
    """
    joint = rng.uniform() < JOINT_SHARE * width
    joints = RobotSpec(rig["arm"], rig["gripper"]).num_joints
    action, state = sample_spaces(rng, "source", "joint_delta" if joint else "ee_delta", joints, width)
    return EmbodimentPerturbation(action.frame, state.frame)

"""Which bodies pretraining may make of a simulated source rig."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from selfalign.data.perturb import EmbodimentPerturbation
from selfalign.sim.bodies import sample_spaces
from selfalign.sim.robots import RobotSpec

JOINT_SHARE = 0.05
"""Share of virtual bodies that are moved by their joints; the others by their end effector."""


def source_perturbation(rng: np.random.Generator, rig: Mapping[str, Any]) -> EmbodimentPerturbation:
    """Action and state spaces of the source region for a rig (a row of `meta/embodiments.json`)."""
    joints = RobotSpec(rig["arm"], rig["gripper"]).num_joints
    kind = "joint_delta" if rng.uniform() < JOINT_SHARE else "ee_delta"
    action, state = sample_spaces(rng, "source", kind, joints)
    return EmbodimentPerturbation(action.frame, state.frame)

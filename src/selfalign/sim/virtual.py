"""Which bodies pretraining may make of a simulated source rig."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from selfalign.data.perturb import EmbodimentPerturbation, LinearFrame
from selfalign.sim.bodies import sample_spaces
from selfalign.sim.robots import RobotSpec

JOINT_SHARE = 0.05
"""Share of virtual bodies that are moved by their joints; the others by their end effector."""
CANONICAL_SHARE = 0.4
"""Share of end-effector bodies whose actions keep the canonical frame and, drawn apart, whose states do. On these a
policy learns what to do before it can read how; with random frames alone it stays on a plateau for long."""


def source_perturbation(rng: np.random.Generator, rig: Mapping[str, Any]) -> EmbodimentPerturbation:
    """Action and state spaces of the source region for a rig (a row of `meta/embodiments.json`)."""
    joints = RobotSpec(rig["arm"], rig["gripper"]).num_joints
    if rng.uniform() < JOINT_SHARE:
        action, state = sample_spaces(rng, "source", "joint_delta", joints)
        return EmbodimentPerturbation(action.frame, state.frame)
    action, state = sample_spaces(rng, "source", "ee_delta", joints)
    keep_action, keep_state = rng.uniform(size=2) < CANONICAL_SHARE
    return EmbodimentPerturbation(
        LinearFrame() if keep_action else action.frame, LinearFrame() if keep_state else state.frame
    )

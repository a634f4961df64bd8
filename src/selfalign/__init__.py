"""Selfalign: a frozen vision-language-action policy learns a new robot body from its own unlabelled play.

    import selfalign as sa

    policy = sa.load("checkpoints/tiny")
    play = sa.Play.open("data/my_robot_play")
    result = sa.align(policy, play)
    actions = policy.act(observation, context=result.context)

`sa.align` is the function; modules of the package of that name are imported by their full path, as in
`from selfalign.align.store import ContextStore`.
"""

from selfalign.acting import Acting
from selfalign.align.offline import AlignConfig, AlignmentResult, align
from selfalign.align.store import ContextStore
from selfalign.checkpoint import load
from selfalign.data.play import Play
from selfalign.model.context import EmbodimentContext
from selfalign.policy import Policy
from selfalign.types import ActionChunk, Observation, Transition

__all__ = [
    "load",
    "Policy",
    "Acting",
    "Play",
    "align",
    "AlignConfig",
    "AlignmentResult",
    "EmbodimentContext",
    "ContextStore",
    "Observation",
    "ActionChunk",
    "Transition",
]

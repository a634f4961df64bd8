"""One body's story, up to acting: it plays, and contexts are fitted to its play."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from selfalign.acting import Acting
from selfalign.align.offline import AlignConfig, AlignmentResult, align
from selfalign.data.play import Play
from selfalign.model.context import EmbodimentContext
from selfalign.policy import Policy
from selfalign.provenance import digest
from selfalign.sim.bodies import BodySpec
from selfalign.sim.engine import Simulation
from selfalign.sim.record import record_play

BEFORE, ALIGNED, RANDOM, SWAP = "before", "aligned", "random", "swap"


def after(steps: int) -> str:
    """Name of the context after so many steps."""
    return f"after_{steps}"


def body_seed(seed: int, *where: int) -> int:
    """A seed of a body's own, so that bodies neither share their play nor their scenes."""
    return int(np.random.SeedSequence([seed, *where]).generate_state(1)[0])


def identity_of(policy: Policy, acting: Acting | None = None) -> dict[str, Any]:
    """What of a policy numbers depend on, as JSON values: its weights, how it is aligned, the digest of its calibration
    (`align` returns the prior where that objects), and how it acts; None where it has none, and acts as it was trained.

    Args:
        acting: in place of the policy's own.
    """
    acting = policy.acting if acting is None else acting
    return {
        "fingerprint": policy.fingerprint(),
        "align": json.loads(json.dumps(policy.settings.to_dict())),
        "calibration": None if policy.calibration is None else digest(policy.calibration.to_dict()),
        "acting": None if acting == Acting() else acting.to_dict(),
    }


def check_unchanged(policy: Policy, identity: Mapping[str, Any]) -> None:
    """Raises `RuntimeError` where a checkpoint is not any more what it was when a run began (`identity_of`)."""
    now = identity_of(policy)
    changed = [name for name, value in identity.items() if now[name] != value]
    if changed:
        raise RuntimeError(
            f"the checkpoint has changed since this run began ({', '.join(changed)}): what was measured is of the one "
            "before; run it again"
        )


def acting_told(result: Mapping[str, Any]) -> dict[str, Any]:
    """What `identity_of` has told a result of how bodies acted, where that is not as the policy was trained."""
    return {} if result.get("acting") is None else {"acting": result["acting"]}


def collect_play(
    policy: Policy,
    body: BodySpec,
    trajectories: int,
    length: int,
    seed: int,
    sim: Simulation | None = None,
) -> Play:
    """Lets a body play in the simulator, live."""
    size = policy.model.config.image_size
    episodes = record_play(body, trajectories, length, seed, image_size=size, sim=sim)
    return Play.from_episodes(episodes, {"name": body.name, **body.to_dict()}, body.name)


@dataclass(frozen=True, eq=False)
class BodyContexts:
    """Contexts of one body, all with the statistics of its play."""

    result: AlignmentResult
    """Of `align` as a user runs it: with the checkpoint's own settings."""
    contexts: Mapping[str, EmbodimentContext]
    """`before`, `after_10`, ..., `aligned` and `random`."""
    held_out: Mapping[int, float]
    """Held-out play loss after the steps at which it was measured."""


def align_stepwise(
    policy: Policy, play: Play, steps: Sequence[int] = (), *, seed: int = 0, progress: bool = False
) -> BodyContexts:
    """Aligns to a body's play, as a user does. A second alignment, which does not stop early, gives the contexts after
    some numbers of steps, where there are any.
    """
    usually = AlignConfig(interruptible=False)
    result = align(policy, play, config=usually, progress=progress)
    runs = [result]
    if steps:
        whole = replace(usually, steps=max(steps), patience=None)
        runs.append(align(policy, play, config=whole, progress=progress, snapshots=steps))
    own = result.context
    before = own.with_tensors([t.detach().clone() for t in policy.model.prior().to(policy.device).tensors])
    snapshots = {step: context for run in runs for step, context in run.snapshots.items()}
    contexts = {BEFORE: before} | {after(s): own.with_tensors(snapshots[s].tensors) for s in steps if s in snapshots}
    contexts |= {ALIGNED: own, RANDOM: null_update(policy, before, before.distance(result.fitted), seed)}
    held_out = {s: v for run in runs for s, v in zip(run.history.held_out_steps, run.history.held_out["total"])}
    return BodyContexts(result, contexts, dict(sorted(held_out.items())))


def null_update(policy: Policy, start: EmbodimentContext, norm: float, seed: int) -> EmbodimentContext:
    """The null: `start` moved by so much, in a direction that no play has chosen."""
    return policy.model.contexts.random(start, norm, generator=torch.Generator().manual_seed(seed))


def fit_summary(play: Play, fitted: BodyContexts) -> dict[str, Any]:
    """What a report says of a fit: plain values, for JSON."""
    history, context = fitted.result.history, fitted.contexts[ALIGNED]
    return {
        "play": {"trajectories": len(play), "frames": play.num_frames, "robot_seconds": round(play.seconds, 1)},
        "verdict": {**fitted.result.verdict.to_dict(), "text": str(fitted.result.verdict)},
        "held_out_play_loss": {
            str(step): round(loss, 5) if math.isfinite(loss) else None for step, loss in fitted.held_out.items()
        },
        "best_step": history.best_step,
        "stopped": history.stopped,
        "update_norm": {
            name: round(other.distance(fitted.contexts[BEFORE]), 4) for name, other in fitted.contexts.items()
        },
        "context_megabytes": round(context.num_bytes / 1e6, 4),
    }

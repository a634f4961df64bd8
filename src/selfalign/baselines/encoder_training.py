"""Training the encoder through the frozen policy, on recorded source bodies and what may be made of them.

    W = W0 + encoder(play of a body)            loss: the action loss on its demonstrations, under W

As in RMA, whose encoder learns with the policy's own loss; and like the policy itself, which rehearsed on such bodies
(`data.virtual`): no two batches have the same. What is learned from is source data alone.
"""

import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from selfalign.align.heldout import hold_out
from selfalign.align.pretrain import trained_features
from selfalign.baselines.descent import Descent, descend
from selfalign.baselines.encoder import PlayEncoder, TrainedEncoder, encoder_inputs, moved_prior
from selfalign.baselines.method import check_positive
from selfalign.baselines.samples import FlowSamples
from selfalign.data.bodies import RecordedBodies
from selfalign.data.cache import EpisodeCache
from selfalign.data.sources import SourceData
from selfalign.data.virtual import DrawPerturbation, ModelShape, VirtualSources
from selfalign.model.losses import ACTION
from selfalign.policy import Policy
from selfalign.provenance import digest
from selfalign.sim.virtual import source_perturbation
from selfalign.train.bookmark import Bookmark

FEATURES = Path("outputs/encoder.features")
"""Holds a folder of what the vision tower sees for each collection of data sets."""


@dataclass(frozen=True)
class EncoderTraining:
    """How the encoder is trained."""

    rank: int = 64
    """Numbers that it says of a body."""
    width: int = 256
    steps: int = 2000
    learning_rate: float = 1e-3
    bodies: int = 16
    """In a batch."""
    transitions: int = 64
    """Of the play of each, that it reads; drawn anew in every step."""
    demonstrations: int = 8
    """Samples of the demonstrations of each, on which the action loss is taken."""
    reach_weight: float = 10.0
    """How often frames of reach demonstrations are drawn, relative to other tasks; as the shipped policy had them."""
    holdout: float = 0.1
    """Share of the rigs that says which step is kept; 0: none, and the last one is."""
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("rank", "width", "steps", "learning_rate", "bodies", "transitions", "demonstrations")
        check_positive(self, (*positive, "reach_weight"), or_zero=("holdout",))
        if self.holdout >= 1:
            raise ValueError(f"EncoderTraining: holdout must be less than 1, got {self.holdout}")


@dataclass(frozen=True, eq=False)
class Recordings:
    """Source data as a policy sees them, and the bodies that may be made of them."""

    cache: EpisodeCache
    sources: partial[VirtualSources]

    @classmethod
    def open(
        cls, policy: Policy, data: tuple[str, ...], features: str | Path | None = None, *, progress: bool = False
    ) -> "Recordings":
        """Reads data sets, and runs the policy's vision tower over them unless `features` holds what it saw.

        Args:
            features: folder for that; None: one of these data sets' own in `FEATURES`.

        Raises:
            FileNotFoundError: no such data set.
            ValueError: it does not suit the policy.
        """
        source, model = SourceData.open(data), policy.model
        source.require_cameras(model.config.cameras)
        cache = EpisodeCache.build(source, image_size=model.config.image_size, progress=progress)
        folder = FEATURES / digest(source.fingerprint) if features is None else Path(features)
        folder.mkdir(parents=True, exist_ok=True)
        config = model.config
        shape = ModelShape(config.action_horizon, config.action_dim, config.state_dim, config.next_offset)
        seen = trained_features(model, cache, folder)
        return cls(cache, partial(VirtualSources, cache, seen, policy.tokenizer, shape, _bodies_of(source)))

    def split(self, share: float, seed: int, reach_weight: float) -> tuple[VirtualSources, VirtualSources | None]:
        """Rigs to learn from, and a share of them that is held out; None where that is none.

        Raises:
            ValueError: less than two rigs are left to learn from.
        """
        rigs = np.unique(self.cache.embodiment_index)
        learned, held_out = hold_out(rigs, round(share * len(rigs)), seed)
        if len(learned) < 2:
            raise ValueError(f"an encoder needs at least 2 source bodies to learn from, got {len(learned)}")
        make = partial(self.sources, task_weights={"reach": reach_weight})
        return make(rigs=learned), make(rigs=held_out) if len(held_out) else None


def _bodies_of(source: SourceData) -> DrawPerturbation:
    """Those of the simulator's source region, where all rigs are simulated; the recorded ones otherwise."""
    if all({"arm", "gripper", "action_space"} <= body.keys() for body in source.embodiments):
        return source_perturbation
    return RecordedBodies.of(source, "none", ())


@dataclass(frozen=True, eq=False)
class BodyBatch:
    """What the encoder reads of some bodies, and what the policy should do there."""

    play: Float[Tensor, "B N I"]
    shown: FlowSamples
    """Demonstrations, body after body."""

    @classmethod
    def draw(
        cls,
        policy: Policy,
        sources: VirtualSources,
        config: EncoderTraining,
        generator: torch.Generator,
        *,
        fixed: bool = False,
    ) -> "BodyBatch":
        """New bodies; with `fixed` noise, flow times are spread evenly."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        bodies = [sources.sample(rng) for _ in range(config.bodies)]
        play = sources.play_batch(bodies, config.transitions, rng).to(policy.device)
        shown = sources.demonstration_batch(bodies, config.demonstrations, rng).to(policy.device)
        samples = FlowSamples.fixed(shown, config.seed) if fixed else FlowSamples.draw(shown, generator)
        return cls(encoder_inputs(policy, play).unflatten(0, (len(bodies), -1)), samples)

    def loss(self, policy: Policy, network: PlayEncoder | None) -> Float[Tensor, ""]:
        """The action loss under the contexts that an encoder gives; None: under W0."""
        model, shown = policy.model, self.shown
        context = None
        if network is not None:
            each = shown.batch.observation.batch_size // len(self.play)
            context = moved_prior(model, network(self.play)).repeat_interleave(each)
        with torch.no_grad():
            prefix = model.prefix(shown.batch.observation)
        losses = model.losses(shown.batch, context, noise=shown.noise, time=shown.time, prefix=prefix, parts=(ACTION,))
        assert losses.action is not None
        return losses.action


JUDGED = 4
"""Batches of held-out bodies that choose the step."""


def train_encoder(
    policy: Policy,
    recordings: Recordings,
    config: EncoderTraining = EncoderTraining(),
    *,
    unfinished: Path | None = None,
    progress: bool = False,
) -> TrainedEncoder:
    """Trains an encoder for a policy, which stays as it is.

    The training says `action_loss` on bodies of held-out rigs, under W0 and under the encoder's contexts.

    Args:
        unfinished: file that keeps the training; one that was interrupted goes on from it. It is there at the end, too.

    Raises:
        ValueError: less than two rigs to learn from, or an unfinished training that is another or damaged.
    """
    learned, held_out = recordings.split(config.holdout, config.seed, config.reach_weight)
    frozen = replace(policy, model=copy.deepcopy(policy.model).eval().requires_grad_(False))
    generator = torch.Generator().manual_seed(config.seed)
    judged = []
    if held_out is not None:
        judged = [BodyBatch.draw(frozen, held_out, config, generator, fixed=True) for _ in range(JUDGED)]
    network = _fresh(frozen, learned, config)

    def judge(network: PlayEncoder | None) -> float:
        with torch.no_grad():
            return float(torch.stack([batch.loss(frozen, network) for batch in judged]).mean())

    history = descend(
        list(network.parameters()),
        lambda generator: BodyBatch.draw(frozen, learned, config, generator).loss(frozen, network),
        Descent(config.steps, config.learning_rate, eval_every=max(1, config.steps // 20), patience=None),
        seed=config.seed,
        bookmark=None if unfinished is None else Bookmark(unfinished, _about(policy, recordings, config)),
        held_out=(lambda: judge(network)) if judged else None,
        title="encoder",
        progress=progress,
    )
    network.eval().requires_grad_(False)
    told = {
        **asdict(config),
        "rigs": {"learned": len(learned.rigs), "held_out": 0 if held_out is None else len(held_out.rigs)},
        "action_loss": {"prior": judge(None), "encoder": judge(network)} if judged else None,
        "best_step": history.best_step,
        "stopped": history.stopped,
    }
    return TrainedEncoder(network, policy.fingerprint(), told)


def _about(policy: Policy, recordings: Recordings, config: EncoderTraining) -> dict[str, Any]:
    return {"policy": policy.fingerprint(), "data": recordings.cache.root.name, **asdict(config)}


def _fresh(policy: Policy, sources: VirtualSources, config: EncoderTraining) -> PlayEncoder:
    some = BodyBatch.draw(policy, sources, replace(config, bodies=1), torch.Generator().manual_seed(config.seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        size = policy.model.prior().embedding().numel()
        return PlayEncoder(some.play.shape[-1], config.width, config.rank, size).to(policy.device)

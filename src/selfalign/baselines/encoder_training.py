"""Training the encoder: contexts are fitted to many source bodies, and the network regresses them from their play.

    for each source body:   play -> align -> (what the encoder reads, W - W0), kept as a file
    encoder:                |z(play) - coordinates of W - W0|^2 over all of them

The policy does not change. What was collected (`baselines.collect`) serves any number of trainings.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from selfalign.align.offline import align
from selfalign.baselines.descent import Descent, descend
from selfalign.baselines.encoder import PlayEncoder, TrainedEncoder, encoder_inputs
from selfalign.baselines.method import check_positive
from selfalign.baselines.samples import draw_rows
from selfalign.data.play import Play
from selfalign.model.weights import write_atomically
from selfalign.policy import Policy

FORMAT = "selfalign-encoder-example-1"


@dataclass(frozen=True, eq=False)
class Example:
    """One source body: what the encoder reads, and what it should say."""

    inputs: Float[Tensor, "N D"]
    moved: Float[Tensor, " C"]
    """W - W0 of the context that was fitted to the same play."""
    fingerprint: str
    """Of the model that it was fitted to."""

    @classmethod
    def of(cls, policy: Policy, play: Play) -> Self:
        """Aligns to play of a source body; the best context counts, whatever the verdict."""
        result = align(policy, play, progress=False)
        inputs = encoder_inputs(policy, policy.transitions(policy.repack_play(play), result.stats))
        moved = result.fitted.embedding() - policy.model.prior().embedding().detach()
        return cls(inputs.cpu(), moved.cpu(), policy.fingerprint())

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"inputs": self.inputs.contiguous(), "moved": self.moved.contiguous()}
        metadata = {"format": FORMAT, "fingerprint": self.fingerprint}
        write_atomically(path, lambda partial: save_file(tensors, partial, metadata))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads such a file.

        Raises:
            ValueError: damaged, or something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{path} is not an example for the encoder")
                return cls(file.get_tensor("inputs"), file.get_tensor("moved"), metadata["fingerprint"])
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it and collect again") from error


def read_examples(folder: str | Path) -> list[Example]:
    """All examples of a folder, by name.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no examples for the encoder in {folder}; `selfalign bench encoder` collects them")
    return [Example.load(path) for path in paths]


@dataclass(frozen=True)
class EncoderTraining:
    """How the encoder is trained."""

    rank: int = 32
    """Principal directions of the contexts; at most one less than there are bodies to learn from."""
    width: int = 256
    steps: int = 2000
    learning_rate: float = 1e-3
    bodies: int = 16
    """Bodies in a batch."""
    transitions: int = 128
    """Of each of them, drawn anew in every step."""
    holdout: float = 0.15
    """Share of the bodies that says which step is kept; 0: none, and the last one is."""
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("rank", "width", "steps", "learning_rate", "bodies", "transitions")
        check_positive(self, positive, or_zero=("holdout",))
        if self.holdout >= 1:
            raise ValueError(f"EncoderTraining: holdout must be less than 1, got {self.holdout}")


def train_encoder(
    examples: Sequence[Example], config: EncoderTraining = EncoderTraining(), *, progress: bool = False
) -> TrainedEncoder:
    """Regresses the contexts of source bodies from their play.

    The training says `unexplained`, the share of the variance of held-out bodies' W that the encoder misses: 1 for the
    mean context, 0 for the fitted ones.

    Raises:
        ValueError: examples of different models, or less than two bodies to learn from.
    """
    fingerprints = {example.fingerprint for example in examples}
    if len(fingerprints) != 1:
        raise ValueError(f"examples for an encoder must be of one model, these are of {sorted(fingerprints)}")
    learned, held = _split(examples, config)
    if len(learned) < 2:
        raise ValueError(f"an encoder needs at least 2 source bodies to learn from, got {len(learned)}")
    network = _fresh(learned, config)
    history = descend(
        list(network.parameters()),
        lambda generator: _regression(network, learned, config, generator),
        Descent(config.steps, config.learning_rate, eval_every=max(1, config.steps // 40), patience=None),
        seed=config.seed,
        held_out=(lambda: unexplained(network, held)) if held else None,
        title="encoder",
        progress=progress,
    )
    network.eval().requires_grad_(False)
    training = {
        **asdict(config),
        "source_bodies": {"learned": len(learned), "held_out": len(held)},
        "unexplained": {
            "learned": unexplained(network, learned),
            "held_out": unexplained(network, held) if held else None,
        },
        "best_step": history.best_step,
    }
    return TrainedEncoder(network, fingerprints.pop(), training)


@torch.no_grad()
def unexplained(network: PlayEncoder, examples: Sequence[Example]) -> float:
    """Squared error of the contexts that the encoder gives, relative to the variance of those that it learned from."""
    errors = [network.moved(network(e.inputs)) - e.moved for e in examples]
    return float(torch.stack(errors).square().sum(-1).mean() / network.scale.square())


def _split(examples: Sequence[Example], config: EncoderTraining) -> tuple[list[Example], list[Example]]:
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(config.seed)).tolist()
    count = round(config.holdout * len(examples)) if len(examples) > 2 else 0
    return [examples[i] for i in order[count:]], [examples[i] for i in order[:count]]


def _fresh(examples: Sequence[Example], config: EncoderTraining) -> PlayEncoder:
    """A network with the principal directions of some contexts."""
    moved = torch.stack([example.moved for example in examples])
    mean = moved.mean(0)
    _, _, directions = torch.linalg.svd(moved - mean, full_matrices=False)
    basis = directions[: min(config.rank, len(examples) - 1)]
    scale = (moved - mean).square().sum(-1).mean().sqrt().clamp_min(1e-12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return PlayEncoder(examples[0].inputs.shape[1], config.width, mean, basis, scale)


def _regression(
    network: PlayEncoder, examples: Sequence[Example], config: EncoderTraining, generator: torch.Generator
) -> Tensor:
    """Squared error of z, summed over its coordinates, for random transitions of random bodies."""
    picked = [examples[i] for i in draw_rows(len(examples), min(config.bodies, len(examples)), generator).tolist()]
    inputs = torch.stack([e.inputs[draw_rows(len(e.inputs), config.transitions, generator)] for e in picked])
    target = network.coordinates(torch.stack([e.moved for e in picked]))
    return (network(inputs) - target).square().sum(-1).mean()

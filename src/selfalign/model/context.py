"""`EmbodimentContext`: the fast weights W = (W1, b1) of every TTT layer for one embodiment, as a value.

A context is an argument of every forward pass. Each tensor is `[heads, f, f]` (one context for the whole batch) or
`[B, heads, f, f]` (one per sample), so one batch can mix robots.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfalign.model.files import write_atomically

FORMAT = "selfalign-context-1"


@dataclass(frozen=True)
class ContextInfo:
    """What a context file says about itself."""

    embodiment: str = ""
    """Name of the body that it was fitted to."""
    fingerprint: str = ""
    """Fingerprint of the model that it belongs to."""
    norm_stats: dict[str, Any] | None = None
    """Normalisation statistics of this body, as `NormStats.to_dict` gives them."""
    history: dict[str, Any] | None = None
    """Losses over the steps of the alignment."""
    verdict: dict[str, Any] | None = None
    robot: str | None = None
    """Name of the `Embodiment` whose steps the body's numbers took before they were normalised; "": none; None: nobody
    says."""


@dataclass(frozen=True)
class EmbodimentContext:
    """Fast weights of all TTT layers, first to last.

    Attributes:
        W1: one `[heads, f, f]` or `[B, heads, f, f]` tensor per TTT layer.
        b1: one `[heads, 1, f]` or `[B, heads, 1, f]` tensor per TTT layer.
    """

    W1: tuple[Tensor, ...]
    b1: tuple[Tensor, ...]
    info: ContextInfo = field(default_factory=ContextInfo)

    def __post_init__(self):
        if len(self.W1) != len(self.b1):
            raise ValueError(f"a context needs as many W1 as b1, got {len(self.W1)} and {len(self.b1)}")

    # ---- as a bundle of tensors ------------------------------------------------------------------------------------

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All W1, then all b1."""
        return self.W1 + self.b1

    @property
    def batched(self) -> bool:
        """True for one context per sample."""
        return bool(self.W1) and self.W1[0].dim() == 4

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """A copy that holds `tensors`, given in the order of `self.tensors`."""
        n = len(self.W1)
        return dataclasses.replace(self, W1=tuple(tensors[:n]), b1=tuple(tensors[n:]))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        return self.with_tensors([fn(t) for t in self.tensors])

    def detach(self) -> Self:
        """A copy through which no gradient flows."""
        return self.map(Tensor.detach)

    def clone(self) -> Self:
        """A detached copy with memory of its own."""
        return self.map(lambda t: t.detach().clone())

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda t: t.to(device))

    def leaf(self) -> Self:
        """A detached copy whose tensors collect gradients: what an optimiser moves."""
        return self.map(lambda t: t.detach().clone().requires_grad_())

    def with_info(self, **changes: Any) -> Self:
        return dataclasses.replace(self, info=dataclasses.replace(self.info, **changes))

    def index(self, i: int | Tensor) -> Self:
        """Sample i of a batched context; with an index tensor, those samples, batched."""
        return self.map(lambda t: t[i])

    def repeat_interleave(self, times: int) -> Self:
        """[B, ...] -> [B * times, ...], each context repeated for the consecutive samples of its embodiment."""
        return self.map(lambda t: t[:, None].expand(-1, times, *t.shape[1:]).reshape(-1, *t.shape[1:]))

    @classmethod
    def stack(cls, contexts: Sequence["EmbodimentContext"]) -> "EmbodimentContext":
        """Several contexts as one batched context, for a batch that mixes robots."""
        columns = zip(*(c.tensors for c in contexts), strict=True)
        return contexts[0].with_tensors([torch.stack(column) for column in columns])

    # ---- as a point in a space -------------------------------------------------------------------------------------

    def embedding(self) -> Tensor:
        """All numbers in one vector `[size]`, or `[B, size]` for a batched context."""
        return torch.cat([t.flatten(1 if self.batched else 0) for t in self.tensors], dim=-1)

    def distance(self, other: "EmbodimentContext") -> float:
        """Euclidean distance between two contexts."""
        return float((self.embedding() - other.embedding()).detach().norm())

    def perturbed(self, norm: float, *, generator: torch.Generator | None = None) -> Self:
        """This context plus a random update of the given Euclidean norm, spread over tensors as Gaussian noise."""
        noise = [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in self.tensors]
        scale = norm / torch.cat([n.flatten() for n in noise]).norm().clamp_min(1e-12)
        return self.with_tensors([t.detach() + scale * n for t, n in zip(self.tensors, noise, strict=True)])

    # ---- as a file -------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with the info as metadata, atomically: the old file stays until the new is whole."""
        if self.batched:
            raise ValueError("a context file holds one embodiment: take one with context.index(i) first")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}.{i}": t.detach().cpu().contiguous()
            for name in ("W1", "b1")
            for i, t in enumerate(getattr(self, name))
        }
        metadata = {"format": FORMAT, "info": json.dumps(dataclasses.asdict(self.info), allow_nan=False)}
        # The package's own writer raises an error of its own on a full disk; this is bytes of a few megabytes.
        data = safetensors.torch.save(tensors, metadata)
        write_atomically(path, lambda temporary: temporary.write_bytes(data))
        return path

    @classmethod
    def load(cls, path: str | Path, *, fingerprint: str | None = None) -> "EmbodimentContext":
        """Read a context file; with `fingerprint`, refuse one that was fitted to another model.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not a context file, damaged, or of another model.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no context file at {path}; `selfalign align --out {path}` writes one")
        try:
            with safe_open(path, framework="pt") as file:
                metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a whole safetensors file ({error}); align again, or restore a copy"
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} is a safetensors file but not a context: "
                f"its format is {metadata.get('format')!r}, a context's {FORMAT!r}"
            )
        info = ContextInfo(**json.loads(metadata["info"]))
        if fingerprint is not None and info.fingerprint != fingerprint:
            raise ValueError(
                f"{path} was fitted to model {info.fingerprint or '(unknown)'}, but this model is {fingerprint}: "
                "a context means nothing to another model; align this model to the body's play"
            )
        layers = len(tensors) // 2
        return cls(
            tuple(tensors[f"W1.{i}"] for i in range(layers)), tuple(tensors[f"b1.{i}"] for i in range(layers)), info
        )

"""A network that reads a context out of play, and its file.

    z = head(mean over transitions of embed(o_t, a_{t:t+H}, o_{t+H}))        W = W0 + mean + scale z B

B: principal directions of contexts that were fitted to source bodies.

Shapes: N transitions, D inputs of each, K directions, C numbers of a context.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import VLA
from selfalign.model.weights import write_atomically
from selfalign.policy import Policy
from selfalign.types import Transition

FORMAT = "selfalign-encoder-1"


class PlayEncoder(nn.Module):
    """A set network from transitions of play to the coordinates z of a context.

    Args:
        inputs: D, numbers of a transition.
        width: hidden units.
        mean: of the source bodies' W - W0, [C].
        basis: principal directions, [K, C], orthonormal.
        scale: of z, so that the network's outputs are of order 1.
    """

    mean: Float[Tensor, " C"]
    basis: Float[Tensor, "K C"]
    scale: Float[Tensor, ""]

    def __init__(
        self, inputs: int, width: int, mean: Float[Tensor, " C"], basis: Float[Tensor, "K C"], scale: Float[Tensor, ""]
    ):
        super().__init__()
        self.sizes = {"inputs": inputs, "width": width}
        self.embed = nn.Sequential(
            *(nn.Linear(inputs, width), nn.SiLU()), *(nn.Linear(width, width), nn.SiLU()), nn.Linear(width, width)
        )
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, len(basis)))
        for name, tensor in (("mean", mean), ("basis", basis), ("scale", scale)):
            self.register_buffer(name, tensor.clone())

    def forward(self, transitions: Float[Tensor, "*B N D"]) -> Float[Tensor, "*B K"]:
        """Coordinates, in units of `scale`."""
        return self.head(self.embed(transitions).mean(-2))

    def coordinates(self, moved: Float[Tensor, "*B C"]) -> Float[Tensor, "*B K"]:
        """What `forward` should give for fitted contexts W - W0."""
        return (moved - self.mean) @ self.basis.T / self.scale

    def moved(self, coordinates: Float[Tensor, "*B K"]) -> Float[Tensor, "*B C"]:
        """W - W0 at some coordinates: undoes `coordinates` within the span."""
        return self.mean + self.scale * coordinates @ self.basis

    @torch.no_grad()
    def context(self, model: VLA, transitions: Float[Tensor, "N D"]) -> EmbodimentContext:
        """The context that it reads out of one body's transitions."""
        return moved_prior(model, self.moved(self.forward(transitions)))


def moved_prior(model: VLA, moved: Float[Tensor, " C"]) -> EmbodimentContext:
    """W0 plus a difference, given as one vector."""
    prior = model.prior().clone()
    pieces = moved.to(prior.tensors[0].device).split([t.numel() for t in prior.tensors])
    return prior.with_tensors([w + d.view_as(w) for w, d in zip(prior.tensors, pieces, strict=True)])


@torch.no_grad()
def encoder_inputs(policy: Policy, transitions: Transition) -> Float[Tensor, "N D"]:
    """What the encoder reads of each transition: features of both moments, state, actions, and which numbers are
    padding."""
    observation, actions = transitions.observation, transitions.actions
    if transitions.next_features is None or observation.image_features is None:
        raise ValueError("the encoder reads transitions of play, with features of both of their moments")
    now = policy.model.next_features(observation.image_features)
    masks = [torch.ones_like(observation.state) if observation.state_mask is None else observation.state_mask]
    masks.append(actions.loss_mask()[:, 0])
    parts = [now, transitions.next_features, observation.state, actions.values, *masks]
    return torch.cat([part.float().flatten(1) for part in parts], dim=1)


# ---- the file ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TrainedEncoder:
    """An encoder, the model that it belongs to, and how it was trained."""

    network: PlayEncoder
    fingerprint: str
    """Of the model whose contexts it gives."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings and losses, as JSON values."""

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        info = {"fingerprint": self.fingerprint, "sizes": self.network.sizes, "training": dict(self.training)}
        metadata = {"format": FORMAT, "info": json.dumps(info, allow_nan=False)}
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.network.state_dict().items()}
        write_atomically(path, lambda partial: save_file(tensors, partial, metadata))
        return path

    @classmethod
    def load(cls, path: str | Path, *, fingerprint: str | None = None) -> Self:
        """Reads such a file; with `fingerprint`, refuses one that was trained for another model.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not an encoder, damaged, or of another model.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no encoder at {path}; `selfalign bench encoder --out {path}` trains one")
        try:
            with safe_open(path, framework="pt") as file:
                metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); train the encoder again") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not an encoder: its format is {metadata.get('format')!r}, not {FORMAT!r}")
        info = json.loads(metadata["info"])
        if fingerprint is not None and info["fingerprint"] != fingerprint:
            raise ValueError(
                f"{path} was trained for model {info['fingerprint']}, but this model is {fingerprint}: train one for it"
            )
        network = PlayEncoder(**info["sizes"], **{name: tensors[name] for name in ("mean", "basis", "scale")})
        network.load_state_dict(tensors)
        return cls(network.eval().requires_grad_(False), info["fingerprint"], info["training"])

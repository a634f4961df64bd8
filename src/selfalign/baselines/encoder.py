"""A network that reads a context out of play, and its file.

    z = head(mean over transitions of embed(o_t, a_{t:t+H}, o_{t+H}))        W = W0 + D z + d

Shapes: N transitions, I numbers of each, K numbers of z, C numbers of a context.
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

FORMAT = "selfalign-encoder-2"


class Products(nn.Module):
    """Products of pairs of linear combinations. Their means over transitions are moments, of actions with what came of
    them for one, and these are what tells of a body."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.left, self.right = nn.Linear(inputs, width), nn.Linear(inputs, width)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B D"]:
        return self.left(x) * self.right(x)


class PlayEncoder(nn.Module):
    """A set network from transitions of play to W - W0, which is zero before it is trained.

    Args:
        inputs: I, numbers of a transition.
        width: hidden units.
        rank: K, numbers that it says of a body.
        size: C, numbers of a context.
    """

    def __init__(self, inputs: int, width: int, rank: int, size: int):
        super().__init__()
        self.sizes = {"inputs": inputs, "width": width, "rank": rank, "size": size}
        self.embed = nn.Sequential(Products(inputs, width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, rank))
        self.decode = nn.Linear(rank, size)
        nn.init.zeros_(self.decode.weight)
        nn.init.zeros_(self.decode.bias)

    def forward(self, transitions: Float[Tensor, "*B N I"]) -> Float[Tensor, "*B C"]:
        """W - W0; the order of transitions means nothing."""
        return self.decode(self.head(self.embed(transitions).mean(-2)))


def moved_prior(model: VLA, moved: Float[Tensor, "*B C"]) -> EmbodimentContext:
    """W0 plus a difference, given as one vector; a batched context from several. Gradients reach the difference."""
    prior = model.prior().detach()
    pieces = moved.to(prior.tensors[0].device).split([t.numel() for t in prior.tensors], dim=-1)
    return prior.with_tensors([w + d.unflatten(-1, w.shape) for w, d in zip(prior.tensors, pieces, strict=True)])


@torch.no_grad()
def encoder_inputs(policy: Policy, transitions: Transition) -> Float[Tensor, "N I"]:
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

    @torch.no_grad()
    def context(self, policy: Policy, transitions: Float[Tensor, "N I"]) -> EmbodimentContext:
        """The context that it reads out of one body's transitions."""
        return moved_prior(policy.model, self.network.to(policy.device)(transitions))

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
            found = metadata.get("format")
            raise ValueError(
                f"{path} is no encoder of this version: its format is {found!r}, not {FORMAT!r}; "
                f"`selfalign bench encoder --out {path}` trains one"
            )
        info = json.loads(metadata["info"])
        if fingerprint is not None and info["fingerprint"] != fingerprint:
            raise ValueError(
                f"{path} was trained for model {info['fingerprint']}, but this model is {fingerprint}: train one for it"
            )
        network = PlayEncoder(**info["sizes"])
        network.load_state_dict(tensors)
        return cls(network.eval().requires_grad_(False), info["fingerprint"], info["training"])

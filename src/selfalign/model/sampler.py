"""`sample_actions` for serving: compiled, and on a CUDA device replayed as one graph. The actions are the same.

    sampler = Sampler(model)
    actions = sampler(observation, context)          # the first call of a shape compiles: minutes for a full-size model

Compiled code and graphs are for fixed shapes. What varies between requests is therefore brought to few shapes: prompts
are padded to a multiple of `prompt_multiple`, so the prefix cache has a fixed size, and cameras that nobody has are
left out. Each combination of batch size, cameras, prompt length and context (one, or one per sample) is a program of
its own. In a graph, the cache and all else between the inputs and the actions have fixed places in the device's memory.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import VLA
from selfalign.types import Observation


@dataclass(frozen=True)
class SamplerConfig:
    """How actions are sampled."""

    num_steps: int = 10
    compile: bool = True
    """Compile the prefix and the velocity of one denoising step."""
    graph: bool = True
    """On a CUDA device, capture tower, prefix and all denoising steps as one graph; elsewhere it means nothing."""
    prompt_multiple: int = 16
    """Prompts are padded to a multiple of this; more saves programs, less saves work."""


class Sampler:
    """Samples actions of one model. Not for several threads at once: a graph has one set of inputs.

    torch keeps eight compiled shapes of a function; shapes beyond run uncompiled.

    Raises:
        ValueError: the model's inner loop is on, which reads masks on the host, and a graph is asked for.
    """

    def __init__(self, model: VLA, config: SamplerConfig = SamplerConfig()):
        if config.graph and model.config.ttt.meta_learning:
            raise ValueError("the inner loop reads masks on the host, so it cannot be in a graph: give graph=False")
        self.model, self.config = model, config
        self._prefix, self._velocity = model.whole_prefix, model.action_velocity
        if config.compile:
            self._prefix = torch.compile(model.whole_prefix, dynamic=False)
            self._velocity = torch.compile(model.action_velocity, dynamic=False)
        self._graphs: dict[Hashable, Graph] = {}

    @torch.no_grad()
    def __call__(
        self,
        observation: Observation,
        context: EmbodimentContext | None = None,
        *,
        noise: Float[Tensor, "B H A"] | None = None,
    ) -> Float[Tensor, "B H A"]:
        """Normalised actions, as `model.sample_actions` gives them."""
        context = (self.model.prior() if context is None else context).detach()
        noise = self.model.draw_noise(observation) if noise is None else noise
        cameras = self.model.live_cameras(observation)
        observation = self._fixed(observation, cameras)
        if not (self.config.graph and noise.is_cuda):
            return self._sample(cameras, observation, context, noise)

        tensors = [*_tensors(observation), *context.tensors, noise]
        key = (cameras, *((t.shape, t.dtype) for t in tensors))
        if key not in self._graphs:
            self._graphs[key] = Graph(partial(self._from_tensors, cameras, observation, context), tensors)
        return self._graphs[key](tensors)

    def _sample(
        self, cameras: tuple[str, ...], observation: Observation, context: EmbodimentContext, noise: Tensor
    ) -> Tensor:
        prefix = self._prefix(observation, cameras)
        return self.model.denoise(
            observation.state, prefix, context, noise, self.config.num_steps, velocity=self._velocity
        )

    def _from_tensors(
        self, cameras: tuple[str, ...], like: Observation, context: EmbodimentContext, tensors: list[Tensor]
    ) -> Tensor:
        """`_sample` of `_tensors(observation)`, the context's tensors and the noise; all else is as in the examples."""
        rest = iter(tensors)
        observation = like.map(lambda _: next(rest))
        context = context.with_tensors([next(rest) for _ in context.tensors])
        return self._sample(cameras, observation, context, next(rest))

    def _fixed(self, observation: Observation, cameras: tuple[str, ...]) -> Observation:
        """What the model reads, with the prompt padded to a length that few observations differ in."""
        trimmed = observation.trimmed()
        length, most = trimmed.tokens.shape[1], max(self.model.config.max_token_len, trimmed.tokens.shape[1])
        rounded = -(-max(length, 1) // self.config.prompt_multiple) * self.config.prompt_multiple
        pad = (0, min(rounded, most) - length)
        features = observation.image_features or {}
        return Observation(
            images={camera: observation.images[camera] for camera in cameras if camera not in features},
            image_masks={camera: observation.image_masks[camera] for camera in cameras},
            state=observation.state,
            tokens=F.pad(trimmed.tokens, pad),
            token_mask=F.pad(trimmed.token_mask, pad),
            image_features={camera: features[camera] for camera in cameras if camera in features},
        )


class Graph:
    """A function of tensors, recorded on a CUDA device for the shapes of `inputs` and replayed from then on.

    A replay copies its inputs to fixed places, runs all kernels with one launch, and returns a copy of the result.
    """

    def __init__(self, function: Callable[[list[Tensor]], Tensor], inputs: list[Tensor]):
        self._inputs = [t.clone() for t in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compiles, and lets libraries take their workspaces
                function(self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Only what this thread does is refused while it records: a server's other threads go on using the device.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = function(self._inputs)

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return self._output.clone()


def _tensors(observation: Observation) -> list[Tensor]:
    """The observation's tensors in the order in which `map` visits them."""
    tensors: list[Tensor] = []
    observation.map(lambda tensor: tensors.append(tensor) or tensor)
    return tensors

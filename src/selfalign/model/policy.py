"""START HERE: the vision-language-action model. `losses` and `sample_actions` are the whole of it.

    prefix  = VLM(image tokens, prompt)                               computed once, independent of W
    actions = action expert(state, noisy actions | prefix, W)
    L_align = alignment expert(perception, dynamics, inverse | prefix, W)

The model knows normalised tensors only; `selfalign.Policy` adds robots, units and statistics.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfalign.model import flow, masks
from selfalign.model.alignment import AlignmentInputs, AlignmentLayout, AlignmentSuffix
from selfalign.model.augment import Augment
from selfalign.model.config import VLAConfig, fingerprint
from selfalign.model.context import ContextInfo, EmbodimentContext
from selfalign.model.contexts import make_contexts
from selfalign.model.layers import TIME_COMPONENTS, AdaRMSTime, TimeComponent, Timed
from selfalign.model.losses import ACTION, ALIGNMENT, BOTH, FlowNoise, Losses, LossWeights, masked_mse
from selfalign.model.prefix import PrefixCache
from selfalign.model.streams import Condition, Mixture, StreamModulation
from selfalign.model.tensorfile import StoredTensor
from selfalign.model.ttt import TTTLayer
from selfalign.types import Observation, Transition


@dataclass(frozen=True)
class Shortcuts:
    """Work that the model leaves out because nothing reads it, or does once instead of many times.

    Outputs are the same but for rounding; each can be turned off, to compare. They belong to the run and not to the
    config: `model.shortcuts = Shortcuts(trim_prompt=False)`. (That all steps and experts read one prefix has a plain
    twin too: `Mixture.joint`.)
    """

    drop_masked_cameras: bool = True
    """A camera that no sample of the batch has enters neither the vision tower nor the prefix."""
    one_tower_batch: bool = True
    """The vision tower sees all cameras in one batch."""
    trim_prompt: bool = True
    """Prompts are cut to the batch's longest."""
    last_layer_keys_only: bool = True
    """The last VLM layer computes keys and values only."""
    modulate_ahead: bool = True
    """While sampling, adaRMS norms are modulated for all denoising steps at once: one matmul a norm."""

    @classmethod
    def none(cls) -> "Shortcuts":
        """The plain twin."""
        return cls(**dict.fromkeys((f.name for f in fields(cls)), False))


class VLA(nn.Module):
    """A pi0-style policy with an alignment expert and shared TTT layers."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: VLAConfig):
        super().__init__()
        self.config, self.shortcuts = config, Shortcuts()
        self.vision = config.vision.build()
        self.image_proj = self.vision.connector(config.vlm.width)
        self.augment: Augment | None = None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.vlm.width)
        nn.init.normal_(self.embed_tokens.weight, std=config.vlm.width**-0.5)

        streams = {ACTION: config.action} | ({} if config.alignment is None else {ALIGNMENT: config.alignment})
        times = {name: TIME_COMPONENTS[config.time](stream.width) for name, stream in streams.items()}
        self.time = cast(Mapping[str, TimeComponent], nn.ModuleDict(times))
        experts = {name: (stream, times[name].cond_dim) for name, stream in streams.items()}
        depths = config.ttt.depths(config.vlm.depth)
        self._check_ttt_widths(depths)
        ttt = {depth: TTTLayer(config.action.width, config.ttt, times[ACTION].cond_dim) for depth in depths}
        self.mixture = Mixture(config.vlm, experts, ttt, config.prompt_tokens)
        self.ttt_layers = [ttt[depth] for depth in sorted(ttt)]
        self.contexts = make_contexts(self.prior(), config.ttt.span)

        self.state_in = nn.Linear(config.state_dim, config.action.width) if config.state_token else None
        self.action_in = nn.Linear(config.action_dim, config.action.width)
        self.action_out = nn.Linear(config.action.width, config.action_dim)
        next_tokens, feature_dim = self.next_shape
        next_tokens *= len(config.cameras)
        self.layout = AlignmentLayout(config.action_horizon, next_tokens, config.open_perception)
        if config.alignment is not None:
            self.alignment = AlignmentSuffix(
                config.alignment.width, self.layout, config.state_dim, config.action_dim, feature_dim
            )
        heads = config.vlm.depth - 1 if config.grounding else 0
        self.grounding = nn.ModuleList(nn.Linear(config.vlm.width, 2) for _ in range(heads))
        self.register_buffer("feature_mean", torch.zeros(next_tokens, feature_dim))
        self.register_buffer("feature_std", torch.ones(next_tokens, feature_dim))

    # ---- inputs ----------------------------------------------------------------------------------------------------

    def prefix(self, observation: Observation, *, with_hidden: bool = False) -> PrefixCache:
        """Keys and values of images and prompt, reused by all experts, denoising steps and alignment steps.

        Masks are read on the host, to leave out what is padding in all samples. With `with_hidden` the prompt keeps the
        observation's length, so that its tokens can be told from the images'.
        """
        if self.shortcuts.trim_prompt and not with_hidden:
            observation = observation.trimmed()
        return self.whole_prefix(observation, self.live_cameras(observation), with_hidden=with_hidden)

    def whole_prefix(
        self, observation: Observation, cameras: Sequence[str] | None = None, *, with_hidden: bool = False
    ) -> PrefixCache:
        """The prefix of these cameras (None: all) and the whole prompt; nothing is read on the host."""
        tokens, mask = self.embed_prefix(observation, cameras)
        whole = not self.shortcuts.last_layer_keys_only
        return self.mixture.prefix(tokens, mask, with_hidden=with_hidden, whole_last_layer=whole)

    def live_cameras(self, observation: Observation) -> tuple[str, ...]:
        """The cameras that some sample of the batch has, in the config's order. Masks are read on the host."""
        cameras = self.config.cameras
        if not self.shortcuts.drop_masked_cameras:
            return cameras
        live = torch.stack([self._camera_mask(observation, camera).any() for camera in cameras]).tolist()
        return tuple(camera for camera, seen in zip(cameras, live, strict=True) if seen)

    def embed_prefix(
        self, observation: Observation, cameras: Sequence[str] | None = None
    ) -> tuple[Float[Tensor, "B P D"], Bool[Tensor, "B P"]]:
        """Tokens of the cameras (None: all of the config, in its order), then of the prompt; and which are valid.

        As in openpi's PyTorch model, words are scaled by sqrt(width) and images are not.
        """
        embeddings, valid = [], []
        cameras = self.config.cameras if cameras is None else cameras
        for camera, seen in self._tower_tokens(observation, cameras).items():
            tokens = self.image_proj(seen.to(next(self.image_proj.parameters()).dtype))
            embeddings.append(tokens)
            valid.append(self._camera_mask(observation, camera)[:, None].expand(-1, tokens.shape[1]))
        embeddings.append(self.embed_tokens(observation.tokens) * self.config.vlm.width**0.5)
        valid.append(observation.token_mask)
        return torch.cat(embeddings, dim=1), torch.cat(valid, dim=1)

    def image_features(self, images: Mapping[str, Float[Tensor, "B 3 S S"]]) -> dict[str, Float[Tensor, "B N D"]]:
        """The frozen tower's tokens, in the form that `Observation.image_features` takes."""
        with torch.no_grad():
            return {camera: self.vision(images[camera]) for camera in self.config.cameras}

    @property
    def next_shape(self) -> tuple[int, int]:
        """Tokens that tell of the next observation of one camera, and their numbers."""
        side = self.config.next_pixels
        return (1, 3 * side * side) if side else self.vision.summary_shape

    def summaries(self, seen: Mapping[str, Tensor]) -> Float[Tensor, "B n F"]:
        """What tells of an observation, camera after camera, not normalised.

        Args:
            seen: of each camera the tower's tokens `[B, N, D]`; with `next_pixels`, pictures `[B, 3, S, S]`.
        """
        side, cameras = self.config.next_pixels, self.config.cameras
        if side:
            return torch.cat([F.adaptive_avg_pool2d(seen[c], side).flatten(1)[:, None] for c in cameras], dim=1)
        return torch.cat([self.vision.summary(seen[c]) for c in cameras], dim=1)

    def next_features(self, seen: Mapping[str, Tensor]) -> Float[Tensor, "B n F"]:
        """Targets of dynamics: `summaries` of the next observation, normalised with the stored statistics."""
        return (self.summaries(seen) - self.feature_mean) / self.feature_std

    def prior(self) -> EmbodimentContext:
        """W0, from which every alignment starts: the model's own parameters, so gradients reach them."""
        w1, b1 = tuple(t.W1 for t in self.ttt_layers), tuple(t.b1 for t in self.ttt_layers)
        return EmbodimentContext(w1, b1, ContextInfo(embodiment="prior"))

    # ---- training --------------------------------------------------------------------------------------------------

    def losses(
        self,
        batch: Transition,
        context: EmbodimentContext | None = None,
        *,
        noise: FlowNoise | None = None,
        time: Float[Tensor, " B"] | None = None,
        prefix: PrefixCache | None = None,
        parts: Collection[str] = BOTH,
        weights: LossWeights = LossWeights(),
        reduction: str = "mean",
    ) -> Losses:
        """Flow-matching losses of the experts named in `parts`, with one flow time per sample for all of them.

        Args:
            context: the embodiment context(s); None reads the prior W0.
            prefix: the cache of `self.prefix(batch.observation)` where it is at hand.
            reduction: "mean" over the batch, or "none" for one number per sample `[B]`.
        """
        context = self.prior() if context is None else context
        noise = FlowNoise.like(batch) if noise is None else noise
        time = flow.sample_time(batch.observation.batch_size, device=noise.actions.device) if time is None else time
        ground = ACTION in parts and batch.referent is not None and len(self.grounding) > 0
        prefix = self.prefix(batch.observation, with_hidden=ground) if prefix is None else prefix
        values: dict[str, Tensor] = {}
        if ACTION in parts:
            values[ACTION] = self._action_loss(batch, context, noise, time, prefix)
        if ground and prefix.hidden:
            values["grounding"] = self._grounding_loss(batch, prefix)
        if ALIGNMENT in parts:
            values |= self._alignment_losses(batch, context, noise, time, prefix)
        total = sum((getattr(weights, name) * value for name, value in values.items()), start=torch.zeros_like(time))
        values = {"total": total, **values}
        return Losses(**(values if reduction == "none" else {name: value.mean() for name, value in values.items()}))

    def _action_loss(self, batch, context, noise: FlowNoise, time, prefix) -> Float[Tensor, " B"]:
        clean = batch.actions.values
        predicted = self.action_velocity(
            batch.observation.state, flow.interpolate(clean, noise.actions, time), time, prefix, context
        )
        return masked_mse(predicted, flow.velocity(clean, noise.actions), batch.actions.loss_mask())

    def _grounding_loss(self, batch, prefix: PrefixCache) -> Float[Tensor, " B"]:
        """Squared error of pointing at what the prompt names, read from the prompt's tokens after each layer.

        A pretrained VLM arrives with this skill; one that starts from nothing learns it late from actions alone.
        """
        words = batch.observation.token_mask.to(batch.referent.dtype)[..., None]
        total = torch.zeros(len(words), device=words.device)
        for head, hidden in zip(self.grounding, prefix.hidden, strict=True):
            pooled = (hidden[:, -words.shape[1] :].to(words.dtype) * words).sum(1) / words.sum(1)
            total = total + (head(pooled) - batch.referent).square().sum(-1)
        return total / len(prefix.hidden)

    def _alignment_losses(self, batch, context, noise: FlowNoise, time, prefix) -> dict[str, Float[Tensor, " B"]]:
        if self.config.alignment is None or batch.next_features is None or noise.next_features is None:
            raise ValueError("alignment losses need an alignment expert, and next_features in the batch and the noise")
        state, actions, following = batch.observation.state, batch.actions.values, batch.next_features
        inputs = AlignmentInputs(
            noisy_state=flow.interpolate(state, noise.state, time),
            actions=actions,
            noisy_next=flow.interpolate(following, noise.next_features, time),
            next_features=following,
            noisy_actions=flow.interpolate(actions, noise.actions, time),
        )
        timed = self.time[ALIGNMENT](self.alignment.embed(inputs), time)
        mask = self.layout.mask(timed.tokens.device)
        out = self.mixture.suffix(ALIGNMENT, timed.tokens, timed.cond, mask, prefix, context, with_ttt_loss=True)
        predicted = self.alignment.velocities(out.tokens)

        full = torch.ones_like(time) if batch.next_mask is None else batch.next_mask.to(time.dtype)
        state_mask = torch.ones_like(state) if batch.observation.state_mask is None else batch.observation.state_mask
        following_mask = full[:, None, None].expand_as(following)
        action_mask = batch.actions.loss_mask() * full[:, None, None]
        return {
            "perception": masked_mse(predicted.state, flow.velocity(state, noise.state), state_mask),
            "dynamics": masked_mse(
                predicted.next_features, flow.velocity(following, noise.next_features), following_mask
            ),
            "inverse": masked_mse(predicted.actions, flow.velocity(actions, noise.actions), action_mask),
            "ttt": sum(out.ttt_losses.values(), start=torch.zeros_like(time)),
        }

    # ---- acting ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample_actions(
        self,
        observation: Observation,
        context: EmbodimentContext | None = None,
        *,
        noise: Float[Tensor, "B H A"] | None = None,
        num_steps: int = 10,
        prefix: PrefixCache | None = None,
    ) -> Float[Tensor, "B H A"]:
        """Normalised actions by Euler integration from `noise` (drawn where None)."""
        context = self.prior() if context is None else context
        prefix = self.prefix(observation) if prefix is None else prefix
        noise = self.draw_noise(observation) if noise is None else noise
        return self.denoise(observation.state, prefix, context, noise, num_steps)

    def draw_noise(self, observation: Observation) -> Float[Tensor, "B H A"]:
        """Where sampling starts."""
        shape = (observation.batch_size, self.config.action_horizon, self.config.action_dim)
        return torch.randn(shape, device=observation.state.device, dtype=observation.state.dtype)

    def denoise(
        self,
        state: Float[Tensor, "B S"],
        prefix: PrefixCache,
        context: EmbodimentContext | None,
        noise: Float[Tensor, "B H A"],
        num_steps: int,
        velocity: Callable[..., Tensor] | None = None,
    ) -> Float[Tensor, "B H A"]:
        """Euler integration on a prefix. `velocity`: `action_velocity`, compiled for example."""
        velocity = self.action_velocity if velocity is None else velocity
        conds = iter(self.conditions(num_steps, noise.device))
        return flow.integrate(lambda x, time: velocity(state, x, time, prefix, context, next(conds)), noise, num_steps)

    def conditions(self, num_steps: int, device: torch.device) -> Sequence[StreamModulation | None]:
        """What the action expert's norms take from flow time at each denoising step; None: not known ahead."""
        time = self.time[ACTION]
        if time.cond_dim is None or not self.shortcuts.modulate_ahead:
            return [None] * num_steps
        conds = cast(AdaRMSTime, time).condition(flow.euler_times(num_steps, device=device))
        return self.mixture.experts[ACTION].modulations(conds[:, None])

    def action_velocity(
        self,
        state: Float[Tensor, "B S"],
        noisy_actions: Float[Tensor, "B H A"],
        time: Float[Tensor, " B"],
        prefix: PrefixCache,
        context: EmbodimentContext | None,
        cond: Condition = None,
    ) -> Float[Tensor, "B H A"]:
        """The action expert's velocity v_t at x_t = `noisy_actions`; a sampler integrates it, the loss compares it.

        Args:
            cond: what `conditions` has made of `time`, where that is at hand.
        """
        tokens, cond = self.embed_actions(state, noisy_actions, time, cond)
        out = self.mixture.suffix(ACTION, tokens, cond, self.action_mask(tokens), prefix, context)
        return self.action_out(out.tokens[:, -noisy_actions.shape[1] :])

    def embed_actions(
        self,
        state: Float[Tensor, "B S"],
        noisy_actions: Float[Tensor, "B H A"],
        time: Float[Tensor, " B"],
        cond: Condition = None,
    ) -> Timed:
        """The action suffix `[B, T, D]`, state token (where there is one) and actions, with its time condition."""
        timed = self.time[ACTION](self.action_in(noisy_actions), time, cond)
        if self.state_in is None:
            return timed
        return Timed(torch.cat([self.state_in(state)[:, None], timed.tokens], dim=1), timed.cond)

    def action_mask(self, tokens: Float[Tensor, "B T D"]) -> Bool[Tensor, "T T"]:
        """Who sees whom in the action suffix (openpi's ar mask): actions see all of it, the state token itself only."""
        starts = torch.zeros(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        starts[: 1 + self.config.state_token] = True
        return masks.block_mask(starts)

    # ---- identity --------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """A hash of config and weights: a context belongs to exactly one."""
        return fingerprint(self.config, {n: StoredTensor.of(tensor) for n, tensor in self.state_dict().items()})

    def _tower_tokens(self, observation: Observation, cameras: Sequence[str]) -> dict[str, Tensor]:
        """The tower's tokens of each camera: as they are given, or of its pixels."""
        tokens: dict[str, Tensor] = {c: t for c, t in (observation.image_features or {}).items() if c in cameras}
        images = {camera: self._pixels(observation, camera) for camera in cameras if camera not in tokens}
        if self.shortcuts.one_tower_batch and len(images) > 1:
            seen = self.vision(torch.cat(list(images.values()))).split(observation.batch_size)
            tokens |= dict(zip(images, seen, strict=True))
        else:
            tokens |= {camera: self.vision(pixels) for camera, pixels in images.items()}
        return {camera: tokens[camera] for camera in cameras}

    def _camera_mask(self, observation: Observation, camera: str) -> Bool[Tensor, " B"]:
        if camera not in observation.image_masks:
            raise ValueError(
                f"the model reads camera {camera!r}; the observation has masks of {sorted(observation.image_masks)}. "
                "Mask a camera that is not there with False"
            )
        return observation.image_masks[camera]

    def _pixels(self, observation: Observation, camera: str) -> Tensor:
        if camera not in observation.images:
            raise ValueError(f"the model reads camera {camera!r}; the observation has {sorted(observation.images)}")
        images = observation.images[camera]
        return images if self.augment is None else self.augment(images, camera)

    def _check_ttt_widths(self, depths: tuple[int, ...]) -> None:
        alignment, action = self.config.alignment, self.config.action
        if depths and alignment is not None and alignment.width != action.width:
            raise ValueError(
                "TTT layers are shared, so the experts need one width; "
                f"got action {action.width}, alignment {alignment.width}"
            )

"""Flow matching as pure functions (arXiv 2210.02747, in the time convention of `selfalign.types`)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def sample_time(batch_size: int, *, generator: torch.Generator | None = None, device=None) -> Float[Tensor, " B"]:
    """Flow times `t ~ 0.999 * Beta(1.5, 1) + 0.001` (pi0, arXiv 2410.24164, appendix B).

    Beta(a, 1) has the distribution function t^a, so it is sampled by inverting that: t = u^(1/a).
    """
    uniform = torch.rand(batch_size, generator=generator, device=device)
    return 0.999 * uniform.pow(1 / 1.5) + 0.001


def interpolate(clean: Tensor, noise: Tensor, time: Float[Tensor, " B"]) -> Tensor:
    """`x_t = t * noise + (1 - t) * x` with one time per sample."""
    t = _per_sample(time, clean)
    return t * noise + (1 - t) * clean


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """The target of flow matching, `u = noise - x`."""
    return noise - clean


def euler_times(num_steps: int, *, device: torch.device | str | None = None) -> Float[Tensor, " N"]:
    """The flow times at which Euler integration asks for the velocity: 1, 1 - 1/N, ..., 1/N.

    They are summed up in float32, as openpi does: the fastest sine of the time embedding shows the rounding.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    times = [torch.ones((), device=device)]
    for _ in range(num_steps - 1):
        times.append(times[-1] - 1.0 / num_steps)
    return torch.stack(times)


def integrate(
    field: Callable[[Tensor, Float[Tensor, " B"]], Tensor], noise: Float[Tensor, "B ..."], num_steps: int
) -> Float[Tensor, "B ..."]:
    """Euler integration of `dx/dt = field(x, t)` from pure noise (t = 1) to data (t = 0) in `num_steps` steps."""
    x, step = noise, -1.0 / num_steps
    for time in euler_times(num_steps, device=x.device):
        x = x + step * field(x, time.expand(len(x)))
    return x


def _per_sample(time: Tensor, like: Tensor) -> Tensor:
    return time.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))

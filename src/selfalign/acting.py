"""How a policy's samples become motion: the speed and the temperature that a checkpoint acts with.

A sample of the flow starts at noise eps and ends at normalised actions x(eps). What a robot gets is

    a = unnormalise(x(temperature * eps)),   displacements among its numbers multiplied by speed

At (1, 1) that is the policy as it was trained. Less temperature gives samples nearer to what is likely, and more speed
makes up for a policy that is slower than its demonstrations, or for play that was slow, in whose spread actions are
told. Both are chosen on validation bodies (`selfalign bench acting`), and the checkpoint carries them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class Acting:
    """How samples become motion.

    Raises:
        ValueError: a speed that is not positive, or a temperature below 0.
    """

    speed: float = 1.0
    """What displacements are multiplied by. Numbers of an action that are places stay as they are, so do grippers, and
    everything where statistics do not say which are which (`NormStats.displacements`)."""
    temperature: float = 1.0
    """What the noise that samples start from is multiplied by; 0: always the same sample."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError(f"the speed of acting must be positive, got {self.speed}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"the temperature of acting must be 0 or more, got {self.temperature}")

    def __str__(self) -> str:
        return f"speed {self.speed:g}, temperature {self.temperature:g}"

    def but(self, speed: float | None = None, temperature: float | None = None) -> Self:
        """The same with what is given."""
        return replace(
            self,
            speed=self.speed if speed is None else speed,
            temperature=self.temperature if temperature is None else temperature,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError: other keys, or values that are out of range.
        """
        if not isinstance(data, Mapping) or set(data) != {"speed", "temperature"}:
            raise ValueError(f"acting has a speed and a temperature, got {data!r}")
        return cls(float(data["speed"]), float(data["temperature"]))

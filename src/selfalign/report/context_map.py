"""Contexts in two dimensions: the directions in which they differ most."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from selfalign.model.context import EmbodimentContext
from selfalign.sim.bodies import BodySpec

FORMAT = "selfalign-context-map-1"


@dataclass(frozen=True, eq=False)
class ContextMap:
    """N contexts as points."""

    points: Float[np.ndarray, "N 2"]
    shares: tuple[float, float]
    """Of the variance that each direction explains."""
    bodies: Sequence[BodySpec | None]
    """Whose contexts they are; None where nothing is known."""

    @classmethod
    def of(cls, contexts: Sequence[EmbodimentContext], known: Mapping[str, BodySpec]) -> Self:
        """Of contexts, whose bodies are looked up by their names.

        Raises:
            ValueError: contexts of different models.
        """
        points, shares = principal_components(contexts)
        return cls(points, shares, [known.get(context.info.embodiment) for context in contexts])

    @classmethod
    def read(cls, path: Path) -> Self:
        """From the JSON file that `benchmarks/context_map.py` writes.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it holds no map.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}")
            bodies = [BodySpec.from_dict(told["body"]) for told in data["contexts"]]
            return cls(np.array([told["point"] for told in data["contexts"]]), tuple(data["shares"]), bodies)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no map of contexts ({FORMAT}): {error!r}") from error

    def to_dict(self) -> dict[str, Any]:
        """JSON values; points to four places."""
        told = [
            {"name": body.name, "point": point.round(4).tolist(), "body": body.to_dict()}
            for body, point in zip(self.bodies, self.points, strict=True)
            if body is not None
        ]
        return {"shares": list(self.shares), "contexts": told}


def principal_components(contexts: Sequence[EmbodimentContext]) -> tuple[np.ndarray, tuple[float, float]]:
    """Contexts in the two directions in which they differ most `[N, 2]`, and each one's share of the variance.

    Raises:
        ValueError: contexts of different models.
    """
    models = {(context.info.fingerprint, len(context.embedding())) for context in contexts}
    if len(models) > 1:
        raise ValueError(f"a map needs contexts of one model, got {sorted(name for name, _ in models)}")
    vectors = np.stack([context.embedding().detach().double().numpy() for context in contexts])
    centred = vectors - vectors.mean(axis=0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    variance = lengths**2
    total = variance.sum() or 1.0
    return left[:, :2] * lengths[:2], (float(variance[0] / total), float(variance[1] / total))

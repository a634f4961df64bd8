"""Where a small fit is that may be interrupted: one file holds it whole. (Trainings have `train.checkpoint`.)"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfalign.model.files import write_atomically

FORMAT = "selfalign-bookmark-1"


@dataclass(frozen=True)
class Bookmark:
    """A file from which a fit that was interrupted goes on, as if it had never stopped."""

    path: Path
    about: Mapping[str, Any]
    """What it is a fit of, as JSON values; that of another one is refused."""

    def write(self, state: Mapping[str, Any]) -> None:
        """Writes where the fit is, atomically: plain values and tensors."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        payload = {"format": FORMAT, "about": json.dumps(self.about, sort_keys=True), "state": dict(state)}
        write_atomically(self.path, lambda partial: torch.save(payload, partial))

    def read(self) -> dict[str, Any] | None:
        """Where it was; None: it has not begun.

        Raises:
            ValueError: a damaged file, or one of another fit.
        """
        if not self.path.is_file():
            return None
        remedy = f"remove {self.path} to begin anew"
        try:
            payload = torch.load(self.path, map_location="cpu", weights_only=True)
            found, then, state = payload["format"], payload["about"], payload["state"]
        except Exception as error:  # torch raises many kinds for a damaged archive
            raise ValueError(f"{self.path} is damaged or no unfinished fit ({error}); {remedy}") from error
        if (found, then) != (FORMAT, json.dumps(self.about, sort_keys=True)):
            raise ValueError(f"{self.path} is of another fit ({then}); give its settings and data again, or {remedy}")
        return state

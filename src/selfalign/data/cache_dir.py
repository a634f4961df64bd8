"""Where things are kept that can be made again."""

import os
from pathlib import Path


def cache_dir(kind: str) -> Path:
    """`$SELFALIGN_CACHE/<kind>`, or the same below the user's cache folder."""
    home = os.environ.get("SELFALIGN_CACHE")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "selfalign"
    return base / kind

"""Where things are kept that can be made again."""

import os
import sys
from pathlib import Path


def cache_dir(kind: str) -> Path:
    """`$SELFALIGN_CACHE/<kind>`, or the same below the platform's cache folder."""
    if override := os.environ.get("SELFALIGN_CACHE"):
        return Path(override).expanduser() / kind
    return _platform_caches() / "selfalign" / kind


def _platform_caches() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))

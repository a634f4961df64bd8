"""The settings that `selfalign bench tune` has chosen on validation bodies: `choices.json`, which the methods read.

A method that is not in it has the defaults of its config.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from selfalign.provenance import write_json

FORMAT = "selfalign-choices-1"
CHOICES = Path(__file__).with_name("choices.json")
"""What is committed."""


def read_choices(path: Path = CHOICES) -> dict[str, dict[str, Any]]:
    """By method: `settings` that were chosen, how many `trials` there were, and where they are from.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of choices.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} holds no choices of `selfalign bench tune`: its format is not {FORMAT}")
    return data["methods"]


def add_choice(result: Mapping[str, Any], path: Path = CHOICES) -> dict[str, Any]:
    """Writes down the best trial of a tuning, in the place of an older choice for its method; returns the entry.

    Args:
        result: of `baselines.tune.tune`.
        path: the file, made where it is not there.

    Raises:
        ValueError: no trial was finite, or the file is no file of choices.
    """
    if result["best"] is None:
        raise ValueError(f"no trial of {result['method']} has a finite score: there is nothing to choose")
    best = result["trials"][result["best"]]
    entry = {
        "settings": {name: setting(best["config"], name) for name in result["search"]},
        "score": best["score"],
        "default_score": result["trials"][0]["score"],
        "trials": len(result["trials"]),
        **{name: result[name] for name in ("seed", "bodies", "fingerprint")},
    }
    methods = read_choices(path) if path.is_file() else {}
    write_json(path, {"format": FORMAT, "methods": dict(sorted({**methods, result["method"]: entry}.items()))})
    _committed.cache_clear()
    return entry


def setting(config: Mapping[str, Any], name: str) -> Any:
    """A setting by its name, which has dots where it is one of a config within the config."""
    for part in name.split("."):
        config = config[part]
    return config


@lru_cache(maxsize=1)
def _committed() -> dict[str, dict[str, Any]]:
    return read_choices()


def chosen(name: str) -> dict[str, Any]:
    """The committed settings of a method; none where it was not tuned."""
    return dict(_committed()[name]["settings"]) if name in _committed() else {}


def tuned_for(method: str, settings: Mapping[str, Any]) -> str | None:
    """The fingerprint of the model for which settings were tuned, where they are the committed ones of a method."""
    entry = _committed().get(method)
    if entry is None or any(settings.get(name) != value for name, value in entry["settings"].items()):
        return None
    return entry.get("fingerprint")


def check_fair(names: Sequence[str], choices: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Raises `ValueError` where methods that are to be compared were tuned with different numbers of trials, some of
    them with none, or for another model or on other bodies."""
    known = _committed() if choices is None else choices
    trials = {name: known[name]["trials"] if name in known else 0 for name in names}
    if len(set(trials.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in trials.items())
        raise ValueError(
            f"methods are compared after equally many trials on validation bodies, and {CHOICES.name} has: {told}; "
            "run `selfalign bench tune --method NAME --trials N` for each with the same N, and --choose"
        )
    for told in ("fingerprint", "seed"):
        found = {name: known[name].get(told) for name in names if name in known}
        if len({str(value) for value in found.values()}) > 1:
            raise ValueError(
                f"methods are compared after tuning with one model on the same bodies, and {CHOICES.name} has another "
                f"{told} for each of {', '.join(found)}: {list(found.values())}; tune them anew"
            )

"""Do openpi and LeRobot themselves open what `selfalign convert` writes, and does it open what they write?

    python benchmarks/foreign_load.py --openpi path/to/openpi --lerobot --out benchmarks/results/foreign_load.json

For small random pi0 and pi0.5 policies, float32: every tensor bit for bit, the statistics, and the sampled actions from
the same noise; with LeRobot also the way from a raw observation to robot units, through its own processors. At full
size: the names and shapes of all tensors, without their memory. It stops with an error where they part.
benchmarks/README.md says how to make the environment.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import lerobot_reference
import numpy as np
import openpi_reference
import torch
import tyro
from speed import make_batch, random_model, sizes
from torch import Tensor, nn

import selfalign as sa
from selfalign import presets
from selfalign.checkpoint import save_checkpoint
from selfalign.commands.convert import ConvertConfig, convert
from selfalign.data.normalize import FieldStats, NormStats
from selfalign.model.config import VLAConfig
from selfalign.model.cost import meta_model
from selfalign.model.openpi import openpi_tensors
from selfalign.model.openpi_names import EMBEDDING, UNUSED, written_names
from selfalign.model.policy import VLA
from selfalign.model.tokenizer import PaliGemmaTokenizer
from selfalign.policy import Policy
from selfalign.provenance import Stopwatch, provenance, write_json
from selfalign.settings import AlignSettings
from selfalign.types import Observation

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from checkpoints import small_sentencepiece

KINDS = ("pi0", "pi05")
CLOSE = 1e-4
"""Largest difference of an action, normalised or in robot units, that counts as rounding."""


@dataclass(frozen=True)
class Config:
    """Whom to ask."""

    openpi: Path | None = None
    """A checkout of openpi; without it and --lerobot, the environment variable OPENPI says where."""
    lerobot: bool = False
    """Ask LeRobot, which is installed in this environment."""
    steps: int = 10
    out: Path | None = None
    """JSON file of the results."""


class Foreign(Protocol):
    """What is asked of both."""

    @property
    def model(self) -> nn.Module: ...
    def sample_actions(self, observation: Observation, noise: Tensor, num_steps: int) -> Tensor: ...


# ---- openpi --------------------------------------------------------------------------------------------------------


def ask_openpi(kind: str, checkout: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Both ways between Selfalign and openpi, and the names at full size."""
    own, config = make_own(kind, folder / "own")
    convert(ConvertConfig(own, folder / "written", "openpi", asset_id="my_robot"))
    theirs = openpi_reference.Reference(checkout, config)
    theirs.load(folder / "written")
    policy = sa.load(own)
    assert policy.stats is not None
    forth = {
        "tensors": equal_tensors(policy.model, theirs),
        "actions": difference(policy.model, theirs, steps),
        "statistics": equal_stats(
            policy.stats, openpi_reference.read_stats(folder / "written" / "assets" / "my_robot"), "actions"
        ),
    }
    randomise(theirs.model)
    (folder / "theirs").mkdir()
    theirs.save(folder / "theirs")
    openpi_reference.write_stats(folder / "theirs" / "assets" / "my_robot", told_stats(policy.stats, "actions"))
    back = read_theirs(folder, theirs, policy.stats, steps, action_horizon=config.action_horizon)
    full = openpi_reference.Reference(checkout, presets.get(kind), device="meta").model
    return {"selfalign to openpi": forth, "openpi to selfalign": back, "full size": full_size(kind, full)}


# ---- LeRobot -------------------------------------------------------------------------------------------------------


def ask_lerobot(kind: str, folder: Path, steps: int) -> dict[str, Any]:
    """Both ways between Selfalign and LeRobot, and the names at full size."""
    own, config = make_own(kind, folder / "own")
    convert(ConvertConfig(own, folder / "written", "lerobot"))
    theirs = lerobot_reference.Reference(config, lerobot_reference.Words(small_sentencepiece()))
    told = theirs.load(folder / "written")
    policy = sa.load(own)
    assert policy.stats is not None
    forth = {
        "tensors": equal_tensors(policy.model, theirs),
        "actions": difference(policy.model, theirs, steps),
        "robot units": difference_in_robot_units(policy, theirs, steps),
        "told": [line for line in told.splitlines() if line.startswith(("All keys", "Warning", "Missing", "Could"))],
    }
    theirs.make(told_stats(policy.stats, "action", "observation.state"), features(config, policy.stats))
    randomise(theirs.model)
    theirs.save(folder / "theirs")
    back = read_theirs(folder, theirs, policy.stats, steps)
    back["robot units"] = difference_in_robot_units(sa.load(folder / "theirs", tokenizer=own), theirs, steps)
    full = full_size(kind, lerobot_reference.full_size(kind))
    return {"selfalign to lerobot": forth, "lerobot to selfalign": back, "full size": full}


def features(config: VLAConfig, stats: NormStats) -> dict[str, tuple[int, ...]]:
    """Shapes of a robot's observations and actions, by LeRobot's names."""
    images = {f"observation.images.{c}": (3, config.image_size, config.image_size) for c in config.cameras}
    return {**images, "observation.state": (stats.state_dim,), "action": (stats.action_dim,)}


def difference_in_robot_units(policy: Policy, theirs: lerobot_reference.Reference, steps: int) -> float:
    """Of the whole way from a raw observation to actions."""
    config, rng = policy.model.config, np.random.default_rng(0)
    assert policy.stats is not None
    side = config.image_size
    raw = {f"observation.images.{c}": rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for c in config.cameras}
    raw |= {"observation.state": rng.normal(size=policy.stats.state_dim).astype(np.float32), "task": "pick cube"}
    noise = torch.randn(config.action_horizon, config.action_dim)
    ours = policy.act(raw, noise=noise, num_steps=steps)
    return close(torch.from_numpy(ours), torch.from_numpy(theirs.act(raw, noise, steps)))


# ---- both ----------------------------------------------------------------------------------------------------------


def make_own(kind: str, folder: Path) -> tuple[Path, VLAConfig]:
    """A small random checkpoint of Selfalign with statistics, and its config.

    Heads are of the published sizes, which are not in a checkpoint's tensors. The robot has fewer dimensions than the
    model; but LeRobot 0.4 writes pi0.5's state into the prompt with its padding, so there it fills them.
    """
    config = sizes(kind, "tiny")
    heads = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 256}
    tower = replace(config.vision, num_heads=16)
    config = replace(config, vlm=replace(config.vlm, **heads), action=replace(config.action, **heads), vision=tower)
    rng, dims = np.random.default_rng(0), (7 if kind == "pi0" else config.state_dim, 6)
    state, action = (FieldStats.from_array(rng.normal(size=(100, n)).astype(np.float32)) for n in dims)
    stats = NormStats(state, action, "zscore" if kind == "pi0" else "quantile")
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(small_sentencepiece())
    words = PaliGemmaTokenizer(folder, config.max_token_len, reads_state=kind == "pi05")
    policy = Policy(random_model(config).eval(), words, AlignSettings.unrehearsed(), stats)
    return save_checkpoint(policy, folder), config


def randomise(model: nn.Module) -> None:
    """Every parameter moved: some start at values that hide what they do."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def read_theirs(folder: Path, theirs: Foreign, stats: NormStats, steps: int, **settings: Any) -> dict[str, Any]:
    """What is in `folder / "theirs"`, opened as it is and converted."""
    direct = sa.load(folder / "theirs", **settings)
    convert(ConvertConfig(folder / "theirs", folder / "read", "selfalign", **settings))
    policy = sa.load(folder / "read")
    if policy.fingerprint() != direct.fingerprint():
        raise SystemExit("the converted checkpoint is another model than the one that sa.load opens")
    assert policy.stats is not None
    return {
        "tensors": equal_tensors(policy.model, theirs),
        "actions": difference(policy.model, theirs, steps),
        "statistics": equal_stats(policy.stats, told_stats(stats, "actions"), "actions"),
    }


def difference(ours: VLA, theirs: Foreign, steps: int) -> float:
    """Of the actions sampled by the two models from the same noise; one sample lacks the last camera."""
    batch = make_batch(ours.config, 2, 20, masked=False)
    batch.observation.image_masks[ours.config.cameras[-1]][1] = False
    noise = torch.randn_like(batch.actions.values)
    expected = theirs.sample_actions(batch.observation, noise, steps)
    return close(ours.sample_actions(batch.observation, noise=noise, num_steps=steps), expected)


def close(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference."""
    worst = float((ours - theirs).abs().max())
    if not worst < CLOSE:
        raise SystemExit(f"actions differ by {worst:.1e}")
    return worst


def equal_tensors(ours: VLA, theirs: Foreign) -> int:
    """How many tensors both have, equal to the last bit."""
    held, expected = theirs.model.state_dict(), openpi_tensors(ours)
    lone = set(expected) ^ (set(held) - {EMBEDDING, UNUSED})
    wrong = [name for name in expected.keys() & held.keys() if not torch.equal(expected[name], held[name])]
    if lone or wrong:
        raise SystemExit(f"only one side has {sorted(lone)}; these hold other numbers: {wrong}")
    return len(expected)


def told_stats(stats: NormStats, action: str, state: str = "state") -> dict[str, dict[str, np.ndarray]]:
    """Statistics as float32 arrays by the owner's names."""
    fields = {state: stats.state, action: stats.action}
    kept = ("mean", "std", "q01", "q99")
    return {key: {n: getattr(held, n).astype(np.float32) for n in kept} for key, held in fields.items()}


def equal_stats(ours: NormStats, theirs: Mapping[str, Mapping[str, np.ndarray]], action: str) -> int:
    """How many numbers both have, equal in float32."""
    count = 0
    for key, rows in told_stats(ours, action).items():
        for name, values in rows.items():
            if not np.array_equal(values, np.asarray(theirs[key][name], np.float32)):
                raise SystemExit(f"the statistics {key}.{name} differ")
            count += values.size
    return count


def full_size(kind: str, theirs: nn.Module) -> int:
    """How many tensors a converted checkpoint of the published size has, all of the owner's names and shapes."""
    model = meta_model(presets.get(kind))
    shapes = {name: tuple(model.get_parameter(ours).shape) for ours, name in written_names(model).items()}
    shapes[UNUSED] = (model.config.vocab_size, model.config.action.width)
    held = {name: tuple(t.shape) for name, t in theirs.state_dict().items() if name != EMBEDDING}
    if shapes != held:
        raise SystemExit(f"at full size, names or shapes differ: {sorted(shapes.items() ^ held.items())[:10]}")
    return len(shapes)


def main(config: Config) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    watch, results = Stopwatch(), {}
    checkout = None if config.lerobot and config.openpi is None else openpi_reference.checkout_at(config.openpi)
    with tempfile.TemporaryDirectory() as name:
        for kind in KINDS:
            if checkout is not None:
                asked = ask_openpi(kind, checkout, Path(name, "openpi", kind), config.steps)
                results.setdefault("openpi", {})[kind] = asked
            if config.lerobot:
                asked = ask_lerobot(kind, Path(name, "lerobot", kind), config.steps)
                results.setdefault("lerobot", {})[kind] = asked
    for owner, kinds in results.items():
        for kind, rows in kinds.items():
            for row, values in rows.items():
                print(f"{owner}, {kind}, {row}: {values}", flush=True)
    if config.out is not None:
        asked = ("transformers", "safetensors", *(["lerobot"] if config.lerobot else []))
        versions = {name: metadata.version(name) for name in asked}
        told = {"steps": config.steps, "asked": versions}
        write_json(config.out, {"settings": told, "results": results, **provenance(watch.seconds)})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""Checkpoint directories: opened whoever wrote them, and written.

Selfalign's own holds `config.json` and `model.safetensors` (the model), `settings.json` (everything else, and sums
of itself and of the other files by which damage shows; damaged weights show in the fingerprint) and, once it has been
calibrated, `calibration.json`.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from selfalign import embodiments
from selfalign.acting import Acting
from selfalign.calibration import Calibration
from selfalign.data.normalize import NormStats
from selfalign.data.pretrained import assets_of, kind_of, load_pretrained
from selfalign.data.transforms import Tokenizer
from selfalign.embodiments import Embodiment
from selfalign.model.config import VLAConfig
from selfalign.model.device import existing_device
from selfalign.model.tokenizer import ByteTokenizer, MissingTokenizer, PaliGemmaTokenizer, find_paligemma
from selfalign.model.weights import load_model, read_json, save_model, unique_tensors, write_json
from selfalign.policy import Policy
from selfalign.settings import AlignSettings

SETTINGS_FORMAT = "selfalign-settings-1"
CALIBRATION = "calibration.json"
_CALIBRATE_AGAIN = (
    'restore it, or delete "sums" and "calibration" from settings.json and run `selfalign bench calibrate` again'
)
TokenizerName = Literal["bytes", "paligemma"]
TOKENIZERS: dict[TokenizerName, tuple[type, ...]] = {
    "bytes": (ByteTokenizer,),
    "paligemma": (PaliGemmaTokenizer, MissingTokenizer),
}


@dataclass(frozen=True, eq=False)
class CheckpointInfo:
    """`settings.json`: what a checkpoint says beside config and weights."""

    fingerprint: str
    """Of the model whose weights lie beside it."""
    tokenizer: TokenizerName
    align: AlignSettings
    stats: NormStats | None = None
    calibration: Calibration | None = None
    """Beside it in `calibration.json`, which counts only as long as `settings.json` names its sum."""
    acting: Acting = Acting()
    """Left out of the file where it is as trained."""

    def write(self, directory: Path) -> None:
        """Writes `settings.json` and `calibration.json`; whenever it is interrupted, what is there can be read."""
        path = directory / CALIBRATION
        if self.calibration is None:
            self._write_settings(directory, {})
            path.unlink(missing_ok=True)
            return
        if path.exists():
            self._write_settings(directory, {})  # lets go of the old one before it changes
        write_json(path, self.calibration.to_dict())
        self._write_settings(directory, {"calibration": _sum(path.read_bytes())})

    def _write_settings(self, directory: Path, named: dict[str, str]) -> None:
        data = {"format": SETTINGS_FORMAT, "fingerprint": self.fingerprint, "tokenizer": self.tokenizer}
        stats = {} if self.stats is None else {"norm_stats": self.stats.to_dict()}
        acting = {} if self.acting == Acting() else {"acting": self.acting.to_dict()}
        data = {**data, "align": self.align.to_dict(), **stats, **acting, **named}
        write_json(directory / "settings.json", {**data, "sums": _sums(directory, data)})

    @classmethod
    def read(cls, directory: Path) -> "CheckpointInfo":
        """The inverse of `write`; errors as in `load`."""
        path = directory / "settings.json"
        for name in ("settings.json", "config.json"):
            if not (directory / name).is_file():
                raise FileNotFoundError(f"{directory} is not a checkpoint: it has no {name}")
        data = read_json(path)
        told = data.pop("sums", None)
        if told is not None:  # checkpoints from before have none
            _check_sums(directory, told, _sums(directory, data))
        if data.get("format") != SETTINGS_FORMAT:
            raise ValueError(
                f"{path} is of another version: its format is {data.get('format')!r}, not {SETTINGS_FORMAT!r}"
            )
        try:
            if data["tokenizer"] not in TOKENIZERS:
                raise ValueError(f"the tokenizer {data['tokenizer']!r} is not known")
            stats = NormStats.from_dict(data["norm_stats"]) if "norm_stats" in data else None
            info = cls(data["fingerprint"], data["tokenizer"], AlignSettings.from_dict(data["align"]), stats)
            info = replace(info, acting=Acting.from_dict(data["acting"])) if "acting" in data else info
        except KeyError as error:
            problem = f"it lacks {error}"
        except (TypeError, AttributeError, ValueError) as error:
            problem = str(error)
        else:
            return replace(info, calibration=_read_calibration(directory, data.get("calibration"), info.fingerprint))
        raise ValueError(f"{path} is damaged or of another version: {problem}; copy the whole checkpoint again")


def _read_calibration(directory: Path, told: str | None, fingerprint: str) -> Calibration | None:
    """The calibration with the sum that `settings.json` tells; None where it tells none."""
    if told is None:
        return None
    path = directory / CALIBRATION
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, and settings.json names it; {_CALIBRATE_AGAIN}")
    if _sum(path.read_bytes()) != told:
        raise ValueError(f"{path} differs from what was written; {_CALIBRATE_AGAIN}")
    calibration = Calibration.from_dict(read_json(path))
    if calibration.fingerprint != fingerprint:
        raise ValueError(f"{path} is of model {calibration.fingerprint}, not of {fingerprint}; {_CALIBRATE_AGAIN}")
    return calibration


def set_calibration(directory: str | Path, calibration: Calibration) -> None:
    """Puts a calibration into a checkpoint, in place of an older one.

    Raises:
        ValueError: it is of another model or of another way to act, or the checkpoint is damaged.
        OSError: the checkpoint cannot be written.
    """
    directory = Path(directory)
    info = CheckpointInfo.read(directory)
    if calibration.fingerprint != info.fingerprint:
        raise ValueError(f"the calibration is of model {calibration.fingerprint}, {directory} of {info.fingerprint}")
    acted = Acting.from_dict(calibration.source.get("acting") or Acting().to_dict())
    if acted != info.acting:
        raise ValueError(f"the calibration is of acting at {acted}, {directory} acts at {info.acting}; calibrate again")
    replace(info, calibration=calibration).write(directory)


def set_acting(directory: str | Path, acting: Acting) -> None:
    """Lets a checkpoint act with another speed and temperature. A calibration of how it acted before goes.

    Raises:
        ValueError: the checkpoint is damaged.
        OSError: it cannot be written.
    """
    directory = Path(directory)
    info = CheckpointInfo.read(directory)
    if acting != info.acting:
        replace(info, acting=acting, calibration=None).write(directory)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _sums(directory: Path, data: dict[str, Any]) -> dict[str, str]:
    """Of what `settings.json` says, however it is laid out, and of the bytes of `config.json`."""
    parts = {"settings.json": json.dumps(data, sort_keys=True).encode()}
    if (directory / "config.json").is_file():
        parts["config.json"] = (directory / "config.json").read_bytes()
    return {name: _sum(part) for name, part in parts.items()}


def _check_sums(directory: Path, told: Any, found: dict[str, str]) -> None:
    wrong = [name for name in found if not isinstance(told, dict) or told.get(name) != found[name]]
    if wrong:
        files = " and ".join(str(directory / name) for name in wrong)
        raise ValueError(
            f"{files} {'differs' if len(wrong) == 1 else 'differ'} from what was written; copy the whole checkpoint "
            'again, or delete "sums" from settings.json if it was changed on purpose'
        )


def save_checkpoint(policy: Policy, directory: str | Path) -> Path:
    """Writes `config.json`, `model.safetensors`, `settings.json` and, where there is one, `calibration.json`, each
    atomically; `load` reads them.

    Raises:
        ValueError: the tokenizer or the model's precision is none that `load` brings back; nothing was written.
        OSError: the disk is full or read-only. A file that was there before stays whole; if some are new and some are
            old, `load` says so.
    """
    words: TokenizerName | None = next(
        (name for name, kinds in TOKENIZERS.items() if isinstance(policy.tokenizer, kinds)), None
    )
    if words is None:
        raise ValueError(f"a checkpoint cannot say that its tokenizer is {type(policy.tokenizer).__name__}")
    types = {t.dtype for t in unique_tensors(policy.model).values() if t.is_floating_point()}
    if others := types - {torch.float32}:  # `load` would make float32 of them, which has another fingerprint
        raise ValueError(
            f"a checkpoint is written in float32, and this model has {', '.join(sorted(map(str, others)))}: bring it "
            'back first (`set_precision(model, "float32")`; contexts have to be fitted again then), or save the model '
            "that it was made of"
        )
    directory = Path(directory)
    save_model(policy.model, directory)
    told = policy.settings, policy.stats, policy.calibration, policy.acting
    CheckpointInfo(policy.fingerprint(), words, *told).write(directory)
    return directory


def load(
    directory: str | Path,
    device: str | torch.device = "cpu",
    *,
    tokenizer: str | Path | None = None,
    asset_id: str | None = None,
    robot: str | Path | Embodiment | None = None,
    **settings: Any,
) -> Policy:
    """Opens a checkpoint directory of Selfalign, openpi (PyTorch) or LeRobot (pi0, pi0.5); its files say which it is.

    Args:
        directory: of the checkpoint.
        device: where the model goes.
        tokenizer: PaliGemma's sentencepiece model, or a directory that has it. Without it, the checkpoint's directory
            is searched; if it is not there either, the policy opens, and says what to do when it gets words to read.
        asset_id: which robot's statistics, where an openpi checkpoint has several; None: those that the `robot` names
            as its own, where they are there.
        robot: which robot acts: a name or a file (`selfalign.embodiments.get`), or the embodiment itself.
        settings: what the tensors of an openpi or LeRobot checkpoint do not tell, before what its `config.json` says:
            the fields of `selfalign.model.openpi.CheckpointSettings`.

    Raises:
        FileNotFoundError: the directory, or one of its files, is missing.
        ValueError: a file is damaged, the files are not of one checkpoint, or there is no such device.
        TypeError: settings that such a checkpoint does not take.
    """
    directory, robot = Path(directory), embodiments.get(robot) if isinstance(robot, str | Path) else robot
    if (
        asset_id is None
        and robot is not None
        and kind_of(directory) == "openpi"
        and robot.asset_id in assets_of(directory)
    ):
        asset_id = robot.asset_id
    return replace(_open(directory, existing_device(device), tokenizer, asset_id, settings), robot=robot)


def _open(
    directory: Path,
    device: torch.device,
    tokenizer: str | Path | None,
    asset_id: str | None,
    settings: dict[str, Any],
) -> Policy:
    """`load`, without the robot."""
    if kind_of(directory) != "selfalign":
        model, stats = load_pretrained(directory, asset_id, **settings)
        words = _words("paligemma", model.config, directory, tokenizer)
        return Policy(model.to(device), words, AlignSettings.unrehearsed(), stats)
    if settings or asset_id is not None:
        given = [*settings, *(["asset_id"] if asset_id is not None else [])]
        raise TypeError(f"{directory} is Selfalign's own checkpoint and takes no {', '.join(given)}")
    info = CheckpointInfo.read(directory)  # before the model is built: a damaged config may ask for any size
    model = load_model(directory)
    if info.fingerprint != model.fingerprint():
        raise ValueError(
            f"the files in {directory} do not belong together: the weights and config.json are of model "
            f"{model.fingerprint()}, settings.json of {info.fingerprint}; copy the whole checkpoint again"
        )
    words = _words(info.tokenizer, model.config, directory, tokenizer)
    policy = Policy(model.to(device), words, info.align)
    return replace(policy, stats=info.stats, calibration=info.calibration, acting=info.acting)


def tokenizer_of(directory: str | Path, config: VLAConfig, path: str | Path | None = None) -> Tokenizer:
    """What prompts are read with by a checkpoint of Selfalign's, for a model of that config with its words.

    Args:
        path: as `tokenizer` of `load`.

    Raises:
        FileNotFoundError: the checkpoint, or what is at `path`, is missing.
        ValueError: the checkpoint is damaged, or reads bytes and takes no tokenizer.
    """
    return _words(CheckpointInfo.read(Path(directory)).tokenizer, config, Path(directory), path)


def _words(name: TokenizerName, config: VLAConfig, directory: Path, path: str | Path | None) -> Tokenizer:
    if name == "paligemma":
        return find_paligemma(directory, path, config.max_token_len, reads_state=config.reads_state)
    if path is not None:
        raise ValueError(f"the model in {directory} reads bytes and takes no tokenizer")
    return ByteTokenizer(config.max_token_len, config.prompt_merges)

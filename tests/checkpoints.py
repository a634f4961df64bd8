"""Made-up checkpoint directories as openpi and LeRobot write them: plain files, none of Selfalign's writers."""

import io
import json
import math
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from goldens import OpenPIGolden
from selfalign import presets
from selfalign.model.cost import meta_model
from selfalign.model.openpi_names import UNUSED, written_names

STATE_DIM, ACTION_DIM = 7, 6
STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


def small_sentencepiece() -> bytes:
    """A small sentencepiece model with the special tokens in PaliGemma's places (pad 0, eos 1, bos 2, unk 3)."""
    import sentencepiece

    texts = ["pick up the red cube", "Task: push the cube, State: 0 12 255 128 -1 64 37 94 58;", "Action: "]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=64,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=["\n"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    return model.getvalue()


def golden_for(kind: str) -> OpenPIGolden:
    """`kind` is "pi0" or "pi05"."""
    return OpenPIGolden.read(f"openpi_{kind}")


def draw_stats(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """float32 statistics of a state and an action, and of what no policy reads."""
    rng, stats = np.random.default_rng(seed), {}
    for name, dim in (("state", STATE_DIM), ("action", ACTION_DIM), ("image", 3)):
        ordered = np.sort(rng.normal(size=(5, dim)), axis=0)
        rows = {"min": ordered[0], "q01": ordered[1], "mean": ordered[2], "q99": ordered[3], "max": ordered[4]}
        rows |= {"std": rng.uniform(0.1, 2, dim), "q50": ordered[2]}
        stats[name] = {key: row.astype(np.float32) for key, row in rows.items()}
    return stats


def write_openpi(folder: Path, kind: str, assets: tuple[str, ...] = ("my_robot",), *, dtype=None) -> Path:
    golden = golden_for(kind)
    folder.mkdir(parents=True)
    tensors = load_file(golden.directory / "model.safetensors")
    tensors = {n: t if dtype is None else t.to(dtype) for n, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    settings = {**golden.settings, "action_dim": 32, "precision": "float32", "paligemma_variant": "dummy"}
    (folder / "config.json").write_text(json.dumps(settings))
    for seed, asset in enumerate(assets):
        stats = draw_stats(seed)
        rows = {
            "state": {k: stats["state"][k].tolist() for k in ("mean", "std", "q01", "q99")},
            "actions": {k: stats["action"][k].tolist() for k in ("mean", "std", "q01", "q99")},
        }
        (folder / "assets" / asset).mkdir(parents=True)
        (folder / "assets" / asset / "norm_stats.json").write_text(json.dumps({"norm_stats": rows}))
    return folder


def write_lerobot(folder: Path, kind: str, *, mode: str | None = None, with_stats: bool = True, **config) -> Path:
    """`config` overrides fields of config.json."""
    golden = golden_for(kind)
    folder.mkdir(parents=True)
    tensors = load_file(golden.directory / "model.safetensors")
    save_file({f"model.{n}": t for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    mode = mode or ("MEAN_STD" if kind == "pi0" else "QUANTILES")
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    inputs = {f"observation.images.{c}": {"type": "VISUAL", "shape": [3, 224, 224]} for c in ("top", "wrist", "side")}
    inputs["observation.state"] = {"type": "STATE", "shape": [STATE_DIM]}
    outputs = {"action": {"type": "ACTION", "shape": [ACTION_DIM]}}
    sizes = {"head_dim": 16, "vision_heads": 4, "chunk_size": 8, "tokenizer_max_length": golden.info["max_token_len"]}
    features = {"input_features": inputs, "output_features": outputs, "normalization_mapping": norm_map}
    told = {"type": kind, "n_obs_steps": 1, "max_state_dim": 32, "use_relative_actions": False, **features, **sizes}
    (folder / "config.json").write_text(json.dumps({**told, **config}))

    stats, flat = draw_stats(), {}
    for key, name in (("observation.state", "state"), ("action", "action"), ("observation.images.top", "image")):
        flat |= {f"{key}.{stat}": torch.from_numpy(values) for stat, values in stats[name].items()}
    for name, step, kept in (
        ("policy_preprocessor", "normalizer_processor", {**inputs, **outputs}),
        ("policy_postprocessor", "unnormalizer_processor", outputs),
    ):
        entry = {"registry_name": step, "config": {"eps": 1e-8, "features": kept, "norm_map": norm_map}}
        if with_stats:
            entry["state_file"] = f"{name}_step_1_{step}.safetensors"
            save_file(flat, folder / entry["state_file"])
        other = {"registry_name": "device_processor", "config": {"device": "cuda", "float_dtype": None}}
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": [other, entry]}))
    return folder


def write_hollow(folder: Path, kind: str) -> Path:
    """An openpi checkpoint of full size in bfloat16: a header, and a hole that takes no room and reads as zeros."""
    config = presets.get(kind)
    model = meta_model(config)
    shapes = {theirs: model.get_parameter(ours).shape for ours, theirs in written_names(model).items()}
    shapes[UNUSED] = (config.vocab_size, config.action.width)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def edit_json(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))

"""`selfalign convert`: round trips bit for bit, upgrades that change nothing, and never more than a chunk in memory."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import selfalign as sa
from checkpoints import draw_stats, edit_json, golden_for, write_hollow, write_lerobot, write_openpi
from selfalign import presets
from selfalign.checkpoint import set_acting
from selfalign.cli import main
from selfalign.commands import convert as convert_module
from selfalign.commands.convert import ConvertConfig, convert, foreign_tensors, open_source
from selfalign.commands.inspect import read_config
from selfalign.model import tensorfile
from selfalign.model.losses import ALIGNMENT
from selfalign.model.openpi import CheckpointSettings, load_openpi
from selfalign.model.tensorfile import StoredTensor
from selfalign.model.upgrade import upgrade
from selfalign.model.weights import unique_tensors

KINDS = ["pi0", "pi05"]
UNUSED = "paligemma_with_expert.gemma_expert.lm_head.weight"
LEROBOT_UNUSED = f"model.{UNUSED}"


def run(source, destination, to, **options):
    convert(ConvertConfig(source, destination, to, **options))
    return destination


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def assert_same_stats(found, expected):
    assert found.mode == expected.mode
    for field in ("state", "action"):
        assert getattr(found, field).to_dict() == getattr(expected, field).to_dict()


# ---- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_openpi_to_lerobot_and_back(tmp_path, kind, dtype):
    source = write_openpi(tmp_path / "openpi", kind, dtype=dtype)
    lerobot = run(source, tmp_path / "lerobot", "lerobot")
    assert_same(weights(lerobot), {f"model.{name}": t for name, t in weights(source).items()})
    back = run(lerobot, tmp_path / "back", "openpi", asset_id="my_robot")
    assert_same(weights(back), weights(source))
    stats = [json.loads((d / "assets" / "my_robot" / "norm_stats.json").read_text()) for d in (source, back)]
    assert stats[0] == stats[1]
    assert CheckpointSettings.read(back) == CheckpointSettings.read(source)
    assert json.loads((lerobot / "config.json").read_text())["dtype"] == ("bfloat16" if dtype else "float32")


@pytest.mark.parametrize("foreign", ["openpi", "lerobot"])
@pytest.mark.parametrize("kind", KINDS)
def test_through_selfalign_and_back(tmp_path, kind, foreign):
    source = (write_openpi if foreign == "openpi" else write_lerobot)(tmp_path / "source", kind)
    own = run(source, tmp_path / "own", "selfalign")
    back = run(own, tmp_path / "back", foreign)
    unused = UNUSED if foreign == "openpi" else LEROBOT_UNUSED
    expected, found = weights(source), weights(back)
    head = expected.pop(unused)
    zero = found.pop(unused)
    assert zero.shape == head.shape and not zero.any(), "nothing reads it, but their strict loaders want it"
    assert_same(found, expected)
    assert_same_stats(sa.load(back).stats, sa.load(source).stats)
    assert_same_stats(sa.load(own).stats, sa.load(source).stats)


def test_how_a_policy_acts_has_no_place_elsewhere(tmp_path):
    own = run(write_openpi(tmp_path / "source", "pi0"), tmp_path / "own", "selfalign")
    set_acting(own, sa.Acting(1.5, 0.7))
    told = convert(ConvertConfig(own, tmp_path / "back", "openpi"))
    assert "does not say how it acts (speed 1.5, temperature 0.7), for which openpi has no place" in told
    aligned = run(own, tmp_path / "out", "pi0_aligned", ttt_heads=2, ttt_head_dim=8)
    assert sa.load(aligned).acting == sa.Acting(1.5, 0.7)


@pytest.mark.parametrize("kind", KINDS)
def test_own_format_is_the_policy_that_sa_load_gives(tmp_path, kind):
    source = write_openpi(tmp_path / "source", kind, dtype=torch.bfloat16)
    own = run(source, tmp_path / "own", "selfalign")
    expected, found = sa.load(source), sa.load(own)
    assert found.model.config == expected.model.config and found.fingerprint() == expected.fingerprint()
    assert found.settings == expected.settings and found.tokenizer.reads_state == (kind == "pi05")
    assert weights(own)["action_in.weight"].dtype == torch.bfloat16, "the type of the file stays"


@pytest.mark.parametrize("kind", KINDS)
def test_what_lerobot_reads_is_there(tmp_path, kind):
    """Names and keys of LeRobot's own files; it cannot be installed beside the other packages of the tests."""
    folder = run(write_openpi(tmp_path / "source", kind), tmp_path / "lerobot", "lerobot")
    config = json.loads((folder / "config.json").read_text())
    assert config["type"] == kind and config["chunk_size"] == 8 and config["max_action_dim"] == 32
    assert list(config["input_features"])[:2] == [
        "observation.images.base_0_rgb",
        "observation.images.left_wrist_0_rgb",
    ]
    assert config["input_features"]["observation.state"] == {"type": "STATE", "shape": [7]}
    assert config["output_features"] == {"action": {"type": "ACTION", "shape": [6]}}
    before, after = (json.loads((folder / f"policy_{n}processor.json").read_text()) for n in ("pre", "post"))
    names = [step["registry_name"] for step in before["steps"]]
    first, second = ("tokenizer_processor", "normalizer_processor")
    in_order = names.index(first) < names.index(second)
    assert in_order == (kind == "pi0"), "pi0.5 tells the normalised state in its prompt"
    assert [step["registry_name"] for step in after["steps"]] == ["unnormalizer_processor", "device_processor"]
    step = names.index(second)
    file = before["steps"][step]["state_file"]
    assert file == f"policy_preprocessor_step_{step}_normalizer_processor.safetensors"
    held, mode = load_file(folder / file), "MEAN_STD" if kind == "pi0" else "QUANTILES"
    np.testing.assert_array_equal(held["observation.state.q01"], draw_stats()["state"]["q01"])
    assert held["action.mean"].dtype == torch.float32 and before["steps"][step]["config"]["norm_map"]["ACTION"] == mode
    assert before["steps"][step]["config"]["eps"] == 1e-6


def test_statistics_that_float32_cannot_hold_keep_their_digits(tmp_path):
    source = write_openpi(tmp_path / "source", "pi0")
    path = source / "assets" / "my_robot" / "norm_stats.json"
    edit_json(path, lambda data: data["norm_stats"]["actions"].update(mean=[0.1] * 6))
    back = run(run(source, tmp_path / "lerobot", "lerobot"), tmp_path / "back", "openpi")
    assert json.loads((back / "assets/robot/norm_stats.json").read_text()) == json.loads(path.read_text())


@pytest.mark.parametrize("to", ["lerobot", "selfalign", "pi0_aligned"])
def test_a_base_model_without_statistics_is_converted(tmp_path, to):
    source = write_openpi(tmp_path / "source", "pi0", ())
    assert sa.load(run(source, tmp_path / "out", to)).stats is None


def test_settings_that_the_files_do_not_tell_are_given(tmp_path):
    bare, golden = tmp_path / "bare", golden_for("pi0")
    bare.mkdir()
    save_file(load_file(golden.directory / "model.safetensors"), bare / "model.safetensors")
    with pytest.raises(ValueError, match="give the checkpoint's own head_dim"):
        run(bare, tmp_path / "out", "lerobot")
    out = run(bare, tmp_path / "out", "lerobot", head_dim=16, vision_heads=4, action_horizon=8, cameras=("a", "b", "c"))
    assert (
        sa.load(out).model.config
        == load_openpi(bare, **{**golden.settings, "cameras": ("a", "b", "c"), "max_token_len": None}).config
    )


# ---- self-aligning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy_expert", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_with_alpha_0_actions_stay_the_plain_policys_bit_for_bit(tmp_path, kind, copy_expert):
    source, golden = write_openpi(tmp_path / "source", kind), golden_for(kind)
    options = {"alpha": 0.0, "alignment_depth": 2, "state_token": False, "ttt_heads": 2, "ttt_head_dim": 8}
    out = run(source, tmp_path / "out", f"{kind}_aligned", copy_expert=copy_expert, **options)
    plain, aligned = sa.load(source).model, sa.load(out).model
    observation, noise = golden.batch.observation, golden.inputs["sample_noise"]
    expected = plain.sample_actions(observation, noise=noise, num_steps=3)
    context = aligned.prior().perturbed(10.0)
    assert torch.equal(aligned.sample_actions(observation, context, noise=noise, num_steps=3), expected)
    assert aligned.config.alignment.reads == aligned.config.ttt.positions == (0, 2)


def test_open_layers_move_actions_and_give_w_a_gradient(tmp_path):
    source, golden = write_openpi(tmp_path / "source", "pi05"), golden_for("pi05")
    model = sa.load(run(source, tmp_path / "out", "pi05_aligned", ttt_heads=2, ttt_head_dim=8)).model
    assert model.config.state_token and model.config.ttt.alpha_init == 0.1
    observation, noise = golden.batch.observation, golden.inputs["sample_noise"]
    actions = [
        model.sample_actions(observation, c, noise=noise, num_steps=2) for c in (None, model.prior().perturbed(10.0))
    ]
    assert not torch.equal(*actions)


@pytest.mark.parametrize("copy_expert", [True, False])
def test_the_file_is_what_upgrade_makes_in_memory(tmp_path, copy_expert):
    source = write_openpi(tmp_path / "source", "pi0")
    out = run(source, tmp_path / "out", "pi0_aligned", copy_expert=copy_expert, seed=3, ttt_heads=2, ttt_head_dim=8)
    model = sa.load(out).model
    torch.manual_seed(3)
    expected = unique_tensors(upgrade(sa.load(source).model, model.config, copy_expert=copy_expert))
    for name, tensor in unique_tensors(model).items():
        assert torch.equal(tensor, expected[name]), name
    alignment = model.mixture.experts[ALIGNMENT].blocks[0].mlp.up_proj.weight
    assert torch.equal(alignment, model.mixture.experts["action"].blocks[0].mlp.up_proj.weight) == copy_expert


def test_a_plain_policy_of_selfalign_is_upgraded_too(tmp_path):
    own = run(write_openpi(tmp_path / "source", "pi0"), tmp_path / "own", "selfalign")
    out = run(own, tmp_path / "out", "pi0_aligned", ttt_heads=2, ttt_head_dim=8)
    assert sa.load(out).stats is not None and sa.load(out).model.config.alignment is not None


# ---- memory, atomicity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["lerobot", "selfalign", "pi0_aligned"])
def test_no_tensor_of_the_source_is_ever_whole_in_memory(tmp_path, monkeypatch, to):
    source = write_openpi(tmp_path / "source", "pi0", dtype=torch.bfloat16)
    monkeypatch.setattr(tensorfile, "CHUNK", 1000)
    lengths = []

    original = tensorfile._Entry.stored

    def stored(self, file, offset):
        inner = original(self, file, offset)

        def chunks():
            for chunk in inner.chunks():
                lengths.append(len(chunk))
                yield chunk

        return StoredTensor(inner.dtype, inner.shape, chunks)

    def whole(self):
        raise AssertionError(f"a tensor of {self.num_bytes} bytes was read as a whole")

    monkeypatch.setattr(tensorfile._Entry, "stored", stored)
    monkeypatch.setattr(StoredTensor, "tensor", whole)
    run(source, tmp_path / "out", to)
    assert max(lengths) == 1000 and sum(lengths) >= (source / "model.safetensors").stat().st_size - 20_000


@pytest.mark.parametrize(("kind", "tensors", "gigabytes"), [("pi0", 777, 7.00), ("pi05", 812, 7.23)])
def test_a_checkpoint_of_full_size_is_opened_by_its_header(tmp_path, kind, tensors, gigabytes):
    source = write_hollow(tmp_path / kind, kind)
    assert read_config(source)[0] == presets.get(kind)
    with open_source(ConvertConfig(source, tmp_path / "out", "lerobot")) as opened:
        assert opened.config == presets.get(kind) and opened.dtype == torch.bfloat16
        written = foreign_tensors(opened, "model.")
        assert len(written) == tensors
        assert sum(tensor.num_bytes for tensor in written.values()) == pytest.approx(gigabytes * 1e9, rel=2e-3)


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    source = write_openpi(tmp_path / "source", "pi0")

    def full(path, tensors):
        path.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert_module, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        run(source, tmp_path / "out", "lerobot")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_an_existing_destination_is_refused(tmp_path, capsys):
    source, out = write_openpi(tmp_path / "source", "pi0"), tmp_path / "out"
    assert main(["convert", str(source), str(out), "--to", "lerobot"]) == 0
    assert "lerobot from openpi, 107 tensors, 0.001 GB, statistics (zscore)" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["convert", str(source), str(out), "--to", "lerobot"]) == 2
    assert "out exists; give a new directory" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("openpi", "is openpi's already"),
        ("pi05_aligned", "cannot become pi05_aligned: pi05_aligned is made of a plain pi05"),
    ],
)
def test_targets_that_make_no_sense_are_refused(tmp_path, to, message):
    source = write_openpi(tmp_path / "source", "pi0")
    with pytest.raises(ValueError, match=message):
        run(source, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_an_aligned_policy_has_no_place_elsewhere(tmp_path):
    source = write_openpi(tmp_path / "source", "pi0")
    aligned = run(source, tmp_path / "aligned", "pi0_aligned", ttt_heads=2, ttt_head_dim=8)
    with pytest.raises(ValueError, match=r"no place for \d+ tensors of this policy \(.*alignment"):
        run(aligned, tmp_path / "out", "openpi")
    with pytest.raises(ValueError, match="has an alignment expert already"):
        run(aligned, tmp_path / "out", "pi0_aligned")


def test_damaged_sources_are_refused(tmp_path):
    source = write_openpi(tmp_path / "source", "pi0")
    own = run(source, tmp_path / "own", "selfalign")
    edit_json(own / "settings.json", lambda data: data.update(fingerprint="0" * 16))
    with pytest.raises(ValueError, match="differs from what was written"):
        run(own, tmp_path / "out", "openpi")
    edit_json(own / "settings.json", lambda data: data.pop("sums"))
    with pytest.raises(ValueError, match="do not belong together"):
        run(own, tmp_path / "out", "openpi")
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="truncated or not safetensors"):
        run(source, tmp_path / "out", "lerobot")
    with pytest.raises(ValueError, match="takes no head_dim"):
        run(own, tmp_path / "out", "openpi", head_dim=16)
    with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
        run(tmp_path / "nowhere", tmp_path / "out", "lerobot")


def test_the_example_of_the_documentation_runs(monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    example = (root / "docs" / "checkpoints.md").read_text().split("```python\n")[-1].split("```")[0]
    exec(compile(example, "docs/checkpoints.md", "exec"), {})

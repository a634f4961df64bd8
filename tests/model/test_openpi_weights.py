"""The loader of openpi's and LeRobot's files: every published variant, and loud refusals."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from goldens import OpenPIGolden
from selfalign.model.openpi import CheckpointSettings, checkpoint_shapes, infer_config, load_openpi, openpi_tensors
from selfalign.model.streams import StreamConfig
from selfalign.model.weights import unique_tensors

HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
EMBEDDING = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
UNUSED = "paligemma_with_expert.gemma_expert.lm_head.weight"
KINDS = {"openpi_pi0": "pi0", "openpi_pi05": "pi0.5"}
GOLDEN = OpenPIGolden.read("openpi_pi05")


@pytest.fixture
def tensors():
    return load_file(GOLDEN.directory / "model.safetensors")


def settings_of(name):
    return CheckpointSettings(**OpenPIGolden.read(name).settings)


def load(directory, tensors, **changes):
    save_file(tensors, directory / "model.safetensors")
    return load_openpi(directory, **{**GOLDEN.settings, **changes})


def assert_is_the_golden(model):
    expected = unique_tensors(load_openpi(GOLDEN.directory, **GOLDEN.settings))
    actual = unique_tensors(model)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def under_the_other_tied_name(tensors):
    return {EMBEDDING if name == HEAD else name: t for name, t in tensors.items()}


def under_both_tied_names(tensors):
    return {**tensors, EMBEDDING: tensors[HEAD].clone()}


def with_lerobots_prefix(tensors):
    return {f"model.{name}": t for name, t in tensors.items()}


def with_newer_transformers_names(tensors):
    return {name.replace(".vision_model.", "."): t for name, t in with_lerobots_prefix(tensors).items()}


def without_the_unused_head(tensors):
    return {name: t for name, t in tensors.items() if name != UNUSED}


@pytest.mark.parametrize(
    "variant",
    [
        under_the_other_tied_name,
        under_both_tied_names,
        with_lerobots_prefix,
        with_newer_transformers_names,
        without_the_unused_head,
    ],
)
def test_variants_of_the_file_give_the_same_model(tensors, tmp_path, variant):
    assert_is_the_golden(load(tmp_path, variant(tensors)))


def test_tied_tensors_must_be_equal(tensors, tmp_path):
    both = under_both_tied_names(tensors)
    both[EMBEDDING][0, 0] += 1
    with pytest.raises(ValueError, match=r"lm_head.weight.*tied.*different numbers"):
        load(tmp_path, both)


@pytest.mark.parametrize("name", ["openpi_pi0", "openpi_pi05"])
def test_names_map_back_to_openpis_file_bit_for_bit(name):
    golden = OpenPIGolden.read(name)
    written = openpi_tensors(load_openpi(golden.directory, **golden.settings))
    expected = load_file(golden.directory / "model.safetensors")
    assert written.keys() == expected.keys() - {UNUSED}
    assert all(torch.equal(written[key], expected[key]) for key in written)


@pytest.mark.parametrize("name", ["openpi_pi0", "openpi_pi05"])
def test_sizes_come_from_the_checkpoint(name):
    golden = OpenPIGolden.read(name)
    info, config = golden.info, load_openpi(golden.directory, **golden.settings).config
    assert config.vlm == StreamConfig(**info["vlm"]) and config.action == StreamConfig(**info["expert"])
    vision = info["vision"]
    assert (config.vision.width, config.vision.mlp_dim) == (vision["hidden_size"], vision["intermediate_size"])
    assert (config.vision.depth, config.vision.num_heads) == (
        vision["num_hidden_layers"],
        vision["num_attention_heads"],
    )
    assert (config.vision.patch_size, config.vision.image_size) == (vision["patch_size"], vision["image_size"])
    assert (config.vocab_size, config.action_dim) == (info["vocab"], info["action_dim"])
    assert (config.time, config.state_token) == (("concat", True) if name == "openpi_pi0" else ("adarms", False))


def test_settings_are_read_from_openpis_and_lerobots_config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"action_dim": 32, "action_horizon": 10, "precision": "float32"}))
    assert CheckpointSettings.read(tmp_path) == CheckpointSettings(action_horizon=10)
    features = {"observation.images.top": {}, "observation.state": {}, "observation.images.wrist": {}}
    path.write_text(json.dumps({"chunk_size": 30, "tokenizer_max_length": 64, "input_features": features}))
    expected = CheckpointSettings(action_horizon=30, max_token_len=64, cameras=("top", "wrist"))
    assert CheckpointSettings.read(tmp_path) == expected
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        CheckpointSettings.read(tmp_path)


def test_a_given_config_is_used_and_checked():
    config = load_openpi(GOLDEN.directory, **GOLDEN.settings).config
    assert_is_the_golden(load_openpi(GOLDEN.directory, config))
    wider = StreamConfig(**{**GOLDEN.info["expert"], "mlp_dim": 100})
    with pytest.raises(ValueError, match=r"shape of .*gate_proj.weight: file \(96, 32\), model \(100, 32\)"):
        load_openpi(GOLDEN.directory, type(config)(**{**vars(config), "action": wider}))


def test_an_aligned_config_is_refused():
    config = load_openpi(GOLDEN.directory, **GOLDEN.settings).config
    with pytest.raises(ValueError, match=r"does not hold \(.*alignment.*upgrade"):
        load_openpi(GOLDEN.directory, type(config)(**{**vars(config), "alignment": config.action}))


def test_missing_unexpected_and_misshapen_tensors_are_named(tensors, tmp_path):
    del tensors["action_out_proj.bias"]
    tensors["stray"] = torch.zeros(1)
    tensors["time_mlp_in.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        load(tmp_path, tensors)
    for text in (
        "missing: action_out_proj.bias",
        "unexpected: stray",
        "shape of time_mlp_in.bias: file (3,), model (32,)",
    ):
        assert text in str(error.value)


def test_many_missing_tensors_are_counted(tensors, tmp_path):
    layer = "paligemma_with_expert.gemma_expert.model.layers.1."
    gone = [n for n in tensors if n.startswith(layer)]  # 11 tensors: 4 of attention, 3 of the MLP, 2 norms of 2
    with pytest.raises(ValueError, match=rf"missing: {layer}.*\n  and {len(gone) - 10} more") as error:
        load(tmp_path, {n: t for n, t in tensors.items() if n not in gone})
    assert str(error.value).count("missing: ") == 10


def test_a_file_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"does not fit pi0:\n  missing: action_in_proj\.bias\n(.*\n)+  and \d+ more"):
        load(tmp_path, {"conv.weight": torch.zeros(3)})


@pytest.mark.parametrize("name", ["openpi_pi0", "openpi_pi05"])
def test_a_tensor_that_tells_sizes_is_named_when_it_is_gone_or_wrong(name):
    """What the others say is believed, and the one is an error like any other."""
    shapes, settings = checkpoint_shapes(OpenPIGolden.read(name).directory), settings_of(name)
    tellers = r"(action_in_proj|time_mlp_in|0\.mlp\.(fc1|up_proj)|0.*[qk]_proj)\.weight"
    sized = [n for n in shapes if re.search(tellers, n)]
    assert len(sized) >= 8
    for told in sized:
        with pytest.raises(ValueError) as error:
            infer_config({n: shape for n, shape in shapes.items() if n != told}, settings)
        assert str(error.value) == f"the checkpoint does not fit {KINDS[name]}:\n  missing: {told}"
        rows, columns = shapes[told]
        for wrong in ((rows,), (rows + 1, columns), (rows, columns - 1)):
            with pytest.raises(ValueError) as error:
                infer_config({**shapes, told: wrong}, settings)
            expected = f"shape of {told}: file {wrong}, model {(rows, columns)}"
            assert str(error.value) == f"the checkpoint does not fit {KINDS[name]}:\n  {expected}"


@pytest.mark.parametrize("stack", ["gemma_expert.model", "paligemma.model.language_model"])
def test_a_stream_without_its_last_layer_is_no_shallower_model(tensors, tmp_path, stack):
    layer = f"paligemma_with_expert.{stack}.layers.2."
    gone = [n for n in tensors if n.startswith(layer)]
    with pytest.raises(ValueError, match=rf"missing: {layer}"):
        load(tmp_path, {n: t for n, t in tensors.items() if n not in gone})


def test_a_damaged_layer_number_asks_for_no_memory(tmp_path):
    shapes = checkpoint_shapes(GOLDEN.directory)
    name = next(n for n in shapes if ".language_model.layers.2." in n)
    moved = {n.replace(".layers.2.", ".layers.2000000000.") if n == name else n: s for n, s in shapes.items()}
    with pytest.raises(ValueError, match=r"missing: .*\n  and \d+ more"):
        infer_config(moved, settings_of("openpi_pi05"))


def test_weights_that_are_no_floats_are_refused(tensors, tmp_path):
    tensors["time_mlp_in.bias"] = tensors["time_mlp_in.bias"].int()
    with pytest.raises(ValueError, match=r"time_mlp_in\.bias is torch\.int32"):
        load(tmp_path, tensors)


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"PK\x03\x04" + data, lambda data: b""])
def test_damaged_files_are_refused(tmp_path, damage):
    data = (GOLDEN.directory / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(damage(data))
    with pytest.raises(ValueError, match="truncated or not safetensors"):
        load_openpi(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_openpi(tmp_path)


def test_wrong_settings_are_explained():
    with pytest.raises(ValueError, match=r"128, is no multiple of head_dim=256"):
        load_openpi(GOLDEN.directory)
    with pytest.raises(TypeError, match="no such settings: heads"):
        load_openpi(GOLDEN.directory, heads=4)
    for wrong in ("16", 0, 16.0):
        with pytest.raises(ValueError, match="whole numbers above 0, got head_dim="):
            load_openpi(GOLDEN.directory, head_dim=wrong)


def test_a_half_precision_file_loads_in_either_precision(tensors, tmp_path):
    half = {name: t.bfloat16() for name, t in tensors.items()}
    weights = (
        load(tmp_path, half).mixture.vlm.blocks[0].q_proj.weight,
        load(tmp_path, half, precision="bf16").mixture.vlm.blocks[0].q_proj.weight,
    )
    assert [w.dtype for w in weights] == [torch.float32, torch.bfloat16]
    assert torch.equal(weights[0], weights[1].float())

"""A model as files: exact round trips, and loud refusals."""

from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfalign import presets
from selfalign.model.config import config_identity
from selfalign.model.policy import VLA
from selfalign.model.weights import config_from_dict, config_to_dict, load_model, save_model, unique_tensors
from small_model import small_config


@pytest.mark.parametrize("preset", sorted(presets.PRESETS))
def test_every_preset_survives_json_and_builds_without_memory(preset):
    config = presets.get(preset)
    assert config_from_dict(config_to_dict(config)) == config
    with torch.device("meta"):
        model = VLA(config)
    assert all(p.is_meta for p in model.parameters())


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no preset 'huge'.*tiny"):
        presets.get("huge")


def test_a_model_comes_back_bit_for_bit(model, tmp_path):
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.fingerprint() == model.fingerprint()
    for name, tensor in unique_tensors(model).items():
        assert torch.equal(tensor, unique_tensors(loaded)[name]), name


def test_shared_layers_are_written_once(model, tmp_path):
    save_model(model, tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert sum(name.endswith(".ttt.W1") for name in names) == len(model.ttt_layers)


def test_fingerprint_follows_every_weight(model):
    before = model.fingerprint()
    with torch.no_grad():
        model.action_out.bias[0] += 1e-6
    assert model.fingerprint() != before


def test_the_identity_of_a_config_is_what_it_says_otherwise_than_its_defaults():
    """So a field that is added later, with the old behaviour as default, leaves contexts and checkpoints readable."""

    @dataclass(frozen=True)
    class Part:
        size: int = 3
        names: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Older:
        width: int
        part: Part = field(default_factory=Part)

    @dataclass(frozen=True)
    class Newer(Older):
        later: bool = True

    def identity(config):
        return {name: value for name, value in config_identity(config).items() if name != "kind"}

    assert identity(Newer(4)) == identity(Older(4)) == {"width": 4}
    assert identity(Newer(4, later=False))["later"] is False
    assert identity(Older(4, Part(names=("a",)))) == {"width": 4, "part": {"kind": "Part", "names": ("a",)}}
    assert VLA(small_config()).fingerprint() != VLA(small_config(state_token=False)).fingerprint()


def test_missing_unexpected_and_misshapen_tensors_are_named(model, tmp_path):
    save_model(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["stray"] = torch.zeros(1)
    tensors["state_in.bias"] = torch.zeros(3)
    del tensors["action_in.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    for text in ("missing: action_in.weight", "unexpected: stray", r"shape of state_in.bias: file (3,), model (16,)"):
        assert text in str(error.value)


def test_many_problems_are_counted(model, tmp_path):
    save_model(model, tmp_path)
    save_file({"stray": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"and {len(unique_tensors(model)) + 1 - 10} more"):
        load_model(tmp_path)


def test_truncated_file_is_an_error(model, tmp_path):
    save_model(model, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or not safetensors"):
        load_model(tmp_path)


def test_a_directory_without_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(tmp_path)

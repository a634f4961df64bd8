"""`sa.load` on made-up directories of openpi and LeRobot: the actions, and what is said when something is wrong."""

import numpy as np
import pytest
import torch

import selfalign as sa
from checkpoints import ACTION_DIM, STATE_DIM, draw_stats, edit_json, golden_for, small_sentencepiece
from checkpoints import write_lerobot as lerobot
from checkpoints import write_openpi as openpi
from selfalign.checkpoint import save_checkpoint
from selfalign.cli import main
from selfalign.commands.convert import ConvertConfig, convert
from selfalign.model.openpi import load_openpi
from selfalign.model.tokenizer import PaliGemmaTokenizer

KINDS = ["pi0", "pi05"]
CAMERAS = {openpi: ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"), lerobot: ("top", "wrist", "side")}
EPS = {openpi: 1e-6, lerobot: 1e-8}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    (folder / "paligemma_tokenizer.model").write_bytes(small_sentencepiece())
    return folder


def raw_observation(cameras, seed=0):
    rng = np.random.default_rng(seed)
    images = {f"observation.images.{c}": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for c in cameras}
    state = rng.normal(size=STATE_DIM).astype(np.float32)
    return {**images, "observation.state": state, "task": "pick cube"}


def by_hand(folder, raw, cameras, words, eps, kind, noise, told=True, **settings):
    """Actions in robot units from the bare model, with the formulas of openpi and LeRobot written out."""
    told = told and kind == "pi05"
    model, stats = load_openpi(folder, **settings), draw_stats()
    state, action = stats["state"], stats["action"]
    if kind == "pi0":
        normalised = (raw["observation.state"] - state["mean"]) / (state["std"] + eps)
    else:
        normalised = (raw["observation.state"] - state["q01"]) / (state["q99"] - state["q01"] + eps) * 2 - 1
    tokenizer = PaliGemmaTokenizer(words, model.config.max_token_len, reads_state=told)
    tokens, mask = tokenizer.encode(["pick cube"], [normalised] if told else None)
    observation = sa.Observation(
        images={
            c: torch.from_numpy(raw[f"observation.images.{c}"]).permute(2, 0, 1)[None] / 127.5 - 1 for c in cameras
        },
        image_masks={c: torch.ones(1, dtype=torch.bool) for c in cameras},
        state=torch.nn.functional.pad(torch.from_numpy(normalised), (0, 32 - STATE_DIM))[None],
        tokens=tokens,
        token_mask=mask,
    )
    sampled = model.sample_actions(observation, noise=noise[None], num_steps=3)[0, :, :ACTION_DIM].numpy()
    if kind == "pi0":
        return sampled * (action["std"] + eps) + action["mean"]
    return (sampled + 1) / 2 * (action["q99"] - action["q01"] + eps) + action["q01"]


def test_a_pi05_may_be_told_no_state(tmp_path, words):
    """openpi's pi05_libero: the prompt is the instruction alone, and stays it through conversions."""
    folder, cameras = openpi(tmp_path / "source", "pi05"), CAMERAS[openpi]
    raw, noise = raw_observation(cameras), torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    expected = by_hand(folder, raw, cameras, words, EPS[openpi], "pi05", noise, told=False, max_token_len=120)
    convert(ConvertConfig(folder, tmp_path / "own", "selfalign", max_token_len=120, discrete_state_input=False))
    convert(ConvertConfig(tmp_path / "own", tmp_path / "again", "openpi"))
    for path, settings in (
        (folder, {"discrete_state_input": False, "max_token_len": 120}),
        (tmp_path / "own", {}),
        (tmp_path / "again", {}),
    ):
        actions = sa.load(path, tokenizer=words, **settings).act(raw, noise=noise, num_steps=3)
        np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=2e-5, err_msg=str(path))
    with pytest.raises(ValueError, match="always tells the state"):
        convert(ConvertConfig(tmp_path / "own", tmp_path / "lerobot", "lerobot"))
    with pytest.raises(ValueError, match="must be true or false, got 'no'"):
        sa.load(folder, discrete_state_input="no")


@pytest.mark.parametrize("write", [openpi, lerobot])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_policy_acts_in_the_robots_units(tmp_path, words, write, kind):
    folder, cameras = write(tmp_path / kind, kind), CAMERAS[write]
    # 16 tokens are too few for pi0.5's prompt; the file's number is overruled.
    policy = sa.load(folder, tokenizer=words, max_token_len=120)
    raw, noise = raw_observation(cameras), torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    actions = policy.act(raw, noise=noise, num_steps=3)
    expected = by_hand(folder, raw, cameras, words, EPS[write], kind, noise, max_token_len=120)
    assert actions.shape == (8, ACTION_DIM) and np.abs(actions).max() > 0.1
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=2e-5)
    assert policy.model.config.cameras == cameras and not policy.settings.rehearsed


def test_both_kinds_hold_the_same_model(tmp_path):
    first, second = (write(tmp_path / name, "pi0") for name, write in (("a", openpi), ("b", lerobot)))
    models = [sa.load(folder).model for folder in (first, second)]
    expected = load_openpi(golden_for("pi0").directory, **golden_for("pi0").settings)
    for name, tensor in expected.named_parameters():
        assert all(torch.equal(model.get_parameter(name), tensor) for model in models), name


# ---- words ---------------------------------------------------------------------------------------------------------


def test_without_tokenizer_everything_works_but_words(tmp_path, words):
    folder = openpi(tmp_path / "pi0", "pi0")
    raw = raw_observation(CAMERAS[openpi])
    with pytest.raises(FileNotFoundError, match=r"paligemma_tokenizer\.model.*sa\.load\(directory, tokenizer=PATH\)"):
        sa.load(folder).act(raw)
    (folder / "paligemma_tokenizer.model").write_bytes((words / "paligemma_tokenizer.model").read_bytes())
    assert sa.load(folder, max_token_len=48).act(raw, num_steps=1).shape == (8, ACTION_DIM)


@pytest.mark.parametrize("command", ["serve", "align --play play --out context.safetensors"])
def test_commands_that_need_words_say_so_at_the_start(tmp_path, monkeypatch, capsys, command):
    folder = openpi(tmp_path / "pi0", "pi0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "selfalign.serve.server.asyncio.run", lambda main: main.close()
    )  # a server that starts, and ends
    assert main([*command.split(), "--checkpoint", str(folder)]) == 2
    told = capsys.readouterr().err
    assert "PaliGemma's tokenizer was not found" in told
    assert f"Then: selfalign {command.split()[0]} --tokenizer PATH" in told


def test_a_wrong_tokenizer_path_is_an_error_at_once(tmp_path):
    folder = openpi(tmp_path / "pi0", "pi0")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        sa.load(folder, tokenizer=tmp_path / "nowhere")


# ---- statistics ----------------------------------------------------------------------------------------------------


def test_openpis_statistics_are_chosen_by_asset(tmp_path):
    folder = openpi(tmp_path / "pi0", "pi0", ("lab/arm", "droid"))
    with pytest.raises(ValueError, match=r"several robots \(droid, lab/arm\): .* asset_id= .*--robot"):
        sa.load(folder)
    chosen = sa.load(folder, asset_id="droid").stats
    np.testing.assert_array_equal(chosen.state.mean, draw_stats(1)["state"]["mean"])
    with pytest.raises(FileNotFoundError, match=r"no ur5/norm_stats\.json; it has droid, lab/arm"):
        sa.load(folder, asset_id="ur5")


def test_a_robot_takes_its_own_of_several_statistics(tmp_path):
    folder = openpi(tmp_path / "pi0", "pi0", ("lab/arm", "droid"))
    own = sa.load(folder, robot="droid").stats
    np.testing.assert_array_equal(own.state.mean, draw_stats(1)["state"]["mean"])
    asked = sa.load(folder, robot="droid", asset_id="lab/arm").stats
    np.testing.assert_array_equal(asked.state.mean, draw_stats(0)["state"]["mean"])
    with pytest.raises(ValueError, match="several robots"):
        sa.load(folder, robot="ur5e")
    only = openpi(tmp_path / "other", "pi0", ("lab/arm",))
    np.testing.assert_array_equal(sa.load(only, robot="droid").stats.state.mean, draw_stats(0)["state"]["mean"])


def test_the_mode_is_that_of_the_kind_unless_the_config_says_otherwise(tmp_path):
    for kind, mode in (("pi0", "zscore"), ("pi05", "quantile")):
        folder = openpi(tmp_path / kind, kind)
        assert sa.load(folder).stats.mode == mode
        change_config(use_quantile_norm=kind == "pi0")(folder)
        assert sa.load(folder).stats.mode != mode


def test_lerobots_mode_comes_from_its_normaliser(tmp_path):
    assert sa.load(lerobot(tmp_path / "a", "pi05", mode="MEAN_STD")).stats.mode == "zscore"


@pytest.mark.parametrize("write", [openpi, lerobot])
def test_a_base_model_without_statistics_opens(tmp_path, words, write):
    no_stats = {"assets": ()} if write is openpi else {"with_stats": False}
    policy = sa.load(write(tmp_path / "base", "pi0", **no_stats), tokenizer=words)
    assert policy.stats is None
    with pytest.raises(ValueError, match="needs the robot's normalisation statistics"):
        policy.act(raw_observation(CAMERAS[write]))


# ---- what is missing or wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, r"not a checkpoint: it has no model\.safetensors$"),
        ("params/_METADATA", "a JAX checkpoint of openpi"),
        ("pretrained_model/config.json", "folder pretrained_model"),
        ("model.safetensors.index.json", "several files"),
        ("adapter_model.safetensors", "LoRA"),
    ],
)
def test_a_directory_without_weights_says_what_to_do(tmp_path, name, message):
    if name is not None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=message):
        sa.load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "policy_preprocessor.json",
        "policy_postprocessor.json",
        "policy_preprocessor_step_1_normalizer_processor.safetensors",
        "model.safetensors",
    ],
)
def test_a_missing_file_of_lerobot_is_named(tmp_path, name):
    folder = lerobot(tmp_path / "pi0", "pi0")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        sa.load(folder)


def change_config(**values):
    return lambda folder: edit_json(folder / "config.json", lambda data: data.update(values))


def change_norm_map(**values):
    def change(data):
        data["steps"][1]["config"]["norm_map"].update(values)

    return lambda folder: edit_json(folder / "policy_preprocessor.json", change)


def change_steps(folder):
    edit_json(folder / "policy_preprocessor.json", lambda data: data.update(steps="none"))


def drop_normaliser(folder):
    edit_json(folder / "policy_postprocessor.json", lambda data: data["steps"].pop())


def swap_statistics(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "policy_postprocessor_step_0.safetensors"
    tensors = load_file(folder / "policy_postprocessor_step_1_unnormalizer_processor.safetensors")
    save_file({**tensors, "action.mean": tensors["action.mean"] + 1}, path)
    edit_json(folder / "policy_postprocessor.json", lambda data: data["steps"][1].update(state_file=path.name))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_config(type="act"), "policy 'act'; only pi0 and pi05"),
        (change_config(type="pi05"), "says 'pi05', but the tensors"),
        (change_config(use_relative_actions=True), "use_relative_actions=True"),
        (change_config(min_period=1e-3, n_obs_steps=2), "min_period=0.001, n_obs_steps=2"),
        (change_norm_map(ACTION="MIN_MAX"), "by MEAN_STD and MIN_MAX; both must be"),
        (change_norm_map(ACTION="MIN_MAX", STATE="MIN_MAX"), "by MIN_MAX; both must be"),
        (change_steps, r"preprocessor\.json is damaged: its steps"),
        (drop_normaliser, "has 0 steps 'unnormalizer_processor'"),
        (swap_statistics, "different statistics of actions"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "truncated or not safetensors"),
    ],
)
def test_lerobot_policies_that_would_act_otherwise_are_refused(tmp_path, damage, message):
    folder = lerobot(tmp_path / "pi0", "pi0")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        sa.load(folder)


def test_quantiles_that_are_not_there_are_missed(tmp_path):
    folder = lerobot(tmp_path / "pi05", "pi05")
    from safetensors.torch import load_file, save_file

    for path in folder.glob("policy_*.safetensors"):
        save_file({n: t for n, t in load_file(path).items() if ".q" not in n}, path)
    with pytest.raises(ValueError, match=r"observation\.state has no quantiles"):
        sa.load(folder)


# ---- saved again ---------------------------------------------------------------------------------------------------


def test_a_loaded_policy_is_saved_with_its_statistics(tmp_path, words):
    policy = sa.load(openpi(tmp_path / "pi0", "pi0"), tokenizer=words, max_token_len=48)
    saved = save_checkpoint(policy, tmp_path / "saved")
    loaded = sa.load(saved, tokenizer=words)
    raw, noise = raw_observation(CAMERAS[openpi]), torch.zeros(8, 32)
    np.testing.assert_array_equal(loaded.act(raw, noise=noise), policy.act(raw, noise=noise))
    with pytest.raises(FileNotFoundError, match="tokenizer=PATH"):
        sa.load(saved).act(raw)
    with pytest.raises(TypeError, match="own checkpoint and takes no head_dim"):
        sa.load(saved, head_dim=16)

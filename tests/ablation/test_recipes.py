"""Every cell of the ablation can be built and learns; what it changes in the training is what it says."""

import dataclasses
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

from align.rehearsing import draw
from selfalign import presets
from selfalign.ablation.recipes import GROUPS, RECIPES, SCALES, base, chosen
from selfalign.ablation.run import AblateConfig
from selfalign.align.rehearsal import Rehearsal, make_objective
from selfalign.bench.plan import Cell
from selfalign.commands.pretrain import TrainingConfig
from selfalign.commands.pretrain_flags import ModelFlags
from selfalign.configs import changed
from selfalign.data.virtual import FrameFeatures, ModelShape, VirtualSources
from selfalign.model.config import VLAConfig
from selfalign.model.cost import meta_model
from selfalign.model.policy import VLA
from selfalign.model.tokenizer import ByteTokenizer
from selfalign.train.step import OptimConfig, make_state, train_step

ROOT = Path(__file__).parents[2]
SNAPSHOTS = Path("data/snapshots")


def recipe(name: str) -> TrainingConfig:
    return changed(base("ablation", ("data/sources",), SNAPSHOTS), RECIPES[name].training)


def small(config: VLAConfig) -> VLAConfig:
    """The same architecture in a few thousand parameters, with one camera of 16 px."""
    heads = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    streams = {name: getattr(config, name) for name in ("vlm", "action", "alignment")}
    tower = replace(config.vision, image_size=16, channels=(8, 8, 8), named=3, depth_width=0, feature_dim=4)
    return replace(
        config,
        **{name: replace(stream, width=16, mlp_dim=16, **heads) for name, stream in streams.items()},
        ttt=replace(config.ttt, num_heads=2, head_dim=8),
        vision=tower,
        cameras=("scene",),
        action_horizon=4,
    )


def one_step(name: str, cache) -> tuple[Rehearsal, dict[str, float]]:
    """Two training steps of a recipe on recordings of noise."""
    torch.manual_seed(0)
    config = recipe(name)
    pretraining, model = config.pretraining(), VLA(small(config.vla()))
    rng, shape = np.random.default_rng(1), model.config
    tokens = rng.normal(size=(cache.num_frames, model.vision.num_tokens, model.vision.token_dim)).astype(np.float16)
    following = rng.normal(size=(cache.num_frames, *model.feature_mean.shape)).astype(np.float32)
    features = FrameFeatures({"scene": tokens}, following)
    sizes = ModelShape(shape.action_horizon, shape.action_dim, shape.state_dim, shape.next_offset)
    sources = VirtualSources(
        cache,
        replace(features, looks=(features,)),
        ByteTokenizer(shape.max_token_len, shape.prompt_merges),
        sizes,
        draw,
        play=pretraining.play,
    )
    slots = pretraining.rehearsal.contrastive.group if name == "contrast" else 2
    rehearsal = replace(pretraining.rehearsal, slots=slots, play_per_slot=2, demonstrations_per_slot=2, widen_steps=0)
    model.vision.requires_grad_(False)
    if pretraining.fixed_alpha:
        for layer in model.ttt_layers:
            layer.alpha.requires_grad_(False)
    objective = make_objective(model.train(), sources, rehearsal)
    state = make_state(model, objective, OptimConfig(warmup_steps=1), 4)
    train_step(state)
    return objective, train_step(state)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns(name: str, small_cache):
    objective, numbers = one_step(name, small_cache)
    assert all(np.isfinite(value) for value in numbers.values())
    # Wherever there is an alignment loss that reads W, rehearsed contexts leave W0.
    if isinstance(objective, Rehearsal):
        moved = max(float(c.abs().max()) for c in objective.coordinates)
        assert (moved > 0) == (name != "baseline")
    if name == "closed":
        assert numbers["ttt/mean_tanh_alpha"] == 0.0
    assert ("loss/contrastive" in numbers) == (name == "contrast")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_built_at_its_size_and_changes_only_what_it_names(name: str):
    config, plain = recipe(name), base("ablation", ("data/sources",), SNAPSHOTS)
    plainly = replace(config.vla(), ttt=replace(config.vla().ttt, meta_learning=False))
    assert sum(parameter.numel() for parameter in meta_model(plainly).parameters()) > 1e6
    told = RECIPES[name].training
    for group in dataclasses.fields(plain):
        ours, theirs = getattr(plain, group.name), getattr(config, group.name)
        if group.name not in told:
            assert ours == theirs
        else:
            differing = {f.name for f in dataclasses.fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)}
            assert differing and differing <= told[group.name].keys()


def off(*losses: str) -> dict:
    return {f"rehearsal.weights.{loss}": 0.0 for loss in losses}


CHANGES: dict[str, dict] = {
    "all": {},
    "baseline": off("ttt", "perception", "dynamics", "inverse"),
    "inverse": off("perception", "dynamics"),
    "dynamics": off("perception", "inverse"),
    "perception": off("dynamics", "inverse"),
    "contrast": {"rehearsal.contrastive.weight": 0.1, "rehearsal.slots": 18},
    "no-ttt-loss": off("ttt"),
    "ttt-loss-1": {"rehearsal.weights.ttt": 1.0},
    "ttt-loss-alone": {"rehearsal.weights.ttt": 1.0, **off("perception", "dynamics", "inverse")},
    "open-perception": {"model.open_perception": True},
    "no-rehearsal": {"rehearsal.scheme": "per_body"},
    "no-rehearsal-512": {"rehearsal.scheme": "per_body", "rehearsal.source_bodies": 512},
    "no-rehearsal-attached": {"rehearsal.scheme": "per_body", "rehearsal.detach": False},
    "global-w": {"rehearsal.scheme": "global"},
    "per-sample-w": {"rehearsal.scheme": "global", "model.ttt.meta_learning": True, "compile": False},
    "inner-loop": {"model.ttt.meta_learning": True, "compile": False},
    "latent-prompt": {
        "rehearsal.scheme": "global",
        "model.prompt_tokens": 16,
        "model.ttt.alpha_init": 0.0,
        "fixed_alpha": True,
    },
    "attached": {"rehearsal.detach": False},
    "closed": {"model.ttt.alpha_init": 0.0, "fixed_alpha": True},
    **{f"span-{rank}": {"model.ttt.span": rank} for rank in (8, 32, 128)},
    **{f"age-{age}": {"rehearsal.max_age": age} for age in (30, 75, 300)},
    "alignment-depth-1": {"model.alignment.depth": 1, "model.alignment.reads": (4,), "model.ttt.positions": (4,)},
    "alignment-depth-2": {"model.alignment.depth": 2, "model.alignment.reads": (3, 4), "model.ttt.positions": (3, 4)},
    "ttt-first": {"model.ttt.positions": (2,)},
    "ttt-last": {"model.ttt.positions": (4,)},
    "ttt-upper": {"model.ttt.positions": (3, 4)},
    **{f"next-{offset}": {"model.next_offset": offset} for offset in (1, 2, 4)},
    "pixels": {"model.next_pixels": 8},
    "stored-features": {},
    **{f"bodies-{n}": {"rehearsal.source_bodies": n} for n in (8, 32, 64, 128, 512, 2048)},
    **{f"play-{n}": {"play.trajectories": n} for n in (1, 2, 4)},
    "play-of-demonstrations": {"play.source": "demonstrations"},
    "units": {"play.unit_width": 1.0},
    **{key: {} for key in ("new-narrow", "new-axes", "new-brisk", "new-demonstrations", "new-little", "new-much")},
}
"""What each recipe changes of what is trained, `PretrainConfig` and (model) `VLAConfig`; what is not here stays."""
MEASURED = {
    "latent-prompt": {"method": "prompt", "settings": {"steps": 300, "learning_rate": 1e-2}},
    "new-narrow": {"motion": "narrow"},
    "new-axes": {"motion": "axes"},
    "new-brisk": {"motion": "brisk"},
    "new-demonstrations": {"motion": "demonstrations"},
    "new-little": {"play": (1, 3)},
    "new-much": {"play": (30, 100)},
}
"""And what they change of what is measured."""


def leaves(value, at: str = "") -> dict:
    """Every value in a config of configs, by its dotted name."""
    if not dataclasses.is_dataclass(value):
        return {at: value}
    names = [f.name for f in dataclasses.fields(value)]
    parts = [leaves(getattr(value, name), f"{at}.{name}" if at else name) for name in names]
    return {name: leaf for part in parts for name, leaf in part.items()}


def trained(config: TrainingConfig) -> dict:
    return {**leaves(config.pretraining()), **leaves(config.vla(), "model")}


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_changes_arrives_in_the_training(name: str):
    plain, ours = trained(base("ablation", ("data/sources",), SNAPSHOTS)), trained(recipe(name))
    assert {key: value for key, value in ours.items() if plain[key] != value} == CHANGES[name]
    measured = replace(Cell("x"), **RECIPES[name].bench)
    assert leaves(measured) == leaves(replace(Cell("x"), **MEASURED.get(name, {})))
    assert RECIPES[name].stored_features == (name == "stored-features")


def test_the_recipe_at_the_shipped_scale_is_the_published_command():
    script = (ROOT / "runs" / "1_pretrain.sh").read_text().replace("\\\n", " ")
    (line,) = [line for line in script.splitlines() if line.startswith("selfalign pretrain")]
    published = tyro.cli(TrainingConfig, args=shlex.split(line)[2:], config=(tyro.conf.OmitArgPrefixes,))
    ours = base("shipped", ("data/sources",), SNAPSHOTS)
    assert replace(ours, out=published.out) == published
    assert SCALES["ablation"].steps * 0.34 <= 15 * 60


def test_what_model_flags_make_of_the_preset():
    tiny = presets.tiny()
    shallow = recipe("alignment-depth-1").vla()
    assert shallow.alignment.vlm_layers() == (4,) and shallow.ttt.positions == (4,)
    assert shallow.action == tiny.action and recipe("all").vla() == tiny
    assert recipe("span-8").vla().ttt.span == 8
    asked = {"next_offset": 2, "next_pixels": 8, "prompt_tokens": 4, "open_perception": True}
    other = replace(tiny, **asked, ttt=replace(tiny.ttt, meta_learning=True))
    assert ModelFlags().applied(other) == other, "what is not asked for is as it was"
    assert ModelFlags(prompt_tokens=0, next_pixels=0).applied(other) == replace(other, prompt_tokens=0, next_pixels=0)
    with pytest.raises(ValueError, match="an action expert of at least as many"):
        changed(recipe("all"), {"model": {"alignment_depth": 4}}).vla()
    with pytest.raises(ValueError, match="next_offset must be 1 to the horizon of 8, got 9"):
        changed(recipe("all"), {"model": {"next_offset": 9}}).vla()


def test_names():
    assert chosen(("losses", "all", "attached")) == [*GROUPS["losses"], "attached"]
    assert "stored-features" not in chosen(()) and len(chosen(())) == len(RECIPES) - 1
    assert all(name in RECIPES for names in GROUPS.values() for name in names)
    with pytest.raises(ValueError, match="no cell everything; there are the groups losses"):
        chosen(("everything",))
    with pytest.raises(ValueError, match="no cell everything"):  # before any data is read
        AblateConfig(Path("out"), cells=("everything",))
    with pytest.raises(ValueError, match="BodyFlags has no setting 'slot'; it has scheme"):
        changed(recipe("all"), {"bodies": {"slot": 1}})

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
from selfalign.ablation.recipes import GROUPS, RECIPES, SCALES, base, changed, chosen
from selfalign.align.rehearsal import Rehearsal, make_objective
from selfalign.commands.pretrain import TrainingConfig
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
    with pytest.raises(ValueError, match="BodyFlags has no slot;"):
        changed(recipe("all"), {"bodies": {"slot": 1}})

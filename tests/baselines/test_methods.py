"""Every method: what may move moves and nothing else, and mistakes are explained."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from align.factory import content_hash, make_play, raw_observation, small_policy
from baselines.factory import QUICK, given, make_demonstrations
from selfalign.align.bank import PlayBank
from selfalign.align.measure import EvalGrid
from selfalign.align.offline import AlignConfig, align
from selfalign.baselines import METHODS, Adapted, demonstrated, fit, pad, prompt
from selfalign.baselines.choices import chosen
from selfalign.baselines.demonstrated import LoraConfig
from selfalign.baselines.descent import Descent
from selfalign.baselines.methods import configured
from selfalign.baselines.samples import action_losses, draw_rows
from selfalign.data.episodes import Episode
from selfalign.data.play import Play
from selfalign.model.losses import LossWeights
from selfalign.policy import Policy
from selfalign.train.parts import part_of


@dataclass(frozen=True)
class World:
    """What there was at first, in numbers."""

    model: dict[str, str]
    gradients: list[bool]
    columns: list[bytes]
    random: bytes

    @classmethod
    def now(cls, policy: Policy, play: Play, demonstrations: list[Episode]) -> "World":
        columns = [v.tobytes() for e in [*play.episodes, *demonstrations] for v in e.columns().values()]
        flags = [p.requires_grad for p in policy.model.parameters()]
        return cls(content_hash(policy.model), flags, columns, torch.get_rng_state().numpy().tobytes())


@pytest.fixture(scope="module")
def fitted() -> dict[str, Adapted]:
    """Every method, one after another on the same policy and data, each of which leaves them as they were."""
    pytest.importorskip("peft")
    world, adapted = given(), {}
    for name, config in QUICK.items():
        before = World.now(*world)
        adapted[name] = fit(name, *world, config=config)
        assert World.now(*world) == before, f"{name} changed what it was given"
    return adapted


def moved(adapted: Adapted, policy: Policy) -> set[str]:
    """Names of the tensors that differ from the given policy's; new ones among them."""
    before, after = content_hash(policy.model), content_hash(adapted.policy.model)
    assert before.keys() <= after.keys()
    return {name for name, value in after.items() if before.get(name) != value}


def act(policy: Policy, context) -> np.ndarray:
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
    return policy.act(raw_observation(make_demonstrations(1)[0]), context, noise=noise)


@pytest.mark.parametrize("name", QUICK)
def test_what_comes_back_acts_and_can_be_written_down(fitted, name):
    adapted, play = fitted[name], given()[1]
    assert act(adapted.policy, adapted.context).shape == (4, 3)
    assert adapted.context.info.norm_stats == play.stats().to_dict()
    assert adapted.context.info.embodiment == "toy"
    assert adapted.context.info.fingerprint == adapted.policy.fingerprint() == adapted.policy.model.fingerprint()
    assert adapted.seconds > 0
    # A config that was written down is read again.
    told = json.loads(json.dumps({"config": adapted.config, "history": adapted.history}, allow_nan=False))
    method = METHODS[name]
    assert configured(method, told["config"]) == configured(method, QUICK[name], chosen(name))


def test_frozen_is_the_prior(fitted):
    policy, adapted = small_policy(), fitted["frozen"]
    assert moved(adapted, policy) == set()
    assert adapted.context.distance(policy.model.prior()) == 0
    assert adapted.bytes_stored == 0


def test_selfalign_is_align(fitted):
    policy, play, _ = given()
    expected = align(policy, play, config=AlignConfig(steps=2), progress=False).context
    adapted = fitted["selfalign"]
    assert moved(adapted, policy) == set()
    assert adapted.context.distance(expected) == 0
    assert adapted.context.distance(policy.model.prior()) > 0
    assert adapted.bytes_stored == sum(4 * t.numel() for t in policy.model.prior().tensors)


def test_pad_moves_the_tower_and_its_head(fitted):
    policy, play, _ = given()
    names = moved(fitted["pad"], policy)
    assert {part_of(name) for name in names} == {"vision", "alignment"}
    alone = fit("pad", policy, play, config={**QUICK["pad"], "head": False})
    names = moved(alone, policy)
    assert {part_of(name) for name in names} == {"vision"}
    assert any(name.startswith("vision.") for name in names) and any(name.startswith("image_proj.") for name in names)
    tower = [*policy.model.vision.parameters(), *policy.model.image_proj.parameters()]
    assert alone.bytes_stored == fitted["pad"].bytes_stored == sum(4 * p.numel() for p in tower)


def test_prompt_adds_a_prompt_and_moves_it(fitted):
    policy, adapted = small_policy(), fitted["prompt"]
    assert moved(adapted, policy) == {"mixture.prompt.k", "mixture.prompt.v"}
    assert adapted.bytes_stored == 2 * 4 * (2 * 3 * 1 * 8)  # k and v: layers, tokens, key/value heads, head size
    fresh = fit("prompt", policy, given()[1], config={**QUICK["prompt"], "steps": 0})
    assert moved(fresh, policy) == {"mixture.prompt.k", "mixture.prompt.v"}
    start, end = (a.policy.model.mixture.prompt for a in (fresh, adapted))
    assert start is not None and end is not None and not torch.equal(start.k, end.k)
    assert adapted.history["held_out"][0] == fresh.history["held_out"][0]


def test_a_prompt_is_judged_on_play_that_it_was_not_fitted_to_by_the_checkpoints_weights():
    policy, play = small_policy(), given()[1]
    weights = LossWeights(perception=0.2, dynamics=1.5, inverse=0.7, ttt=0.3)
    policy = replace(policy, settings=replace(policy.settings, weights=weights))
    still = fit("prompt", policy, play, config={**QUICK["prompt"], "steps": 0, "holdout": 0.5})
    own, stats = still.policy, play.stats()
    losses = []
    for part in play.split(0.5, 0):
        grid = EvalGrid.build(PlayBank.build(own, part, stats))
        losses.append(grid.losses(own.model, own.model.prior(), weights).total)
    assert still.history["held_out"] == [pytest.approx(losses[1], rel=1e-5)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_a_prompt_that_the_model_was_trained_with_is_where_the_fit_starts(fitted):
    prompted, play = fitted["prompt"].policy, given()[1]
    again = fit("prompt", prompted, play, config={**QUICK["prompt"], "tokens": 7, "steps": 0})
    assert moved(again, prompted) == set()


def test_lora_moves_matrices_of_the_blocks_by_low_rank_updates(fitted):
    policy, adapted = small_policy(), fitted["lora"]
    names = moved(adapted, policy)
    assert {part_of(name) for name in names} == {"vlm", "action"}
    assert names <= {f"{name}.weight" for name, m in policy.model.named_modules() if isinstance(m, nn.Linear)}
    assert all(".blocks." in name for name in names)
    before, after = policy.model.state_dict(), adapted.policy.model.state_dict()
    assert {int(torch.linalg.matrix_rank(after[n] - before[n], atol=1e-6)) for n in names} <= {1, 2}
    # A of [rank, in] and B of [out, rank] for each matrix.
    assert adapted.bytes_stored == sum(4 * 2 * sum(before[name].shape) for name in names)


def test_finetuning_moves_what_acts(fitted):
    policy, play, demonstrations = given()
    names = moved(fitted["finetune"], policy)
    assert {part_of(name) for name in names} == {"vision", "vlm", "action", "ttt", "prior"}
    assert not any(name.startswith("vision.") for name in names)  # the connector alone
    assert fitted["finetune"].context.distance(policy.model.prior()) > 0  # W0 is a weight like the others
    whole = fit("finetune", policy, play, demonstrations, config={**QUICK["finetune"], "tower": True})
    assert any(name.startswith("vision.") for name in moved(whole, policy))


@pytest.mark.parametrize(
    ("name", "config"),
    [("pad", {"steps": 0}), ("prompt", {"tokens": 0}), ("lora", {"steps": 0}), ("finetune", {"steps": 0})],
)
def test_without_a_step_a_method_is_the_frozen_policy(fitted, name, config):
    idle = fit(name, *given(), config={**QUICK[name], **config})
    np.testing.assert_array_equal(
        act(idle.policy, idle.context), act(fitted["frozen"].policy, fitted["frozen"].context)
    )


def test_demonstrations_lower_the_action_loss(fitted):
    policy, play, demonstrations = given()
    settings = {"steps": 12, "learning_rate": 1e-2, "batch_size": 16}
    learned = fit("finetune", policy, play, demonstrations, config=settings)
    stats = play.stats()
    before, after = (
        action_losses(a.policy, demonstrations, stats, {"own": a.context}, seed=9)["own"]
        for a in (fitted["frozen"], learned)
    )
    assert after < 0.9 * before


def test_a_seed_gives_the_same_fit_and_another_one_another():
    policy, play, demonstrations = given()
    fits = [fit("finetune", policy, play, demonstrations, seed=s, config=QUICK["finetune"]) for s in (0, 0, 1)]
    first, again, other = (act(a.policy, a.context) for a in fits)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_demonstrations_alone_give_the_statistics():
    policy, _, demonstrations = given()
    adapted = fit("finetune", policy, None, demonstrations, config=QUICK["finetune"])
    states = np.concatenate([e.state for e in demonstrations])
    assert adapted.context.info.norm_stats is not None
    np.testing.assert_allclose(adapted.context.info.norm_stats["state"]["mean"], states.mean(0), atol=1e-6)
    assert adapted.context.info.norm_stats.get("displacements") is None, "nobody has said what moves the arm"
    told = {"name": "mine", "action_space": {"kind": "ee_delta"}}
    described = fit("finetune", policy, None, demonstrations, config=QUICK["finetune"], embodiment=told).context.info
    assert described.embodiment == "mine"
    assert described.norm_stats is not None and described.norm_stats["displacements"] == [True, True, False]


def test_methods_without_demonstrations_do_not_see_any():
    policy, play, _ = given()
    shown = fit("frozen", policy, play, [replace(make_demonstrations(1)[0], action=np.full((12, 3), np.nan))])
    assert shown.context.info.norm_stats == play.stats().to_dict()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rl", {}, "no method 'rl'; there are: frozen, selfalign, pad, prompt, lora, finetune, nearest, encoder"),
        ("pad", {"config": {"step": 3}}, "PadConfig has no setting 'step'; it has steps"),
        ("pad", {"config": {"steps.x": 3}}, "no setting 'steps.x'"),
        ("pad", {"config": {"learning_rate": 0.0}}, r"refused: learning_rate=0.0 \(above 0\)"),
        ("pad", {"config": LoraConfig()}, "expected PadConfig or a mapping, got LoraConfig"),
        ("prompt", {"play": None}, "prompt needs play of the body"),
        ("prompt", {"play": make_play(3, 4)}, "too short: a transition needs 5 frames"),
        ("lora", {"demonstrations": []}, "none was given: give at least one"),
        ("finetune", {"demonstrations": make_demonstrations(2, 4)}, "too short: a transition needs 5 frames"),
        ("finetune", {"demonstrations": make_demonstrations(2, task=" ")}, "instruction; those at 0, 1 have none"),
        ("encoder", {}, "give either the `path` of an encoder"),
    ],
)
def test_mistakes_are_explained(name, change, message):
    policy, play, demonstrations = given()
    change = {"play": play, "demonstrations": demonstrations, **change}
    with pytest.raises(ValueError, match=message):
        fit(name, policy, change.pop("play"), change.pop("demonstrations"), **change)


def test_demonstrations_of_another_body_than_the_play_are_refused():
    policy, play, demonstrations = given()
    wider = [replace(e, action=np.repeat(e.action, 2, axis=1)[:, :5]) for e in demonstrations]
    with pytest.raises(ValueError, match="have 5 action dimensions, the play has 3"):
        fit("finetune", policy, play, wider, config=QUICK["finetune"])


def test_every_search_space_draws_settings_that_the_method_takes():
    rng = np.random.default_rng(0)
    for method in METHODS.values():
        for _ in range(5):
            drawn = {name: draw(rng) for name, draw in method.search.items()}
            config = configured(method, drawn)
            assert json.loads(json.dumps(drawn)) == drawn
            for name, value in drawn.items():
                target = config
                for part in name.split("."):
                    target = getattr(target, part)
                assert target == value


def test_settings_within_settings_may_be_read_from_json():
    config = configured(METHODS["selfalign"], {"weights": {"perception": 0.0}, "betas": [0.9, 0.99]})
    assert config == AlignConfig(weights=LossWeights(perception=0.0), betas=(0.9, 0.99))
    assert configured(METHODS["selfalign"], {"weights": None}) == AlignConfig()
    with pytest.raises(ValueError, match="LossWeights has no setting 'percepton'"):
        configured(METHODS["selfalign"], {"weights": {"percepton": 0.0}})
    assert configured(METHODS["encoder"], {"training": {"rank": 16}}).training.rank == 16


@pytest.mark.parametrize(
    ("name", "module", "settings"),
    [
        ("pad", pad, {"patience": 2}),
        ("prompt", prompt, {"patience": 2}),
        ("lora", demonstrated, {}),
        ("finetune", demonstrated, {}),
    ],
)
def test_a_method_descends_as_its_settings_say(name, module, settings, monkeypatch):
    if name == "lora":
        pytest.importorskip("peft")
    told, descend = [], module.descend

    def spy(parameters, loss_of, plan, **rest):
        told.append(plan)
        return descend(parameters, loss_of, plan, **rest)

    def rows(count, size, generator):
        told.append(size)
        return draw_rows(count, size, generator)

    monkeypatch.setattr(module, "descend", spy)
    monkeypatch.setattr(module, "draw_rows", rows)
    fit(name, *given(), config={**QUICK[name], "steps": 1, "learning_rate": 3e-4, "batch_size": 3, **settings})
    assert told == [Descent(1, 3e-4, **settings), 3]


def test_updates_of_lora_are_scaled_by_alpha_over_rank():
    """Adam's first step is as large whatever the gradient: only the scale tells the updates apart."""
    pytest.importorskip("peft")
    policy, play, demonstrations = given()
    before, moved = policy.model.state_dict(), []
    for alpha in (4, 12):
        config = {"rank": 2, "alpha": alpha, "steps": 1, "batch_size": 8}
        after = fit("lora", policy, play, demonstrations, config=config).policy.model.state_dict()
        moved.append(torch.cat([(after[name] - before[name]).flatten() for name in before]))
    assert moved[0].any()
    torch.testing.assert_close(moved[1], 3 * moved[0], rtol=1e-2, atol=1e-5)


def test_demonstrations_are_normalised_by_the_play(monkeypatch):
    policy, _, demonstrations = given()
    play, seen, read = make_play(5, 14, scale=3.0), [], demonstrated.demonstrated

    def spy(policy, episodes, stats):
        seen.append(read(policy, episodes, stats))
        return seen[-1]

    monkeypatch.setattr(demonstrated, "demonstrated", spy)
    fit("finetune", policy, play, demonstrations, config=QUICK["finetune"])
    first = play.stats().normalize_action(demonstrations[0].action[:4])
    np.testing.assert_allclose(seen[0].actions.values[0, :, :3].numpy(), first, rtol=1e-5, atol=1e-6)

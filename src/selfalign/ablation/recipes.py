"""The cells of the ablation by name: each says what it changes in the recipe of the shipped checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from selfalign.bench.plan import HEADLINE
from selfalign.commands.pretrain import TrainingConfig
from selfalign.commands.pretrain_flags import BodyFlags, LossFlags, MachineFlags, OptimiserFlags, RecordingFlags
from selfalign.sim.regions import Scenario

Changes = Mapping[str, Any]
"""Fields of a frozen config and their new values; of a config within it, the same again."""
ScaleName = Literal["ablation", "shipped"]


@dataclass(frozen=True)
class Scale:
    """How long a recipe trains, and what is measured of it."""

    steps: int
    widen_steps: int
    bodies: int
    episodes: int
    play: tuple[int, ...]
    scenarios: tuple[Scenario, ...]


SCALES: dict[ScaleName, Scale] = {
    "ablation": Scale(2_500, 750, bodies=8, episodes=10, play=(10,), scenarios=("camera", "action")),
    "shipped": Scale(10_000, 3_000, bodies=12, episodes=20, play=(20,), scenarios=HEADLINE),
}
""""ablation": two recipes train in 25 minutes, a core each. "shipped": that of `runs/1_pretrain.sh`."""


@dataclass(frozen=True)
class Recipe:
    """One cell of the ablation."""

    about: str
    """What it is, for tables."""
    training: Changes = field(default_factory=dict)
    """Of `TrainingConfig`."""
    bench: Changes = field(default_factory=dict)
    """Of the benchmark's `Cell`s."""
    stored_features: bool = False
    """It needs features that `selfalign features` has stored."""


def base(scale: ScaleName, data: tuple[str, ...], snapshots: Path | None) -> TrainingConfig:
    """What every recipe starts from: the command of the shipped checkpoint, at a scale."""
    chosen = SCALES[scale]
    return TrainingConfig(
        preset="tiny",
        snapshots=snapshots,
        steps=chosen.steps,
        recordings=RecordingFlags(data=data),
        bodies=BodyFlags(
            widen_steps=chosen.widen_steps,
            context_decay_steps=30.0,
            play_per_slot=6,
            demonstrations_per_slot=10,
            reach_weight=10.0,
        ),
        losses=LossFlags(lambda_action=4.0, lambda_grounding=20.0),
        optimiser=OptimiserFlags(learning_rate=2.5e-3, pointing_steps=6000),
        machine=MachineFlags(compile=True),
    )


def _losses(**weights: float) -> Changes:
    """Alignment losses that are not named are off."""
    off = dict.fromkeys(("lambda_ttt", "lambda_perception", "lambda_dynamics", "lambda_inverse"), 0.0)
    return {"losses": {**off, **{f"lambda_{name}": value for name, value in weights.items()}}}


TTT = 0.1
"""The weight of L_ttt in the shipped recipe, kept wherever there is an alignment loss."""

LOSSES = {
    "all": Recipe("the shipped recipe: three alignment losses, rehearsed"),
    "baseline": Recipe("no alignment loss: the policy sees as many bodies, and nothing tells them apart", _losses()),
    "inverse": Recipe("inverse dynamics alone", _losses(inverse=1.0, ttt=TTT)),
    "dynamics": Recipe("dynamics alone", _losses(dynamics=1.0, ttt=TTT)),
    "perception": Recipe("perception alone", _losses(perception=1.0, ttt=TTT)),
    # Groups of a body, its recoloured twin and four negatives: 18 slots, not 16.
    "contrast": Recipe(
        "all of them and the contrastive loss", {"losses": {"lambda_contrastive": 0.1}, "bodies": {"slots": 18}}
    ),
    "no-ttt-loss": Recipe("without L_ttt", {"losses": {"lambda_ttt": 0.0}}),
    "ttt-loss-1": Recipe("L_ttt weighs as much as the others", {"losses": {"lambda_ttt": 1.0}}),
    "ttt-loss-alone": Recipe("L_ttt alone", _losses(ttt=1.0)),
    "open-perception": Recipe("perception sees all blocks, which leaks labels", {"model": {"open_perception": True}}),
}
"""Which losses earn their keep."""

CONTEXTS = {
    "no-rehearsal": Recipe("one W for each of 64 source bodies, without rehearsal", {"bodies": {"scheme": "per_body"}}),
    "no-rehearsal-512": Recipe(
        "one W for each of 512 source bodies, without rehearsal",
        {"bodies": {"scheme": "per_body", "source_bodies": 512}},
    ),
    "no-rehearsal-attached": Recipe(
        "one W for each of 64 source bodies, which the action loss moves too",
        {"bodies": {"scheme": "per_body", "detach": False}},
    ),
    "global-w": Recipe("one W for all", {"bodies": {"scheme": "global"}}),
    "per-sample-w": Recipe(
        "one W for all, which each sample moves within the forward, here and as it acts",
        {"bodies": {"scheme": "global"}, "model": {"meta_learning": True}, "machine": {"compile": False}},
    ),
    "inner-loop": Recipe(
        "rehearsed, and each sample moves W within the forward",
        {"model": {"meta_learning": True}, "machine": {"compile": False}},
    ),
    # As TTT-VLA does (arXiv 2606.03127): the prompt learns with the policy, by the losses that will fit it.
    "latent-prompt": Recipe(
        "W is not read; a latent prompt, one for all, is moved by every loss and fitted to play in its place",
        {"bodies": {"scheme": "global"}, "model": {"prompt_tokens": 16, "alpha": 0.0, "fixed_alpha": True}},
        {"method": "prompt", "settings": {"steps": 300, "learning_rate": 1e-2}},
    ),
    "attached": Recipe("the action loss moves the contexts too", {"bodies": {"detach": False}}),
    "closed": Recipe("alpha = 0: W is not read", {"model": {"alpha": 0.0, "fixed_alpha": True}}),
    **{
        f"span-{rank}": Recipe(f"contexts in a span of {rank} directions", {"bodies": {"span": rank}})
        for rank in (8, 32, 128)
    },
    **{
        f"age-{age}": Recipe(f"slots live for {age} steps at most", {"bodies": {"max_age": age}})
        for age in (30, 75, 300)
    },
}
"""How W is treated."""

ARCHITECTURE = {
    **{
        f"alignment-depth-{depth}": Recipe(
            f"an alignment expert of {depth} layers, and TTT layers beside those", {"model": {"alignment_depth": depth}}
        )
        for depth in (1, 2)
    },
    "ttt-first": Recipe("one TTT layer, the first of three", {"model": {"ttt_positions": (2,)}}),
    "ttt-last": Recipe("one TTT layer, the last of three", {"model": {"ttt_positions": (4,)}}),
    "ttt-upper": Recipe("two TTT layers, the last of three", {"model": {"ttt_positions": (3, 4)}}),
    **{
        f"next-{offset}": Recipe(
            f"the next observation is that after {offset} steps, not 8", {"model": {"next_offset": offset}}
        )
        for offset in (1, 2, 4)
    },
    "pixels": Recipe("next observations told by pictures of 8 x 8 pixels", {"model": {"next_pixels": 8}}),
    "stored-features": Recipe("next observations told by stored features, such as DINOv2's", stored_features=True),
}
"""What is built, and what the next observation is."""

DATA = {
    **{
        f"bodies-{count}": Recipe(f"{count} fixed source bodies", {"bodies": {"source_bodies": count}})
        for count in (8, 32, 64, 128, 512, 2048)
    },
    **{
        f"play-{count}": Recipe(
            f"source bodies are rehearsed on {count} of 8 trajectories", {"bodies": {"play_trajectories": count}}
        )
        for count in (1, 2, 4)
    },
    "play-of-demonstrations": Recipe(
        "source bodies are rehearsed on transitions of demonstrations", {"bodies": {"play_of": "demonstrations"}}
    ),
    "units": Recipe("bodies are read in units that need not be those of their play", {"bodies": {"unit_width": 1.0}}),
    "new-narrow": Recipe("new bodies play in 0.3 of the workspace", bench={"motion": "narrow"}),
    "new-axes": Recipe("new bodies play as `selfalign play --robot` moves real ones", bench={"motion": "axes"}),
    "new-brisk": Recipe("new bodies play like that, in its brisk tempo", bench={"motion": "brisk"}),
    "new-demonstrations": Recipe("new bodies play by doing the task", bench={"motion": "demonstrations"}),
    "new-little": Recipe("new bodies play for 1 and 3 trajectories", bench={"play": (1, 3)}),
    "new-much": Recipe("new bodies play for 30 and 100 trajectories", bench={"play": (30, 100)}),
}
"""How many bodies, how much play, and of what kind."""

RECIPES: dict[str, Recipe] = {**LOSSES, **CONTEXTS, **ARCHITECTURE, **DATA}
GROUPS: dict[str, tuple[str, ...]] = {
    "losses": tuple(LOSSES),
    "contexts": tuple(CONTEXTS),
    "architecture": tuple(name for name in ARCHITECTURE if name != "stored-features"),
    "data": tuple(DATA),
    "headline": ("all", "baseline", "no-rehearsal", "no-rehearsal-512", "global-w", "attached"),
}
"""Names that stand for several cells; "headline" is what is repeated at the shipped checkpoint's scale."""


def chosen(names: tuple[str, ...]) -> list[str]:
    """Cells by name or by group, each once; none: all but what needs stored features.

    Raises:
        ValueError: an unknown name.
    """
    if not names:
        return [name for name, recipe in RECIPES.items() if not recipe.stored_features]
    unknown = [name for name in names if name not in RECIPES and name not in GROUPS]
    if unknown:
        raise ValueError(
            f"no cell {', '.join(unknown)}; there are the groups {', '.join(GROUPS)} and the cells {', '.join(RECIPES)}"
        )
    return list(dict.fromkeys(cell for name in names for cell in GROUPS.get(name, (name,))))

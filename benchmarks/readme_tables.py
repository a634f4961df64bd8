"""Writes the tables of results of the READMEs and docs/findings.md from benchmarks/results: no number is typed by hand.

python benchmarks/readme_tables.py
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean

from page_ablations import measured

from selfalign.bench.plan import HEADLINE
from selfalign.bench.tables import drop, percent
from selfalign.report.reading import read_cells
from selfalign.report.results import CellResult
from selfalign.sim.tasks import KINDS

ROOT = Path(__file__).parents[1]
COLUMNS = ("before", "aligned", "oracle")
HEADLINE_NOW, AS_TRAINED = "matrix_headline_seed2.json", "matrix_headline_seed1.json"
"""The shipped checkpoint, and the same acting at speed 1 and temperature 1, on other bodies: nobody had looked at
either's before they were measured."""
STALE = "matrix_stale_seed1.json"
"""Those that act as trained, with the contexts of before they changed."""
TEMPO = "matrix_play_tempo.json"
"""How bodies play, as the shipped checkpoint acts."""
MOTIONS = {
    "free": "the tip is led about, as in all other tables",
    "brisk": "by the axes, `--tempo brisk`",
    "axes": "by the axes, calmly (the default)",
}
SEEDS, OTHER_SEEDS = "matrix_training_seeds.json", (1, 2)
"""The shipped recipe, trained again with other seeds, on the bodies of the headline."""
ABLATIONS = (
    "ablation.json",
    "ablation_contexts.json",
    "ablation_parts.json",
    "ablation_leak.json",
    "ablation_enough.json",
)
CONTEXTS = {
    "all": "rehearsed, new bodies all the time (shipped)",
    "bodies-64": "rehearsed, 64 fixed bodies",
    "bodies-8": "rehearsed, 8 fixed bodies",
    "no-rehearsal-512": "learned, one for each of 512 bodies",
    "no-rehearsal": "learned, one for each of 64 bodies",
    "no-rehearsal-attached": "learned, 64 bodies, moved by the action loss too",
    "attached": "rehearsed, moved by the action loss too",
    "global-w": "one for all bodies",
}
"""Recipes of the ablation, told in words."""
WAYS = ("aligned", "pad", "prompt", "nearest", "encoder", "lora", "finetune")
ENGLISH = {
    "camera": "camera",
    "action": "action frame",
    "robot": "arm (UR5e)",
    "all": "camera, frame and arm at once",
    "reach": "reach",
    "push": "push",
    "lift": "lift",
}
WORDS: dict[str, dict[str, str]] = {
    "README.md": {
        **ENGLISH,
        "headline": ("| unseen | task | before | aligned | seen bodies | aligned / seen | aligned, as trained |"),
        "demo": "| unseen | before | after | loss on held-out play | loss, random update | align |",
    },
    "docs/findings.md": {
        **ENGLISH,
        "contexts": "| contexts in pretraining | unseen cameras | unseen action frames | bodies of seen kinds |",
        "play": "| play | unseen cameras | unseen action frames |",
        "stale": "| what changed | with what was aligned before | aligned again |",
        "luck": "| unseen | task | shipped (seed 0) | seed 1 | seed 2 | aligned / oracle |",
        "ways": (
            "| unseen | aligned | PAD | latent prompt | nearest of 60 stored contexts | context encoder "
            "| LoRA, 20 shown | fine-tuning, 20 shown |"
        ),
    },
    "README.zh.md": {
        "camera": "相机",
        "action": "动作坐标系",
        "robot": "机械臂（UR5e）",
        "all": "相机、坐标系与机械臂同时",
        "reach": "到达",
        "push": "推",
        "lift": "抬起",
        "headline": ("| 未见过的 | 任务 | 对齐前 | 对齐后 | 见过的身体 | 对齐后 / 见过的身体 | 对齐后，照训练时行动 |"),
        "demo": "| 未见过的 | 对齐前 | 对齐后 | 留出的玩耍数据上的损失 | 随机更新 | 对齐用时 |",
    },
}
"""What the tables of each page say, and their first lines, by which they are found."""


def headline_rows(results: Path, words: Mapping[str, str]) -> Iterator[str]:
    """Success on unseen bodies, in the order of tasks and scenarios."""
    now, as_trained = (_by_what(read_cells([results / name])) for name in (HEADLINE_NOW, AS_TRAINED))
    for task, scenario in product(KINDS, HEADLINE):
        first, second = now[task, scenario], as_trained[task, scenario]
        found = [first.success(name).percent() for name in COLUMNS]
        found[COLUMNS.index("aligned")] = f"**{found[COLUMNS.index('aligned')]}**"
        found += [first.of_oracle("aligned").short(), second.success("aligned").percent()]
        yield f"| {words[scenario]} | {words[task]} | {' | '.join(found)} |"


def context_rows(results: Path, _: Mapping[str, str]) -> Iterator[str]:
    """How contexts come about in pretraining, and reaching after aligning: the ablation's files."""
    found = measured({path: json.loads(path.read_text()) for path in (results / name for name in ABLATIONS)})
    for recipe, told in CONTEXTS.items():
        camera, action = (found[recipe][scenario] for scenario in ("camera", "action"))
        unseen = [cell.success("aligned").percent() for cell in (camera, action)]
        seen = ", ".join(f"{100 * cell.success('oracle').value:.0f}" for cell in (camera, action))
        yield f"| {told} | {' | '.join(unseen)} | {seen} % |"


def play_rows(results: Path, _: Mapping[str, str]) -> Iterator[str]:
    """Reaching, pushing and lifting of the same bodies, after other motion in play: `matrix_play_tempo.json`."""
    cells = read_cells([results / name for name in (HEADLINE_NOW, TEMPO)])
    for motion, told in MOTIONS.items():
        columns = []
        for scenario in ("camera", "action"):
            own = [cell for cell in cells if cell.settings["scenario"] == scenario]
            played = {task: _with(own, task, motion) for task in KINDS}
            few = {row["name"] for row in _with(own, KINDS[0], "brisk").rows}
            values = [_mean(cell, few) for cell in played.values()]
            columns.append(f"{' / '.join(f'{100 * value:.0f}' for value in values)} %")
        yield f"| {told} | {' | '.join(columns)} |"


def _with(cells: Sequence[CellResult], task: str, motion: str) -> CellResult:
    told = {"task": task, "motion": motion}
    return next(cell for cell in cells if all(cell.settings[name] == value for name, value in told.items()))


def _mean(cell: CellResult, bodies: Collection[str]) -> float:
    """Success after aligning of some of its bodies."""
    return mean(row["success"]["aligned"]["value"] for row in cell.rows if row["name"] in bodies)


def stale_rows(results: Path, words: Mapping[str, str]) -> Iterator[str]:
    """Reaching with what was aligned before a body changed, and aligned again: `matrix_stale_seed1.json`."""
    stale, again = (_by_what(read_cells([results / name])) for name in (STALE, AS_TRAINED))
    for scenario in HEADLINE:
        found = stale["reach", scenario].success("stale"), again["reach", scenario].success("aligned")
        yield f"| {words[scenario]} | {' | '.join(one.percent() for one in found)} |"


def luck_rows(results: Path, words: Mapping[str, str]) -> Iterator[str]:
    """Success after aligning of three trainings, and its share of their own oracles: `matrix_training_seeds.json`."""
    again = read_cells([results / SEEDS])
    own = [[cell for cell in again if cell.name.startswith(f"all/{seed}:")] for seed in OTHER_SEEDS]
    trainings = [_by_what(cells) for cells in (read_cells([results / HEADLINE_NOW]), *own)]
    for task, scenario in product(KINDS, HEADLINE):
        cells = [training[task, scenario] for training in trainings if (task, scenario) in training]
        if len(cells) < len(trainings):
            continue  # not measured of all of them
        found = [cell.success("aligned").percent() for cell in cells]
        shares = ", ".join(f"{cell.of_oracle('aligned').value:.2f}" for cell in cells)
        yield f"| {words[scenario]} | {words[task]} | {' | '.join(found)} | {shares} |"


def _by_what(cells: Sequence[CellResult]) -> dict[tuple[str, str], CellResult]:
    return {(cell.settings["task"], cell.settings["scenario"]): cell for cell in cells}


def way_rows(results: Path, words: Mapping[str, str]) -> Iterator[str]:
    """Aligning beside other ways to the same bodies: `matrix_baselines.json` and `matrix_nearest.json`."""
    ways, stored = (_by_what(read_cells([results / f"matrix_{name}.json"])) for name in ("baselines", "nearest"))
    for scenario in HEADLINE:
        cells = {**dict.fromkeys(WAYS, ways["reach", scenario]), "nearest": stored["reach", scenario]}
        yield f"| {words[scenario]} | {' | '.join(cells[name].success(name).percent() for name in WAYS)} |"


def demo_rows(results: Path, words: Mapping[str, str]) -> Iterator[str]:
    """One body of each scenario: `demo_tiny.json`."""
    for row in json.loads((results / "demo_tiny.json").read_text())["bodies"]:
        verdict, success = row["verdict"], row["success"]
        cells = (
            words[row["scenario"]],
            percent(success["before"]),
            percent(success["aligned"]),
            drop(verdict),
            f"{verdict['null']:.2f}",
            f"{row['seconds']['align']:.0f} s",
        )
        yield f"| {' | '.join(cells)} |"


def with_tables(text: str, results: Path, words: Mapping[str, str]) -> str:
    """A page with its tables anew.

    Raises:
        ValueError: it has no line that begins one of them.
    """
    for name, rows in ROWS.items():
        if name not in words:
            continue  # the page has no such table
        lines, head = text.split("\n"), words[name]
        if head not in lines:
            raise ValueError(f"no line {head!r} in the page")
        begin = lines.index(head)
        end = next(index for index in range(begin, len(lines)) if not lines[index].startswith("|"))
        rule = "|" + "---|" * (head.count("|") - 1)
        text = "\n".join([*lines[:begin], head, rule, *rows(results, words), *lines[end:]])
    return text


ROWS: Mapping[str, Callable[[Path, Mapping[str, str]], Iterator[str]]] = {
    "headline": headline_rows,
    "contexts": context_rows,
    "play": play_rows,
    "stale": stale_rows,
    "luck": luck_rows,
    "ways": way_rows,
    "demo": demo_rows,
}
"""What each table holds below its first line."""


def main() -> None:
    """Writes the pages."""
    for name, words in WORDS.items():
        page = ROOT / name
        page.write_text(
            with_tables(page.read_text(encoding="utf-8"), ROOT / "benchmarks/results", words), encoding="utf-8"
        )
        print(f"{name}: written")


if __name__ == "__main__":
    main()

"""Writes the tables of results in README.md and README.zh.md from benchmarks/results: no number there is typed by hand.

python benchmarks/readme_tables.py
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfalign.bench.stats import Interval

ROOT = Path(__file__).parents[1]
SCENARIOS = ("camera", "action", "robot", "all", "joint")
TASKS = ("reach", "push", "lift")
COLUMNS = ("before", "after_10", "aligned", "random", "swap", "oracle")
WORDS: dict[str, dict[str, str]] = {
    "README.md": {
        "camera": "camera",
        "action": "action frame",
        "robot": "arm (UR5e)",
        "all": "camera, frame and arm at once",
        "joint": "joint order (joint control)",
        "reach": "reach",
        "push": "push",
        "lift": "lift",
        "adapt": "| unseen | task | before | after 10 steps | aligned | random update | another's context | oracle |",
        "demo": "| unseen | before | after | loss on held-out play | random update | align |",
    },
    "README.zh.md": {
        "camera": "相机",
        "action": "动作坐标系",
        "robot": "机械臂（UR5e）",
        "all": "相机、坐标系与机械臂同时",
        "joint": "关节顺序（关节控制）",
        "reach": "到达",
        "push": "推",
        "lift": "抬起",
        "adapt": "| 未见过的 | 任务 | 对齐前 | 10 步 | 对齐后 | 随机更新 | 另一身体的上下文 | 上限 |",
        "demo": "| 未见过的 | 对齐前 | 对齐后 | 留出的玩耍数据上的损失 | 随机更新 | 对齐用时 |",
    },
}
"""What the tables of each page say, and their first lines, by which they are found."""


def adapt_rows(results: Path, words: Mapping[str, str]) -> Iterator[str]:
    """Success on unseen bodies: `adapt_tiny_*.json`, in the order of scenarios and tasks."""
    found = {}
    for path in results.glob("adapt_tiny_*.json"):
        result = json.loads(path.read_text())
        settings = result["settings"]
        found[TASKS.index(settings["task"]), SCENARIOS.index(settings["scenario"])] = result["summary"]["success"]
    for (task, scenario), success in sorted(found.items()):
        cells = [percent(success[name]) if name in success else "–" for name in COLUMNS]
        cells[COLUMNS.index("aligned")] = f"**{cells[COLUMNS.index('aligned')]}**"
        yield f"| {words[SCENARIOS[scenario]]} | {words[TASKS[task]]} | {' | '.join(cells)} |"


def demo_rows(results: Path, words: Mapping[str, str]) -> Iterator[str]:
    """One body of each scenario: `demo_tiny.json`."""
    for row in json.loads((results / "demo_tiny.json").read_text())["bodies"]:
        verdict, success = row["verdict"], row["success"]
        cells = (
            words[row["scenario"]],
            percent(success["before"]),
            percent(success["aligned"]),
            f"{verdict['before']:.2f} -> {verdict['after']:.2f}",
            f"{verdict['null']:.2f}",
            f"{row['seconds']['align']:.0f} s",
        )
        yield f"| {' | '.join(cells)} |"


def percent(interval: Mapping[str, Any]) -> str:
    return Interval.from_dict(interval).percent()


def with_tables(text: str, results: Path, words: Mapping[str, str]) -> str:
    """A page with its tables anew.

    Raises:
        ValueError: it has no line that begins one of them.
    """
    for name, rows in (("adapt", adapt_rows), ("demo", demo_rows)):
        lines, head = text.split("\n"), words[name]
        if head not in lines:
            raise ValueError(f"no line {head!r} in the page")
        begin = lines.index(head)
        end = next(index for index in range(begin, len(lines)) if not lines[index].startswith("|"))
        rule = "|" + "---|" * (head.count("|") - 1)
        text = "\n".join([*lines[:begin], head, rule, *rows(results, words), *lines[end:]])
    return text


def main() -> None:
    """Writes both pages."""
    for name, words in WORDS.items():
        page = ROOT / name
        page.write_text(
            with_tables(page.read_text(encoding="utf-8"), ROOT / "benchmarks/results", words), encoding="utf-8"
        )
        print(f"{name}: written")


if __name__ == "__main__":
    main()

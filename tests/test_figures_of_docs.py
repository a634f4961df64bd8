"""What the pages say is what their scripts give."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import result_files

from bench.attempting import adapt_result, matrix_result, outcome, write
from selfalign import presets
from selfalign.bench.plan import Plan
from selfalign.report.reading import read_cells

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]


def script(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py")))


def test_the_page_of_results_is_what_the_results_say():
    films = ROOT / "docs/assets/typical"
    page = script("results_page").page(ROOT / "benchmarks/results", "assets/experiment_results.svg", films)
    assert page == (ROOT / "docs/experiment_results.md").read_text(), "run python benchmarks/results_page.py"


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "docs/findings.md"])
def test_the_readmes_tables_are_what_the_results_say(name):
    tables, text = script("readme_tables"), (ROOT / name).read_text(encoding="utf-8")
    told = tables.with_tables(text, ROOT / "benchmarks/results", tables.WORDS[name])
    assert told == text, "run python benchmarks/readme_tables.py"


def test_films_of_typical_bodies_are_on_the_page(tmp_path: Path):
    shown = [{"instruction": "lift the red cube", "success": False}]
    counts = {"before": {"successes": 0, "episodes": 20}, "aligned": {"successes": 7, "episodes": 20}}
    film = {"key": "k", "file": "a.gif", "cell": "action, lift, seed 0", "body": "b", "success": counts, "shown": shown}
    (tmp_path / "films.json").write_text(json.dumps({"format": "selfalign-films-1", "films": [film]}))
    results = script("results_page")
    assert not list(results.typical_bodies(tmp_path, Path("assets/typical"))), "it is not there"
    (tmp_path / "a.gif").touch()
    told = "action, lift, seed 0: b. Before 0 of 20, after 7 of 20. Shown: lift the red cube: failed."
    parts = list(results.typical_bodies(tmp_path, Path("assets/typical")))
    assert parts[-2:] == ["![b, before and after aligning](assets/typical/a.gif)", f"*{told}*"]


def test_fits_that_were_accepted_for_nothing_are_counted_and_named(tmp_path: Path):
    matrix = matrix_result()
    aligned = next(entry for entry in matrix["cells"] if entry["settings"]["method"] == "selfalign")
    assert aligned["settings"]["region"] == "heldout"
    for body, successes in zip(aligned["bodies"], (0, 1), strict=True):
        body["results"]["20"]["success"] = outcome(successes)
    scale = {"name": "ablation"}
    training = {"label": "tiny", "about": "x"}
    told = {"format": "selfalign-ablation-1", "scale": scale, "trainings": [training], "matrix": matrix}
    path = write(tmp_path / "ablation.json", told)
    accepted = script("page_accepted")
    _, table = accepted.by_recipe({path: told})
    assert table.splitlines()[2:] == ["| 2,500 | tiny | 0 | 2 | 0 |"], "one of ten episodes is what it was before"
    (cell,) = read_cells([write(tmp_path / "matrix.json", matrix)])
    _, table = accepted.never([cell], None)
    assert table.splitlines()[2:] == [f"| action, reach, free play | {cell.rows[0]['name']} | matrix.json |"]


def test_what_two_files_say_of_the_same_bodies_is_one_row_below_how_the_shipped_checkpoint_acts(tmp_path: Path):
    results, own = script("results_page"), result_files.shipped_acting()

    def only(condition: str) -> dict:
        result = adapt_result()
        for row in result["bodies"]:
            row["success"] = {name: found for name, found in row["success"].items() if name in (condition, "oracle")}
        return result

    written = {"a": only("before"), "b": only("aligned"), "c": adapt_result("action", acting=own.to_dict())}
    cells = read_cells([write(tmp_path / f"{name}.json", result) for name, result in written.items()])
    parts = list(results.adaptation(cells, "x.svg"))
    assert [part for part in parts if part.startswith(("### ", "!"))] == [
        f"### As the shipped checkpoint acts: {own}",
        "![Success on unseen bodies](x.svg)",
        "### As it was trained: speed 1, temperature 1",
    ]
    (line,) = parts[-1].splitlines()[2:]
    assert line.startswith("| reach | camera | 0 | 3 |") and " - " not in line.split("|"), "each has its column"
    values = [f"{100 * cells[i].success(name).value:.0f} %" for i, name in ((0, "before"), (1, "aligned"))]
    assert [cell.split(" [")[0].strip() for cell in line.split("|")[5:7]] == values
    assert [cell.name for cell in results.as_shipped(cells)] == [
        f"action, reach, seed 0, {own}",
        cells[0].name,
        cells[1].name,
    ]


def test_matrices_and_ablations_are_on_the_page(tmp_path: Path):
    results, matrix = script("results_page"), matrix_result()
    path = write(tmp_path / "matrix.json", matrix)
    cells = read_cells([path])
    told = "\n".join(results.methods(cells))
    assert "| 2 | 10 % [3, 30] | 90 % [70, 97] | 50 % [30, 70] | 80 % [58, 92] |" in told
    assert "| unseen | lora |\n| --- | --- |\n| tiny: action, reach, seed 0 | +40 [+40, +40] |" in told
    assert results.plain(cells) == [] and results.plain(read_cells([ROOT / "benchmarks/results/matrix_headline.json"]))
    assert "| lora | 1 | 50.0 | 2.0 | 100 | 29.0 |" in told
    trials = [{"score": score, "config": {"rank": 4, "training": {"steps": 30}}} for score in (0.5, 0.25)]
    tuned = {"method": "m", "best": 1, "bodies": ["b"], "search": ["rank", "training.steps"], "trials": trials}
    table = list(results.tunings([tuned, {**tuned, "best": None}]))[-1]
    assert table.splitlines()[2:] == ["| m | 2 | 1 | 0.500 | 0.250 | rank 4, training.steps 30 |"]
    curve = "\n".join(results.over_play(cells, "assets/over_play.svg"))
    assert "- tiny selfalign, action, reach: 20 [20, more] trajectories of play (50 s)" in curve
    assert "| unseen | method | 1 | 20 |" in curve and "| selfalign | 40 % [22, 61] | 90 % [70, 97] |" in curve
    page = results.page(tmp_path, "assets/x.svg", tmp_path / "films")
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## What else can be made of it?",
        "## How much does it take?",
        "## Are verdicts right?",
        "## Where the numbers come from",
    ]


def test_a_method_in_a_file_of_its_own_stands_beside_what_aligning_gives_the_same_bodies(tmp_path: Path):
    results, whole = script("results_page"), matrix_result()
    for entry in whole["cells"]:
        entry["settings"]["play"] = [20]
    parts = {
        "aligning": [entry for entry in whole["cells"] if entry["settings"]["method"] in ("selfalign", "frozen")],
        "lora": [entry for entry in whole["cells"] if entry["settings"]["method"] == "lora"],
    }
    cells = read_cells([write(tmp_path / f"{name}.json", {**whole, "cells": of}) for name, of in parts.items()])
    told = "\n".join(results.methods(cells))
    assert "+40 [+40, +40]" in told and "90 % [70, 97] | 50 % [30, 70] | 80 % [58, 92]" in told
    (lora,) = [cell for cell in cells if "lora" in cell.conditions]
    elsewhere = replace(lora, settings={**lora.settings, "seed": 1})
    assert result_files.beside_aligned(elsewhere, cells) is elsewhere


def test_other_motion_is_compared_to_free_motion_of_the_same_bodies(tmp_path: Path):
    results, free = script("results_page"), matrix_result()
    free["cells"] = [entry for entry in free["cells"] if entry["settings"]["method"] == "selfalign"]
    del free["cells"][0]["bodies"][0]["results"]["1"], free["cells"][0]["bodies"][1]["results"]["1"]
    axes = json.loads(json.dumps(free))
    axes["cells"] = [entry for entry in axes["cells"] if entry["settings"]["region"] == "heldout"]
    axes["cells"][0]["settings"]["motion"] = "axes"
    (body, _) = axes["cells"][0]["bodies"]
    body["results"]["20"]["success"] = outcome(7)
    body["results"]["20"]["verdict"]["expected"] = {"success": 0.8, "low": 0.7, "high": 0.9, "task": "reach"}
    axes["cells"][0]["bodies"] = [body]
    for entry in (*free["cells"], *axes["cells"]):
        entry["settings"]["play"] = [20]
    cells = read_cells([write(tmp_path / "free.json", free), write(tmp_path / "axes.json", axes)])
    table = list(results.motions(cells))[-1].splitlines()
    own = "| action, reach, seed 0 | 1 | axes | 50 s | 70 % | 90 % | -20 | 1 of 1 | 80 % |"
    assert table[2:] == [own]
    alone = list(results.motions([cell for cell in cells if cell.settings["motion"] == "axes"]))[-1]
    assert "| 70 % | - | - | 1 of 1 | 80 % |" in alone
    assert list(results.motions([cell for cell in cells if cell.settings["motion"] == "free"])) == []
    assert [cell.settings["motion"] for cell in results.plain(cells)] == ["free"]


def test_the_pair_that_acts_best_is_bold():
    results = script("results_page")
    entries = [
        {**entry, "settings": {**entry["settings"], "speed": speed, "temperature": 0.5, "task": task}}
        for entry in matrix_result()["cells"][1:2]
        for speed, successes in ((1.0, 5), (1.4, 9))
        for task in ("reach", "push", "lift")
        for entry in [{**entry, "bodies": _with_successes(entry, successes)}]
    ]
    data = {"format": "selfalign-matrix-1", "plan": "acting", "cells": entries}
    assert result_files.is_acting(data) and not result_files.is_acting({**data, "plan": "headline"})
    _, text, table = results.acting(data)
    assert "of 2 aligned *validation* bodies" in text
    assert "| 1 | 0.5 | 50 % [35, 65] |" in table and "| **1.4** | **0.5** | **90 % [77, 96]** |" in table


def test_recipes_are_compared_to_the_first_on_the_same_bodies(tmp_path: Path):
    results, matrix = script("results_page"), matrix_result()
    (_, aligned, *_) = matrix["cells"]
    first = {**aligned, "label": "all"}
    other = {**aligned, "label": "closed", "bodies": _with_successes(aligned, 7)}
    for body, success in zip(other["bodies"], (3, 7), strict=True):
        body["results"]["20"]["success"] = outcome(success)
    for entry in (first, other):
        entry["settings"] = {**entry["settings"], "play": [1, 20]}
    trainings = [{"label": "all", "about": "the recipe"}, {"label": "closed", "about": "x"}]
    broken = {"label": "baseline", "about": "y", "error": "it broke"}
    ablation = {"format": "selfalign-ablation-1", "scale": {"name": "ablation"}, "trainings": [*trainings, broken]}
    ablation["matrix"] = {**matrix, "cells": [first, other]}
    path = write(tmp_path / "ablation.json", ablation)
    *_, picture, table, failed = results.ablations({path: ablation}, Path("assets"))
    assert picture == "![Success by recipe](assets/ablation.svg)"
    assert "| all | the recipe | 3.00 -> 1.00 | 90 % [70, 97] | - | - |" in table
    # The ends of the bootstrap's interval over two bodies are the bodies: 3 and 7 of 10, less 9.
    assert "| closed | x | 3.00 -> 1.00 | 50 % [30, 70] | - | -40 [-60, -20] |" in table
    assert "| baseline | it broke |" in failed
    (axis,) = results.recipes_figure(results.measured({path: ablation})).axes
    drawn = {line.get_label(): line.get_xdata() for line in axis.lines}
    assert drawn["aligned (what align returns)"] == pytest.approx([90, 50])
    assert not {"before", "oracle"} & {str(name).split()[0] for name in drawn}, "they were not measured"
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["all", "closed"]
    assert axis.get_title() == "unseen: action"


def test_recipes_of_several_files_are_one_table_in_the_order_of_the_recipes(tmp_path: Path):
    results, files = script("results_page"), {}
    (frozen, aligned, *_) = matrix_result()["cells"]
    for name, labels, scale in (
        ("a", ("all", "span-8"), "ablation"),
        ("b", ("all", "closed"), "ablation"),
        ("c", ("all",), "shipped"),
    ):
        cells = [{**entry, "label": label} for label in labels for entry in (frozen, aligned)]
        for entry in cells:
            entry["settings"] = {**entry["settings"], "play": [20]}
        trainings = [{"label": label, "about": f"that of {name}"} for label in labels]
        ablation = {"format": "selfalign-ablation-1", "scale": {"name": scale}, "trainings": trainings}
        ablation["matrix"] = {**matrix_result(), "cells": cells}
        files[write(tmp_path / f"{name}.json", ablation)] = ablation
    parts = list(results.ablations(files, Path("assets")))
    assert [part for part in parts if part.startswith("##")] == [
        "## Ablations: 2,500 steps",
        "## Ablations: 10,000 steps",
    ]
    rows = [part.splitlines()[2:] for part in parts if part.startswith("| recipe")]
    assert [[line.split(" | ")[0] for line in table] for table in rows] == [
        ["| all", "| closed", "| span-8"],
        ["| all"],
    ]
    assert parts[-1] == "Before aligning, no recipe succeeds in more than 10 % of episodes."


def test_recipes_differ_from_the_training_with_their_seed(tmp_path: Path):
    results = script("results_page")
    aligned = matrix_result()["cells"][1]
    labels = {"closed/1": 2, "all/2": 8, "all": 5, "all/1": 4}
    cells = [{**aligned, "label": label, "bodies": _with_successes(aligned, of)} for label, of in labels.items()]
    trainings = [{"label": label, "about": "x"} for label in labels]
    ablation = {"format": "selfalign-ablation-1", "scale": {"name": "shipped"}, "trainings": trainings}
    ablation["matrix"] = {**matrix_result(), "cells": cells}
    *_, table = results.ablations({write(tmp_path / "a.json", ablation): ablation}, Path("assets"))
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    told = [(row[0].removeprefix("| "), row[-1].removesuffix(" |").split(" ")[0]) for row in rows]
    assert told == [("all", "-"), ("all/1", "-"), ("all/2", "-"), ("closed/1", "-20")]


def test_recipes_in_another_task_stand_below_those_of_their_scale(tmp_path: Path):
    results, aligned = script("results_page"), matrix_result()["cells"][1]
    labels = {"attached/1": 3, "all/1": 6}
    cells = [{**aligned, "label": label, "bodies": _with_successes(aligned, of)} for label, of in labels.items()]
    write(tmp_path / "matrix_push.json", {**matrix_result(), "plan": result_files.RECIPES, "cells": cells})
    found = result_files.Results.open(tmp_path)
    assert not found.shipped and not found.ablated, "they are of other trainings"
    ablation = {"format": "selfalign-ablation-1", "scale": {"name": "shipped"}, "trainings": []}
    *_, told, table = results.ablations({tmp_path / "a.json": ablation}, Path("assets"), found.pushed)
    assert told.startswith("The same trainings in **pushing**, on 2 validation bodies") and "matrix_push.json" in told
    (first, second) = (line.split(" | ") for line in table.splitlines()[2:])
    assert (first[0], first[3].split(" %")[0], first[-1]) == ("| all/1", "60", "- |")
    assert (second[0], second[3].split(" %")[0], second[-1].split(" ")[0]) == ("| attached/1", "30", "-30")
    plan = Plan.open(ROOT / "benchmarks/plans/recipes_push.json")
    assert plan.name == result_files.RECIPES and {cell.task for cell in plan.cells} == {"push"}


def test_more_practice_stands_beside_the_shipped_checkpoint(tmp_path: Path):
    results, aligned = script("results_page"), matrix_result()["cells"][1]
    labels = {"3,000 more steps": 8, "10,000 steps": 5}
    cells = [{**aligned, "label": label, "bodies": _with_successes(aligned, of)} for label, of in labels.items()]
    write(tmp_path / "matrix_more.json", {**matrix_result(), "plan": result_files.PRACTICE, "cells": cells})
    found = result_files.Results.open(tmp_path)
    assert not found.shipped and not found.ablated, "of validation bodies"
    *_, table = results.practice(found.practised)
    head, _, row = (line.split(" | ") for line in table.splitlines())
    assert head[3:5] == ["10,000 steps", "3,000 more steps"]
    assert [cell.split(" ")[0] for cell in row[3:]] == ["50", "80", "+30"]
    assert not list(results.practice([]))
    plan = Plan.open(ROOT / "benchmarks/plans/more_pushing.json")
    assert plan.name == result_files.PRACTICE and {cell.label for cell in plan.cells} == labels.keys()


def test_trainings_with_other_seeds_stand_beside_the_shipped_one(tmp_path: Path):
    results, shipped = script("results_page"), matrix_result()
    for entry in shipped["cells"]:
        entry["settings"] |= {"bodies": 2, "episodes": 10, "play": [20]}
    again = [
        {**entry, "label": f"all/{seed}", "fingerprint": str(seed), "bodies": _with_successes(entry, 4 + seed)}
        for seed in (1, 2)
        for entry in shipped["cells"]
        if entry["settings"]["method"] == "selfalign"
    ]
    trainings = [{"label": "all/1"}, {"label": "all/2"}]
    ablation = {"format": "selfalign-ablation-1", "scale": {"name": "shipped"}, "trainings": trainings}
    ablation["matrix"] = {**shipped, "cells": again}
    (first,) = read_cells([write(tmp_path / "shipped.json", shipped)])
    cells = read_cells([write(tmp_path / "again.json", ablation)])
    *_, told, table = results.seeds([first], cells)
    table = table.splitlines()
    assert told == "As it was trained (speed 1, temperature 1):"
    assert table[0] == "| unseen |  | seed 0 (shipped) | seed 1 | seed 2 | mean |"
    values = "90 % [70, 97] | 50 % [30, 70] | 60 % [39, 78] | 67 % [50, 90]"
    assert f"| action, reach | aligned (what align returns) | {values} |" in table
    other = replace(first, settings={**first.settings, "bodies": 3})
    assert not any(part.startswith("|") for part in results.seeds([other], cells)), "other bodies: no table"
    mixed = [cells[0], replace(cells[1], settings=other.settings)]
    assert not any(part.startswith("|") for part in results.seeds([first], mixed)), "one training has other bodies"
    assert result_files.repeats(ablation) and not result_files.repeats({**ablation, "scale": {"name": "ablation"}})
    assert not result_files.repeats({**ablation, "trainings": [*trainings, {"label": "closed"}]})
    matrix = {**ablation["matrix"], "plan": result_files.SEEDS}
    assert result_files.repeats(matrix) and not result_files.repeats(shipped)
    plan = Plan.open(ROOT / "benchmarks/plans/training_seeds.json")
    assert plan.name == result_files.SEEDS


def _with_successes(entry: dict, successes: int) -> list[dict]:
    return [
        {**body, "results": {amount: {**of, "success": outcome(successes)} for amount, of in body["results"].items()}}
        for body in entry["bodies"]
    ]


def test_published_results_are_of_the_shipped_checkpoint(tmp_path: Path):
    result_files.Results.open(ROOT / "benchmarks/results").check_shipped()
    write(tmp_path / "other.json", matrix_result())
    with pytest.raises(ValueError, match=r"other\.json: not of the shipped checkpoint"):
        result_files.Results.open(tmp_path).check_shipped()


def test_what_two_benchmarks_measured_counts_once():
    folder = ROOT / "benchmarks/results"
    once = read_cells([folder / "adapt_tiny_action_push.json"])
    both = read_cells([folder / "adapt_tiny_action_push.json", folder / "matrix_headline.json"])
    kept = result_files.without_repeats(both)
    assert len(both) == 13 and len(kept) == 12 and kept[0].path == once[0].path
    names = [(cell.settings["scenario"], cell.settings["task"]) for cell in kept]
    assert len(set(names)) == 12


def test_markdown_tables_keep_their_columns():
    table = script("results_page").markdown(("a", "b"), [["1|2", "3"]])
    assert table == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"


def test_the_figure_of_the_model_is_what_the_preset_says():
    drawing, tiny = script("architecture"), presets.tiny()
    drawn = drawing.figure(tiny)
    told = "run python benchmarks/architecture.py --figure docs/assets/architecture.svg"
    assert (ROOT / "docs/assets/architecture.svg").read_text() == drawn, told
    texts = [node.text for node in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert sum(text.startswith("TTT layer") for text in texts) == len(tiny.ttt.depths(tiny.vlm.depth)) == 3
    assert sum(text.startswith("layer ") for text in texts) == tiny.vlm.depth + tiny.action.depth + tiny.alignment.depth
    shallow = drawing.figure(replace(tiny, ttt=replace(tiny.ttt, positions=(4,))))
    assert shallow.count("TTT layer") == 1
    with pytest.raises(ValueError, match="with an alignment expert"):
        drawing.figure(presets.get("pi0"))


PAGES = ("experiment_results", "alignment_experts", "contrastive_learning", "architecture", "tutorial")
PAGES += ("attention_masks", "gradient_checkpointing", "ttt_gating", "data_pipeline", "where_it_fails")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_a_figure_that_a_script_of_the_repository_makes(page: str):
    shown = re.findall(r"!\[[^]]*\]\(assets/([^)]*)\)", (ROOT / f"docs/{page}.md").read_text())
    assert shown
    makers = [*(ROOT / "benchmarks").glob("*.py"), ROOT / "src/selfalign/commands/demo.py"]
    code = "\n".join(path.read_text() for path in makers)
    for figure in shown:
        assert (ROOT / "docs/assets" / figure).is_file()
        of_result = ROOT / "benchmarks/results" / Path(figure).with_suffix(".json").name
        made = figure in code or Path(figure).parent.name in ("failures", "typical") or of_result.is_file()
        assert made, f"what makes {figure}?"


def test_which_tokens_the_gated_layers_mix():
    gating = script("ttt_gating")
    inner = gating.replace(gating.CONFIG, meta_learning=True)
    fixed, one_way, both = (
        gating.reach(module) > -10
        for module in (gating.Gated(gating.CONFIG), gating.Gated(inner), gating.BothWays(inner))
    )
    assert (fixed == gating.torch.eye(gating.TOKENS, dtype=bool)).all(), "W as an argument: each token by itself"
    assert (one_way == gating.torch.ones_like(one_way).tril()).all(), "the tokens before"
    assert both.all(), "and the tokens after"


def test_the_gate_lets_nothing_through_at_zero():
    gating = script("ttt_gating")
    assert gating.gate(0.0) == (0.0, 0.0)
    assert all(x > 0 for x in gating.gate(0.1))


def test_checkpointing_keeps_less_and_computes_at_most_a_third_more():
    counting = script("checkpointing")
    model = counting.small_model(4)
    plain, work = counting.measure(model)
    kept, more = counting.measure(counting.recompute_blocks(model))
    assert kept < 0.3 * plain
    assert work < more < 4 / 3 * work


def test_infonce_in_the_figure_pushes_the_nearest_hardest():
    contrast = script("contrastive")
    near, far = (float(contrast.loss(contrast.torch.tensor(x), 0.07)) for x in (0.95, 0.0))
    assert near > 10 * far

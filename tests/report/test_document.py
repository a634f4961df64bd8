"""The report holds what the results say, whoever wrote them, and stands alone."""

import copy
import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from bench.attempting import adapt_result, matrix_result, write
from calibrations import make_calibration
from selfalign.checkpoint import load, save_checkpoint
from selfalign.model.context import EmbodimentContext
from selfalign.report import figures
from selfalign.report.context_map import ContextMap, principal_components
from selfalign.report.document import ReportConfig, run
from selfalign.report.naming import Naming
from selfalign.report.pdf import text_table
from selfalign.report.reading import read_cells, read_failures
from selfalign.report.sections import Table, costs, sections, success, verdicts
from selfalign.sim.bodies import sample_bodies

pytest.importorskip("matplotlib")


@pytest.fixture
def results(tmp_path: Path) -> tuple[Path, ...]:
    adapt = write(tmp_path / "adapt.json", adapt_result())
    return adapt, write(tmp_path / "matrix.json", matrix_result())


def gif(path: Path) -> Path:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def contexts(tmp_path: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        tensors = [torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(i)), torch.zeros(2, 1, 3)]
        context = EmbodimentContext((tensors[0],), (tensors[1],)).with_info(embodiment=name, fingerprint="0123")
        context.save(tmp_path / "contexts" / f"{i}.safetensors")
    return tmp_path / "contexts"


def test_the_page_stands_alone_and_says_what_was_measured(results, tmp_path: Path):
    names = [cell.rows[0]["name"] for cell in read_cells(results)]
    config = ReportConfig(
        results,
        out=tmp_path / "new" / "report.html",
        pdf=tmp_path / "new" / "report.pdf",
        films=(gif(tmp_path / "before_after.gif"),),
        contexts=(contexts(tmp_path, [*names, "somebody else"]),),
        title="Bodies & numbers",
    )
    content = run(config, show=False)
    titles = [section.title for section in content]
    assert titles == [
        "Success on unseen bodies: bench adapt",
        "Success on unseen bodies: matrix",
        "Over alignment steps",
        "Over play",
        "Costs",
        "Verdicts",
        "Where it fails",
        "Map of contexts",
        "Films",
        "Failed",
        "Where the numbers come from",
    ]
    page = config.out.read_text()
    assert "Bodies &amp; numbers" in page and "--scenario camera &lt;&amp;&gt;" in page
    assert "90 % [74, 97]" in page, "nine of ten for every body; Wilson over thirty episodes"
    assert "20 [20, more] trajectories of play (50 s) to 90 % of the oracle" in page, "adaptation speed"
    assert "data:image/gif;base64," in page and "1 in grey are of bodies" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page.replace("xlink:href", "")), "nothing beside it is needed"
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) == 6
    for text in drawn:
        ElementTree.fromstring(text)
    assert config.pdf.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", config.pdf.read_bytes())) >= 2


@pytest.mark.parametrize("name", ["costs $5 or $6", r"a $\frac$ b", "$x_$"])
def test_names_are_no_formulas(name: str, tmp_path: Path):
    matrix = matrix_result()
    for entry in matrix["cells"]:
        entry["label"] = name
    other = copy.deepcopy(matrix)
    for entry in other["cells"]:
        entry["label"] = f"{name} again"
    both = {**matrix, "cells": matrix["cells"] + other["cells"]}
    config = ReportConfig((write(tmp_path / "m.json", both),), out=tmp_path / "r.html", pdf=tmp_path / "r.pdf")
    run(config, show=False)
    drawn = re.findall(r"<svg.*?</svg>", config.out.read_text(), re.DOTALL)
    assert f"action, reach, {name}" in drawn[0] and f"{name}: action, reach" in drawn[1]
    cells = read_cells(config.results)
    assert name in figures.svg(figures.recipes({name: {name: cells[0]}}))


def test_the_same_results_give_the_same_files(results, tmp_path: Path):
    pages = []
    for name in ("a", "b"):
        config = ReportConfig(results[:1], out=tmp_path / f"{name}.html", pdf=tmp_path / f"{name}.pdf")
        run(config, show=False)
        pages.append((config.out.read_bytes(), config.pdf.read_bytes()))
    assert pages[0] == pages[1]


def test_cells_are_read_from_every_kind_of_file(results, tmp_path: Path):
    rows = adapt_result()["bodies"][:3]
    calibrated = adapt_result(bodies=[{**row, "scenario": scenario} for scenario in ("camera", "all") for row in rows])
    cells = read_cells((*results, write(tmp_path / "calibrate.json", calibrated)))
    assert [cell.name for cell in cells] == [
        "camera, reach, seed 0 (adapt)",
        "tiny: action, reach, seed 0",
        "camera, reach, seed 0 (calibrate)",
        "all, reach, seed 0",
    ]
    first = cells[0]
    assert first.success("aligned").value == pytest.approx(0.9) and first.success("oracle").value == pytest.approx(0.8)
    curve = {step: value.value for step, value in first.success_by_steps().items()}
    assert curve == pytest.approx({0: 0.1, 10: 0.8, 30: 0.9})
    assert first.loss_by_steps()[30].value == pytest.approx(1.1)


def test_methods_of_a_matrix_are_conditions_of_one_cell(results):
    (cell,) = read_cells(results[1:])
    found = {name: cell.success(name).value for name in ("before", "aligned", "lora", "oracle")}
    assert found == pytest.approx({"before": 0.1, "aligned": 0.9, "lora": 0.5, "oracle": 0.8})
    ((method, curve),) = cell.success_by_amount().items()
    assert method == "selfalign" and {n: v.value for n, v in curve.items()} == pytest.approx({1: 0.4, 20: 0.9})
    attempts = {attempt.kind: attempt for attempt in cell.attempts()}
    assert set(attempts) == {"aligned", "selfalign@1"}
    assert attempts["selfalign@1"].gain == pytest.approx(0.3) and attempts["aligned"].gain == pytest.approx(0.8)
    assert cell.rows[0]["costs"]["lora"]["bytes_stored"] == 29000
    assert read_failures(results) == [("tiny: action, reach, seed 0, prompt", "it broke")]


def test_shares_of_the_oracle_and_differences_have_their_direction(results):
    (cell,) = read_cells(results[1:])  # aligned 0.9, before 0.1, the oracle 0.8
    assert cell.of_oracle("aligned").value == pytest.approx(0.9 / 0.8)
    assert cell.gain("aligned", "before").value == pytest.approx(0.8)
    worse = replace(cell, rows=[{**row, "success": {"aligned": row["success"]["before"]}} for row in cell.rows])
    assert cell.less(worse, "aligned").value == pytest.approx(0.8)
    assert worse.less(cell, "aligned").value == pytest.approx(-0.8)


def test_costs_are_means_over_bodies_and_the_range_over_cells(results):
    (cell,) = read_cells(results[1:])
    rows = [
        {**row, "costs": {"lora": {**row["costs"]["lora"], "fit_seconds": 200.0 + i}}}
        for i, row in enumerate(cell.rows)
    ]
    (table,) = costs([cell, replace(cell, rows=rows)]).tables
    own = [row["costs"]["lora"]["fit_seconds"] for row in cell.rows]
    lora = {row[0]: row[1:] for row in table.rows}["lora"]
    assert lora[0] == "2" and lora[-1] == "29.0"
    assert lora[2] == f"{sum(own) / len(own):.1f} to {200 + (len(rows) - 1) / 2:.0f}"
    assert {row[0]: row[1] for row in table.rows}["before (prior W0)"] == "1"


def test_seen_bodies_may_act_before_aligning_too(tmp_path: Path):
    matrix = matrix_result()
    (oracle,) = [entry for entry in matrix["cells"] if entry["settings"]["region"] == "source"]
    prior = {**oracle, "settings": {**oracle["settings"], "method": "frozen"}, "bodies": matrix["cells"][0]["bodies"]}
    (cell,) = read_cells([write(tmp_path / "a.json", {**matrix, "cells": [*matrix["cells"], prior]})])
    (alone,) = read_cells([write(tmp_path / "b.json", {**matrix, "cells": [matrix["cells"][1], prior]})])
    assert cell.seen == ["oracle", "seen_before"] and alone.seen == ["seen_before"]
    assert [cell.success(name).value for name in cell.seen] == pytest.approx([0.8, 0.1])
    assert "before" not in alone.conditions, "that is of unseen bodies"
    run(ReportConfig((tmp_path / "b.json",), out=tmp_path / "r.html"), show=False)


def test_the_matrix_of_an_ablation_is_read(results, tmp_path: Path):
    ablation = {"format": "selfalign-ablation-1", "trainings": [], "matrix": matrix_result()}
    (own,), (cell,) = read_cells(results[1:]), read_cells((write(tmp_path / "ablation.json", ablation),))
    assert (cell.name, cell.rows) == (own.name, own.rows)
    with pytest.raises(ValueError, match=r"ablation\.json is no result"):
        read_cells((write(tmp_path / "ablation.json", {"format": "selfalign-ablation-1", "trainings": []}),))


def test_errors_name_the_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_cells((tmp_path / "none.json",))
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        broken = tmp_path / "broken.json"
        broken.write_text("{")
        read_cells((broken,))
    with pytest.raises(ValueError, match=r"other\.json is no result of bench adapt"):
        read_cells((write(tmp_path / "other.json", {"format": "selfalign-speed"}),))
    with pytest.raises(FileNotFoundError, match=r"absent\.gif"):
        run(ReportConfig((tmp_path / "x",), films=(tmp_path / "absent.gif",)), show=False)
    with pytest.raises(ValueError, match="at least one"):
        ReportConfig(())


def test_false_accepts_are_named(results):
    (cell,) = read_cells(results[:1])
    cell.rows[1]["success"]["aligned"]["successes"] = 1  # as before aligning
    section = verdicts(cell.attempts())
    counts, named = section.tables
    assert counts.rows[-1][:3] == ["all", "8", "1"], "of aligned and after two numbers of steps, on three bodies"
    assert [row[1:3] for row in named.rows] == [[cell.rows[1]["name"], "aligned (what align returns)"]]


def test_a_calibration_judges_anew(results):
    (cell,) = read_cells(results[:1])
    section = verdicts(cell.attempts(make_calibration("0123", seen=(1.0, 1.05))))
    assert int(section.tables[0].rows[-1][3]) > 0, "some that gained are rejected now"
    assert all(a.verdict.expected is None for a in cell.attempts(make_calibration("another model")))
    assert all(a.verdict.expected is not None for a in cell.attempts(make_calibration("0123")))
    pushing = replace(cell, settings={**cell.settings, "task": "push"})
    judged = pushing.attempts(make_calibration("0123", seen=(1.0, 1.05)))
    assert all(a.verdict.expected is None for a in judged), "a calibration of reaching expects nothing of pushing"
    acting = {"speed": 1.4, "temperature": 0.5}
    quick, told = replace(cell, settings={**cell.settings, "acting": acting}), make_calibration("0123")
    assert all(a.verdict.expected is None for a in quick.attempts(told)), "nor one of other acting"
    assert all(
        a.verdict.expected is not None for a in quick.attempts(make_calibration("0123", source={"acting": acting}))
    )
    assert sum(a.verdict.accepted for a in judged) < sum(a.verdict.accepted for a in pushing.attempts())


def test_the_calibration_of_a_checkpoint_judges_where_it_is_named(checkpoint: Path, tmp_path: Path):
    policy = load(checkpoint)
    strict = make_calibration(policy.fingerprint(), seen=(1.15, 1.2))
    own = save_checkpoint(replace(policy, calibration=strict), tmp_path / "own")
    result = write(tmp_path / "adapt.json", adapt_result(fingerprint=policy.fingerprint()))

    def told(**given) -> dict[str, list[str]]:
        content = run(ReportConfig((result,), out=tmp_path / "r.html", **given), show=False)
        return {section.title: list(section.tables[0].rows[-1]) for section in content if section.tables} | {
            section.title: [] for section in content if not section.tables
        }

    plain, judged = told(), told(calibration=own)
    assert judged.keys() - plain.keys() == {"What a play loss is worth"}
    # Three bodies at 10 steps, at 30 and as aligned, and three random updates, which gained nothing.
    assert plain["Verdicts"] == ["all", "9", "0", "0", "3"]
    assert judged["Verdicts"] != plain["Verdicts"] and judged["Verdicts"][2] == "0"
    with pytest.raises(ValueError, match="has no calibration"):
        told(calibration=checkpoint)


def test_the_calibrations_curve_has_the_attempts_that_it_expects_something_of(results, monkeypatch: pytest.MonkeyPatch):
    (cell,) = read_cells(results[:1])
    pushing = replace(cell, settings={**cell.settings, "task": "push"})
    slower = replace(cell, settings={**cell.settings, "acting": {"speed": 0.5, "temperature": 1.0}})
    drawn = []
    blank = figures.new_figure(1, 1, 2, 2)[0]
    monkeypatch.setattr(figures, "calibration_curve", lambda calibration, attempts: drawn.append(attempts) or blank)
    told = make_calibration("0123", source={"settings": {"seed": 7}})
    own = replace(cell, settings={**cell.settings, "seed": 7})
    list(sections([cell, pushing, slower, own, cell], told))
    assert drawn == [cell.attempts(told)] and drawn[0], "none of its own bodies, and none twice"


def test_components_keep_the_distances_of_points_in_a_plane():
    rng = np.random.default_rng(0)
    plane, flat = np.linalg.qr(rng.normal(size=(20, 2)))[0], rng.normal(size=(7, 2)) * [3, 1]
    made = [
        EmbodimentContext((torch.from_numpy(x[:18].reshape(2, 3, 3)),), (torch.from_numpy(x[18:].reshape(2, 1, 1)),))
        for x in flat @ plane.T + rng.normal(size=20)
    ]
    points, shares = principal_components(made)

    def distances(x):
        return np.linalg.norm(x[:, None] - x[None], axis=2)

    np.testing.assert_allclose(distances(points), distances(flat), atol=1e-9)
    assert sum(shares) == pytest.approx(1.0) and shares[0] > shares[1]
    with pytest.raises(ValueError, match="one model"):
        principal_components([made[0], made[1].with_info(fingerprint="another")])


def test_a_map_comes_back_from_its_file(tmp_path: Path):
    bodies = sample_bodies(4, 3, "source", "all")
    made = ContextMap(np.arange(8.0).reshape(4, 2), (0.5, 0.25), [*bodies[:3], None])
    path = write(tmp_path / "map.json", {"format": "selfalign-context-map-1", **made.to_dict()})
    again = ContextMap.read(path)
    np.testing.assert_array_equal(again.points, made.points[:3])  # a body that is not known has no row
    assert (again.shares, list(again.bodies)) == (made.shares, bodies[:3])
    result = write(tmp_path / "adapt.json", adapt_result())
    content = run(ReportConfig((result,), out=tmp_path / "r.html", contexts=(path,)), show=False)
    assert [section.text[:10] for section in content if section.title == "Map of contexts"] == ["3 contexts"]
    with pytest.raises(ValueError, match="holds no map of contexts"):
        ContextMap.read(result)
    with pytest.raises(FileNotFoundError):
        ContextMap.read(tmp_path / "nothing.json")


def test_cells_are_named_by_what_tells_them_apart(results, tmp_path: Path):
    first, matrix = read_cells(results)
    later = replace(first, settings={**first.settings, "seed": 3, "acting": {"speed": 1.8, "temperature": 0.7}})
    naming = Naming.of([first, later])
    assert naming.columns == ("unseen", "task", "seed", "acting")
    assert [naming.row(cell)[2:] for cell in (first, later)] == [
        ["0", "as trained"],
        ["3", "speed 1.8, temperature 0.7"],
    ]
    assert naming.shared == "play free"
    assert Naming.of([matrix]) == Naming(("unseen", "task"), "checkpoint tiny, seed 0, play free, acting as trained")
    moved = replace(first, path=tmp_path / "again.json")
    naming = Naming.of([first, moved])
    assert [naming.row(cell)[-1] for cell in (first, moved)] == ["adapt.json", "again.json"]


def test_what_aligning_is_ahead_is_told_for_other_ways_and_other_checkpoints(results):
    (cell,) = read_cells(results[1:])  # aligned 0.9, lora 0.5
    worse = [{**row, "success": {**row["success"], "aligned": row["success"]["before"]}} for row in cell.rows]
    other = replace(cell, label="other", rows=worse)
    (section,) = success([cell, other])
    table, ways, checkpoints = section.tables
    assert table.columns[:3] == ("unseen", "task", "checkpoint")
    told = dict(zip(table.columns, table.rows[0], strict=True))
    assert told["aligned / oracle"].startswith("1.12") and told["bodies"] == str(len(cell.rows))
    assert [row[-1].split()[0] for row in ways.rows] == ["+40", "-40"] and ways.columns[-1] == "lora"
    assert [row[-1] for row in checkpoints.rows] == ["-80 [-80, -80] (tiny)"]


def test_matrices_of_one_name_are_not_mixed(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    cells = read_cells([write(tmp_path / name / "matrix.json", matrix_result()) for name in ("a", "b")])
    first, second = success(cells)
    assert [section.title.split(": ")[1] for section in (first, second)] == ["a/matrix", "b/matrix"]
    assert [len(section.tables[0].rows) for section in (first, second)] == [1, 1]
    naming = Naming.of(cells)
    assert [naming.row(cell)[-1] for cell in cells] == ["a/matrix.json", "b/matrix.json"]


def test_numbers_stay_in_one_line_while_heads_can_give_way():
    table = Table(("a rather long head of words", "b"), [["97 % [94, 99]", "0.89 [0.70, 1.12]"]])
    lines = text_table(table, 32)
    assert lines[-1].split("  ") == ["97 % [94, 99]", "0.89 [0.70, 1.12]"] and len(lines) > 3
    narrower = text_table(table, 24)  # numbers give way next; words stay whole
    assert max(map(len, narrower)) <= 24 and {"rather", "[0.70,"} <= set(" ".join(narrower).split())


def test_text_tables_fit_their_lines():
    table = Table(("name", "words"), [["a", "many words " * 20], ["b", "few"]])
    lines = text_table(table, 40)
    assert max(map(len, lines)) <= 40 and lines[0].startswith("name  words")
    assert " ".join(" ".join(lines).split()).count("many") == 20


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"selfalign\[report\]"):
        figures.new_figure(1, 1, 2, 2)


def test_stills_show_first_and_last(tmp_path: Path):
    from selfalign.report.pdf import _stills
    from selfalign.report.sections import Film

    pixels = _stills(Film("", gif(tmp_path / "x.gif").read_bytes()))
    assert pixels[5, 5].tolist() == [255, 0, 0] and pixels[5, -5].tolist() == [0, 0, 255]

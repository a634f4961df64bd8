"""What fails is named from the rows, worst first, and its films are of the very episodes that were measured."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from bench.attempting import adapt_result, matrix_result, outcome, write
from selfalign.bench.matrix import run_plan
from selfalign.bench.plan import Cell, Plan
from selfalign.bench.subject import body_seed
from selfalign.checkpoint import load
from selfalign.report import films
from selfalign.report.document import ReportConfig
from selfalign.report.document import run as run_report
from selfalign.report.failures import body_rows, cell_rows, failing_bodies, typical, worst
from selfalign.report.films import FilmsConfig, read_films, run, to_film
from selfalign.report.naming import Naming
from selfalign.report.reading import read_cells
from selfalign.report.sections import success

# Play as short as in these tests may leave the gripper alone.
pytestmark = pytest.mark.filterwarnings("ignore:near-constant dimensions")


def test_the_worst_come_first_and_bodies_that_miss_nothing_are_not_named(tmp_path: Path):
    result = adapt_result()
    for row, successes in zip(result["bodies"], (10, 3, 6)):
        row["success"]["aligned"] = outcome(successes)
    result["bodies"][2]["verdict"]["accepted"] = False
    (cell,) = read_cells((write(tmp_path / "adapt.json", result),))
    assert [round(f.missed, 3) for f in failing_bodies(cell)] == [0.7, 0.4]
    # 7 and 4 of 30 episodes; the oracle misses 2 of 10 on each of three bodies; one body misses half, and was accepted.
    naming = Naming.of([cell])
    assert cell_rows([cell], naming) == [["camera", "reach", "11 of 30 (37 %)", "6 of 30 (20 %)", "1 of 3", "1"]]
    names = [row["name"] for row in result["bodies"]]
    assert body_rows(worst([cell]), naming) == [
        [names[1], "camera", "reach", "1 of 10", "3 of 10", "accept"],
        [names[2], "camera", "reach", "1 of 10", "6 of 10", "reject"],
    ]


def test_a_body_without_a_verdict_was_not_rejected(tmp_path: Path):
    matrix = matrix_result()  # two bodies, aligned
    for body in matrix["cells"][1]["bodies"]:
        body["results"]["20"]["success"] = outcome(3)
    first, second = (body["results"]["20"] for body in matrix["cells"][1]["bodies"])
    del first["verdict"]
    (some,) = read_cells([write(tmp_path / "some.json", matrix)])
    assert [row[-1] for row in cell_rows([some], Naming.of([some]))] == ["1 of 1 judged"]
    assert sorted(row[-1] for row in body_rows(worst([some]), Naming.of([some]))) == ["-", "accept"]
    table = next(success([some])).tables[0]
    assert table.rows[0][table.columns.index("accepted")] == "1 of 1 judged"
    del second["verdict"]
    (none,) = read_cells([write(tmp_path / "none.json", matrix)])
    assert [row[-1] for row in cell_rows([none], Naming.of([none]))] == ["-"]
    assert {row[-1] for row in body_rows(worst([none]), Naming.of([none]))} == {"-"}
    table = next(success([none])).tables[0]
    assert "accepted" not in table.columns and all(len(row) == len(table.columns) for row in table.rows)


def test_the_worst_of_each_cell_and_of_all(tmp_path: Path):
    cells = read_cells([write(tmp_path / f"{s}.json", adapt_result(s)) for s in ("camera", "robot")])
    assert [f.cell.name for f in worst(cells, of_each=1)] == ["camera, reach, seed 0", "robot, reach, seed 0"]
    assert len(worst(cells, of_each=2)) == 4 and len(worst(cells, most=5)) == 5
    cells[1].rows[2]["success"]["aligned"] = outcome(0)
    assert worst(cells, of_each=1)[0].row is cells[1].rows[2]


def test_typical_bodies_are_those_in_the_middle(tmp_path: Path):
    result = adapt_result()
    for row, successes in zip(result["bodies"], (10, 3, 6)):
        row["success"]["aligned"] = outcome(successes)
    (cell,) = read_cells((write(tmp_path / "adapt.json", result),))
    assert [round(f.missed, 3) for f in typical([cell])] == [0.4]
    assert [round(f.missed, 3) for f in typical([cell], 3)] == [0.0, 0.4, 0.7]
    assert [f.row for f in to_film([cell], 1, "typical")] == [f.row for f in typical([cell])]


def test_a_body_of_several_results_is_filmed_once(tmp_path: Path):
    cells = read_cells([write(tmp_path / f"{name}.json", adapt_result("camera")) for name in ("a", "b")])
    others = read_cells([write(tmp_path / "push.json", adapt_result("camera", settings=_push(adapt_result())))])
    found = to_film([*cells, *others], of_each=2)
    assert len(worst(cells, 2)) == 4 and len(found) == 4
    assert len({(one.name, one.cell.settings["task"]) for one in found}) == 4


def _push(result: dict) -> dict:
    return {**result["settings"], "task": "push"}


def test_rows_have_the_seeds_of_their_bodies(tmp_path: Path):
    plain = adapt_result(seed=5)
    told = [{**row, "scenario": "robot"} for row in plain["bodies"][:2]]
    adapted, calibrated = read_cells(
        (write(tmp_path / "a.json", plain), write(tmp_path / "c.json", {**plain, "bodies": told}))
    )
    assert [row["seed"] for row in adapted.rows] == [body_seed(5, 0, i) for i in range(3)]
    assert [row["seed"] for row in adapted.sources] == [body_seed(5, 1, i) for i in range(3)]
    assert [row["seed"] for row in calibrated.rows] == [body_seed(5, 3, i) for i in range(2)]
    (matrix,) = read_cells((write(tmp_path / "m.json", matrix_result()),))
    assert {row["seed"] for row in matrix.rows} == {None}, "rows that have no place in a benchmark"


# ---- films ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix of an untrained model, which fails."""
    out = tmp_path_factory.mktemp("matrix")
    cell = Cell(
        str(checkpoint),
        scenario="action",
        seed=4,
        bodies=1,
        episodes=2,
        play=(2,),
        play_length=11,
        execute=8,
        num_steps=1,
    )
    run_plan(Plan("p", (cell, replace(cell, method="frozen"))), out, workers=1, show=False)
    return out / "matrix.json"


@pytest.fixture(scope="module")
def filmed(checkpoint: Path, measured: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FilmsConfig, dict]:
    config = FilmsConfig((measured,), checkpoint, tmp_path_factory.mktemp("films") / "new", episodes=1, size=48)
    return config, run(config, show=False)


def test_films_show_the_episodes_that_were_measured(measured: Path, filmed):
    config, result = filmed
    (film,) = result["films"]
    rows = {entry["settings"]["method"]: entry["bodies"][0] for entry in json.loads(measured.read_text())["cells"]}
    for name, method in (("before", "frozen"), ("aligned", "selfalign")):
        expected = rows[method]["results"]["2"]["success"]
        found = film["success"][name]
        same = ("successes", "episodes", "mean_progress")
        assert [found[key] for key in same] == [expected[key] for key in same]
    assert film["measured"] == {name: film["success"][name]["successes"] for name in ("before", "aligned")}
    assert [one["success"] for one in film["shown"]] == [False]
    path = config.out / film["file"]
    assert path.stat().st_size <= 300_000 and Image.open(path).n_frames > 10
    width, height = Image.open(path).size
    assert width == 2 * 48 + 8 and height > 48, "before and after, side by side"
    assert json.loads((config.out / "films.json").read_text()) == result


def test_what_is_filmed_is_not_filmed_again(filmed, monkeypatch: pytest.MonkeyPatch):
    config, result = filmed
    (film,) = result["films"]
    other = {**film, "key": "of other results", "file": "other.gif"}
    (config.out / "other.gif").touch()
    (config.out / "mine.gif").touch()
    (config.out / "films.json").write_text(json.dumps({**result, "films": [other, film]}))
    monkeypatch.setattr(films, "_film", None)
    again = run(config, show=False)
    assert again["films"] == [film] and again["provenance"]["seconds"] is None
    assert sorted(path.name for path in config.out.glob("*.gif")) == sorted([film["file"], "mine.gif"])


def test_the_report_shows_them(measured: Path, filmed, tmp_path: Path):
    pytest.importorskip("matplotlib")
    config, result = filmed
    sections = run_report(ReportConfig((measured,), out=tmp_path / "r.html", films=(config.out,)), show=False)
    (section,) = [section for section in sections if section.title == "Where it fails"]
    (film,) = section.films
    shown = result["films"][0]["shown"][0]["instruction"]
    assert f"after 0 of 2. Shown: {shown}: failed." in film.caption
    assert film.content == (config.out / result["films"][0]["file"]).read_bytes()
    assert section.tables[0].rows[0][2] == "2 of 2 (100 %)"
    page = (tmp_path / "r.html").read_text()
    assert "Where it fails" in page and page.count("data:image/gif") == 1


def test_so_many_bodies_are_filmed_of_each_result_and_together_and_films_are_as_small(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own, saved = load(checkpoint).fingerprint(), []
    outcomes = [SimpleNamespace(success=False, progress=0.1, instruction="push")]
    acted = SimpleNamespace(outcomes=outcomes, to_dict=lambda: outcome(0))
    monkeypatch.setattr(films, "act_again", lambda *_: {"before": acted, "aligned": acted})
    monkeypatch.setattr(films, "panel", lambda *_: [])
    monkeypatch.setattr(films, "beside", lambda sides: sides)
    monkeypatch.setattr(films, "save_film", lambda film, path, max_bytes: saved.append(max_bytes) or path.touch())
    results = tuple(
        write(tmp_path / f"{name}.json", adapt_result(name, fingerprint=own)) for name in ("camera", "robot")
    )

    def filmed(**given: int) -> list[str]:
        """In which scenarios; three bodies fail in each."""
        out = tmp_path / "-".join(map(str, given.values()))
        out.mkdir()
        config = FilmsConfig(results, checkpoint, out, kilobytes=70, **given)
        return sorted(film["cell"].partition(",")[0] for film in run(config, show=False)["films"])

    assert filmed(bodies=9, of_each=1) == ["camera", "robot"]
    assert filmed(bodies=9, of_each=2) == ["camera", "camera", "robot", "robot"]
    assert len(filmed(bodies=3, of_each=2)) == 3
    assert saved == [70_000] * 9


def test_mistakes_are_explained(checkpoint: Path, filmed, tmp_path: Path):
    with pytest.raises(ValueError, match=r"bodies=0 \(at least 1\)"):
        FilmsConfig((tmp_path / "x",), bodies=0)
    with pytest.raises(ValueError, match="at least one file"):
        FilmsConfig(())
    other = write(tmp_path / "other.json", adapt_result())
    with pytest.raises(ValueError, match="in these results no body fails with the model of"):
        run(FilmsConfig((other,), checkpoint, tmp_path / "out"), show=False)
    assert read_films(tmp_path) == []
    with pytest.raises(ValueError, match=r"no films in .*selfalign bench films"):
        run_report(ReportConfig((other,), films=(tmp_path,)), show=False)
    (tmp_path / "films.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no films"):
        read_films(tmp_path)


def test_films_of_typical_bodies_are_in_the_gallery(measured: Path, filmed, tmp_path: Path):
    pytest.importorskip("matplotlib")
    config, result = filmed
    (film,) = result["films"]
    folder = tmp_path / "typical"
    folder.mkdir()
    (folder / film["file"]).write_bytes((config.out / film["file"]).read_bytes())
    (folder / "films.json").write_text(json.dumps({**result, "films": [{**film, "which": "typical"}]}))
    sections = run_report(ReportConfig((measured,), out=tmp_path / "r.html", films=(folder,)), show=False)
    films = {section.title: len(section.films) for section in sections}
    assert films["Films"] == 1 and films["Where it fails"] == 0
    typically = replace(config, which="typical", episodes=2)
    assert [one["success"] for one in run(replace(typically, out=folder), show=False)["films"][0]["shown"]] == [
        False
    ] * 2

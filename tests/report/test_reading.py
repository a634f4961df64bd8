import copy
import io

import pytest
from rich.console import Console

from bench.attempting import matrix_result, outcome, write
from selfalign.bench.matrix_table import print_matrix
from selfalign.report.reading import read_cells


def with_other_task() -> dict:
    """LoRA on 5 and on 20 demonstrations of the task, and the same of another task."""
    result = matrix_result()
    lora = next(entry for entry in result["cells"] if entry["settings"]["method"] == "lora")
    lora["settings"]["demonstrations"] = [5, 20]
    for body in lora["bodies"]:
        body["results"]["5"] = {**body["results"]["20"], "success": outcome(3)}
    other = copy.deepcopy(lora)
    other["settings"]["shown"] = "push"
    for body in other["bodies"]:
        for measured in body["results"].values():
            measured["success"] = outcome(1)
    result["cells"].append(other)
    return result


def test_what_was_shown_another_task_is_a_method_of_its_own_at_every_amount(tmp_path):
    (cell,) = read_cells((write(tmp_path / "m.json", with_other_task()),))
    for row in cell.rows:
        values = {name: row["success"][name]["value"] for name in row["success"] if name.startswith("lora")}
        assert values == {
            "lora": 0.5,
            "lora@5": 0.3,
            "lora@20": 0.5,
            "lora shown push": 0.1,
            "lora shown push@5": 0.1,
            "lora shown push@20": 0.1,
        }


def test_the_table_of_a_matrix_says_what_was_shown():
    console = Console(width=200, record=True, file=io.StringIO())
    result = with_other_task()
    for entry in result["cells"]:
        entry["settings"].setdefault("demonstrations", [])
        entry["summary"] = entry["bodies"][0]["results"]
    print_matrix(result, console)
    text = console.export_text()
    assert "20 shown push" in text and "5 shown push" in text and "20 play" in text


def test_the_own_way_of_a_recipe_to_a_body_is_its_aligning(tmp_path):
    matrix = matrix_result()
    matrix["cells"] = [e for e in matrix["cells"] if e["settings"]["method"] in ("selfalign", "frozen")]
    (plain,) = read_cells([write(tmp_path / "matrix.json", matrix)])
    for entry in matrix["cells"]:
        if entry["settings"]["method"] == "selfalign":
            entry["settings"]["method"] = "prompt"
    (alone,) = read_cells([write(tmp_path / "prompt.json", matrix)])
    assert "prompt" in alone.conditions and "aligned" not in alone.conditions and "oracle" not in alone.seen
    told = {"format": "selfalign-ablation-1", "trainings": [], "matrix": matrix}
    (recipe,) = read_cells([write(tmp_path / "ablation.json", told)])
    assert recipe.conditions == plain.conditions and recipe.seen == plain.seen and "oracle" in recipe.seen
    assert [row["success"] for row in recipe.rows] == [row["success"] for row in plain.rows]


def test_cells_that_acted_otherwise_are_told_apart(tmp_path):
    plain, quick = matrix_result(), matrix_result()
    for entry in quick["cells"]:
        entry["acting"] = {"speed": 1.4, "temperature": 0.7}
    paths = [write(tmp_path / f"{name}.json", data) for name, data in (("plain", plain), ("quick", quick))]
    first, second = read_cells(paths)
    assert second.name == f"{first.name}, speed 1.4, temperature 0.7"
    assert second.settings["acting"] == {"speed": 1.4, "temperature": 0.7} and "acting" not in first.settings


def test_cells_of_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [write(tmp_path / folder / "matrix.json", matrix_result()) for folder in ("first", "second")]
    names = [cell.name for cell in read_cells(paths)]
    assert [name.rpartition(" ")[2] for name in names] == ["(first/matrix)", "(second/matrix)"]


def test_what_was_measured_with_other_settings_is_not_merged(tmp_path):
    matrix = matrix_result()
    lora = next(entry for entry in matrix["cells"] if entry["settings"]["method"] == "lora")
    again = copy.deepcopy(lora)
    matrix["cells"].append(again)
    assert len(read_cells([write(tmp_path / "same.json", matrix)])) == 1
    again["settings"]["settings"] = {"rank": 64}
    again["bodies"][0]["results"]["20"]["success"] = outcome(1)
    with pytest.raises(ValueError, match=r"measured lora of .* found different things"):
        read_cells([write(tmp_path / "other.json", matrix)])


def test_a_second_measurement_agrees_but_for_its_seconds(tmp_path):
    matrix = matrix_result()
    for entry in [entry for entry in matrix["cells"] if "error" not in entry]:
        again = copy.deepcopy(entry)
        for seconds, cell in ((3.0, entry), (4.0, again)):
            for body in cell["bodies"]:
                for result in body["results"].values():
                    result["success"] = {**result["success"], "mean_progress": 0.1, "seconds": seconds}
        matrix["cells"].append(again)
    (cell,) = read_cells([write(tmp_path / "twice.json", matrix)])
    assert cell.success("aligned").value == 0.9 and cell.success("oracle").value == 0.8
    for method in ("lora", "selfalign"):  # the last selfalign is the oracle
        changed = copy.deepcopy(matrix)
        last = [entry for entry in changed["cells"] if entry["settings"]["method"] == method][-1]
        last["bodies"][1]["results"]["20"]["success"]["mean_progress"] = 0.2
        with pytest.raises(ValueError, match="found different things"):
            read_cells([write(tmp_path / f"{method}.json", changed)])


def test_the_oracle_is_of_the_most_play_in_whatever_order_cells_stand(tmp_path):
    matrix = matrix_result()
    oracle = next(entry for entry in matrix["cells"] if entry["settings"]["region"] == "source")
    much, little = copy.deepcopy(oracle), copy.deepcopy(oracle)
    for body in much["bodies"]:  # 9 is more than 20 as a word
        body["results"] = {"100": {**body["results"]["20"], "success": outcome(10)}}
    for body in little["bodies"]:
        body["results"] = {"9": {**body["results"]["20"], "success": outcome(2)}}
    for number, more in enumerate(([much, little], [little, much])):
        told = {**matrix, "cells": [*matrix["cells"], *more]}
        (cell,) = read_cells([write(tmp_path / f"{number}.json", told)])
        assert cell.success("oracle").value == 1.0


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{"])
def test_a_file_that_is_no_json_is_named(content: bytes, tmp_path):
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.json is not JSON: "):
        read_cells([path])


def test_cells_of_one_name_are_measured_alike(tmp_path):
    matrix = matrix_result()
    for region, name, value in (("heldout", "execute", 16), ("source", "episodes", 3)):
        changed = copy.deepcopy(matrix)
        entry = next(entry for entry in changed["cells"] if entry["settings"]["region"] == region)
        for other in changed["cells"]:
            other["settings"][name] = 4
        entry["settings"][name] = value
        told = f"have {name} {' and '.join(sorted(map(str, (4, value))))}, and cannot be compared"
        with pytest.raises(ValueError, match=told):
            read_cells([write(tmp_path / f"{name}.json", changed)])


def test_however_a_body_plays_its_oracle_plays_freely(tmp_path):
    matrix = matrix_result()
    for entry in matrix["cells"]:
        if entry["settings"]["region"] == "heldout":
            entry["settings"]["motion"] = "axes"
    (cell,) = read_cells([write(tmp_path / "axes.json", matrix)])
    (free,) = read_cells([write(tmp_path / "free.json", matrix_result())])
    assert "axes play" in cell.name and cell.success("oracle") == free.success("oracle")


def test_an_oracle_alone_is_a_cell_too(tmp_path):
    matrix = matrix_result()
    matrix["cells"] = [entry for entry in matrix["cells"] if entry["settings"]["region"] == "source"]
    (cell,) = read_cells([write(tmp_path / "oracle.json", matrix)])
    assert cell.rows == [] and cell.success("oracle").value == 0.8


def test_bodies_are_called_as_they_are_called_now(tmp_path):
    matrix = matrix_result()
    (now,) = read_cells([write(tmp_path / "now.json", matrix)])
    for entry in matrix["cells"]:
        for body in entry["bodies"]:
            body["name"] += "-of-old"
    (before,) = read_cells([write(tmp_path / "before.json", matrix)])
    assert [row["name"] for row in before.rows] == [row["name"] for row in now.rows]

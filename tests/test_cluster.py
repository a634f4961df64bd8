"""Jobs on a local Ray give what they give in this process, where Ray (an optional extra) is installed."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster_jobs import square
from selfalign.bench.matrix import run_plan
from selfalign.bench.plan import Cell, Plan
from selfalign.cluster import run_on

try:
    import ray
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="Ray is not installed: pip install 'selfalign[cluster]'")


@pytest.mark.slow
@needs_ray
@pytest.mark.skipif(bool(os.environ.get("RAY_ADDRESS")), reason="a cluster is named, which need not have this file")
def test_ray_gives_what_one_process_gives(monkeypatch: pytest.MonkeyPatch):
    # What Ray starts imports the job by name, and does not know where pytest finds modules.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    found: dict[str, dict[int, int]] = {}
    for cluster in ("none", "ray"):
        results, processes = found.setdefault(cluster, {}), set()

        def keep(item, result, results=results, processes=processes):
            results[item] = result[0]
            processes.add(result[1])

        with pytest.raises(ValueError, match="4 is broken"):
            run_on(cluster, square, range(5), 1, on_done=keep)
        assert (os.getpid() in processes) == (cluster == "none")
    assert found["ray"] == found["none"] == {n: n * n for n in range(4)}
    assert not ray.is_initialized()


@needs_ray
@pytest.mark.filterwarnings("ignore:near-constant dimensions")
def test_a_matrix_on_ray_is_the_matrix_of_one_process(checkpoint: Path, tmp_path: Path):
    short = {"bodies": 2, "episodes": 2, "play": (2,), "play_length": 11, "execute": 8, "num_steps": 1}
    cell = Cell(str(checkpoint), scenario="action", seed=4, **short)
    plan, found = Plan("p", (cell, replace(cell, method="frozen"))), {}
    for cluster in ("none", "ray"):
        result = run_plan(plan, tmp_path / cluster, workers=1, cluster=cluster, show=False)
        assert result["failed"] == 0 and result["provenance"]["cluster"] == cluster
        found[cluster] = [{name: entry[name] for name in ("digest", "settings")} for entry in result["cells"]]
        for entry, told in zip(result["cells"], found[cluster], strict=True):
            told["bodies"] = [(row["name"], _acted(row["results"]["2"])) for row in entry["bodies"]]
    assert len(found["ray"][0]["bodies"]) == 2
    for ours, theirs in zip(found["none"], found["ray"], strict=True):
        assert (ours["digest"], ours["settings"]) == (theirs["digest"], theirs["settings"])
        for (name, one), (same, other) in zip(ours["bodies"], theirs["bodies"], strict=True):
            # A process with another number of threads adds up in another order.
            assert name == same and one == pytest.approx(other, rel=1e-3, abs=1e-4)
    # Rows came back from Ray's workers, and are kept as others are.
    assert len(list((tmp_path / "ray" / "bodies").glob("*/*.json"))) == 4


def _acted(result: dict) -> dict[str, float]:
    """What does not depend on the machine's speed."""
    losses = {name: result["verdict"][name] for name in ("before", "after", "null")} if "verdict" in result else {}
    success = {name: result["success"][name] for name in ("successes", "mean_progress")}
    return {**success, **losses, "bytes_stored": result["bytes_stored"]}


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"selfalign\[cluster\]"):
        run_on("ray", square, [1], 1)

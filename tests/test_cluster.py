"""Jobs on a local Ray give what they give in this process, where Ray (an optional extra) is installed."""

import os
import sys
from pathlib import Path

import pytest

from cluster_jobs import square
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


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"selfalign\[cluster\]"):
        run_on("ray", square, [1], 1)

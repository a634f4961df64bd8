"""Jobs over a Ray cluster, or over a local Ray: `workers.run_jobs` with machines for processes (extra `cluster`).

`RAY_ADDRESS` names a cluster; without it, Ray starts on this machine and ends with the jobs. Jobs give back what they
find: nothing but the checkpoints that they read has to be on a disk that machines share.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from selfalign.workers import WORKER_ENVIRONMENT, environment, run_jobs

Cluster = Literal["none", "ray"]
RETRIES = 2
"""How often a job whose machine or worker has died is given to another."""


def run_on(
    cluster: Cluster,
    job: Callable[[Any], Any],
    jobs: Sequence[Any],
    workers: int,
    *,
    cores: int = 1,
    on_done: Callable[[Any, Any], None] = lambda item, result: None,
) -> None:
    """Runs `job(item)` for each item, in processes of this machine (`run_jobs`, with its errors) or as Ray tasks.

    Args:
        job: a module-level function.
        jobs: arguments that can be pickled.
        workers: jobs at a time on this machine; a Ray cluster that is named takes what it has room for.
        cores: that each job uses. Ray counts them.
        on_done: called here with (item, result) as jobs finish, in any order.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: a worker died again and again. What a job raises is raised here.
    """
    if cluster == "none":
        run_jobs(job, jobs, workers, on_done=on_done)
        return
    ray = _ray()
    if not jobs:
        return
    _start(ray, workers * cores)
    try:
        task = ray.remote(num_cpus=cores, max_retries=RETRIES)(job)
        items = {task.remote(item): item for item in jobs}
        pending = list(items)
        while pending:
            done, pending = ray.wait(pending)
            for reference in done:
                on_done(items[reference], _result(ray, reference))
    finally:
        ray.shutdown()


def _start(ray: Any, cores: int) -> None:
    """Joins the cluster that is named, or starts Ray on this machine, whose workers inherit the environment."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env={"env_vars": WORKER_ENVIRONMENT}, **quiet)
        return
    with environment(WORKER_ENVIRONMENT):
        ray.init(num_cpus=cores, include_dashboard=False, **quiet)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a worker died, probably for lack of memory ({error}); what is finished is kept") from error


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ImportError(f"a cluster needs {error.name}: pip install 'selfalign[cluster]'") from error
    return ray

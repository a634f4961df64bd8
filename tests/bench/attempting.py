"""Made-up attempts and result files."""

import json
from pathlib import Path

import numpy as np

from selfalign.align.verdict import judge
from selfalign.bench.attempts import Attempt
from selfalign.sim.bodies import sample_bodies


def attempt(
    loss: float,
    successes: int,
    *,
    episodes: int = 10,
    kind: str = "aligned",
    body: str = "a",
    before: float = 0.0,
    prior_loss: float = 4.0,
    calibration=None,
    action_loss: float | None = None,
) -> Attempt:
    verdict = judge(prior_loss, loss, prior_loss, calibration=calibration)
    return Attempt("cell", body, kind, verdict, successes, episodes, before, action_loss)


def drawn_attempts(rng: np.random.Generator, bodies: int = 20, episodes: int = 10) -> list[Attempt]:
    """Of each body one before aligning and four after; success falls from 0.9 to 0 around a play loss of 2."""
    result = []
    for body in map(str, range(bodies)):
        result.append(attempt(4.0, 0, episodes=episodes, kind="before", body=body, action_loss=0.6))
        for loss in rng.uniform([0.8, 1.0, 1.5, 2.5], [1.0, 1.5, 2.5, 3.5]):
            successes = int(rng.binomial(episodes, true_success(loss)))
            kind = "aligned" if loss < 1.0 else "after_1"
            result.append(attempt(loss, successes, episodes=episodes, kind=kind, body=body, action_loss=0.1 * loss))
    return result


def true_success(loss: float) -> float:
    return 0.9 / (1 + np.exp(6 * (loss - 2.0)))


def outcome(successes: int, episodes: int = 10) -> dict:
    return {"value": successes / episodes, "low": 0.0, "high": 1.0, "successes": successes, "episodes": episodes}


def adapt_row(index: int, role: str = "heldout", scenario: str = "camera", aligned: int = 9) -> dict:
    body = sample_bodies(index + 1, 3, "heldout", scenario)[index]
    success = {"oracle": outcome(8)}
    if role == "heldout":
        levels = {"before": 1, "after_10": 8, "after_30": aligned, "aligned": aligned, "random": 0, "swap": 1}
        success = {name: outcome(value) for name, value in levels.items()}
    return {
        "name": body.name,
        "role": role,
        "index": index,
        "body": body.to_dict(),
        "success": success,
        "verdict": {**judge(3.0, 1.0 + 0.1 * index, 4.0).to_dict(), "text": ""},
        "held_out_play_loss": {"0": 3.0, "10": 1.2, "30": 1.0 + 0.1 * index},
        "action_loss": {"before": 0.6, "aligned": 0.2},
    }


def adapt_result(scenario: str = "camera", seed: int = 0, **changes) -> dict:
    rows = [adapt_row(i, role, scenario) for role in ("heldout", "source") for i in range(3)]
    settings = {"scenario": scenario, "task": "reach", "seed": seed, "episodes": 10, "play": 20}
    made = {"command": f"selfalign bench adapt --scenario {scenario} <&>", "commit": "abc123", "finished": "2026-11-21"}
    provenance = {**made, "machine": {"processor": "a processor", "cores": 2}}
    return {"settings": settings, "fingerprint": "0123", "provenance": provenance, "bodies": rows, **changes}


def matrix_result() -> dict:
    """As `bench matrix` writes it: three methods on two bodies, an oracle, and a cell that failed."""
    bodies = sample_bodies(2, 3, "heldout", "action")

    def cell(method: str, levels: dict[int, int], region: str = "heldout", **more) -> dict:
        told = {"method": method, "scenario": "action", "task": "reach", "region": region, "seed": 0, "motion": "free"}
        spent = {"fit_seconds": 2.0, "peak_megabytes": 100.0, "bytes_stored": 29000}
        verdict = {"verdict": judge(3.0, 1.0, 4.0).to_dict()} if method == "selfalign" else {}
        rows = [
            {
                "name": body.name,
                "body": body.to_dict(),
                "results": {
                    str(amount): {"success": outcome(level), "robot_seconds": 2.5 * amount, **spent, **verdict}
                    for amount, level in levels.items()
                },
            }
            for body in bodies
        ]
        return {"label": "tiny", "fingerprint": "0123", "settings": told, "summary": {}, "bodies": rows, **more}

    failed = cell("prompt", {20: 0}, error="it broke")
    cells = [cell("frozen", {20: 1}), cell("selfalign", {1: 4, 20: 9}), cell("lora", {20: 5})]
    oracle = cell("selfalign", {20: 8}, "source")
    made = adapt_result()["provenance"]
    cells = [{**entry, "digest": str(i)} for i, entry in enumerate([*cells, oracle, failed])]
    reached = {"value": 20, "low": 20, "high": None}
    speed = {
        "label": "tiny",
        "method": "selfalign",
        "scenario": "action",
        "task": "reach",
        "digest": "1",
        "oracle": 0.8,
    }
    speed |= {"share": 0.9, "trajectories": reached, "robot_seconds": 50.0}
    return {"format": "selfalign-matrix-1", "plan": "p", "provenance": made, "cells": cells, "speed": [speed]}


def write(path: Path, data) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))
    return path

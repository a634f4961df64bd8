"""Compiled streams train as plain ones do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def test_compiled_streams_train_alike(tmp_path):
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(TESTS / "train" / "compiled.py"), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["graphs"] >= 2, "the prefix and the experts over it"
    plain, compiled = found["rows"]
    for expected, row in zip(plain, compiled, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)

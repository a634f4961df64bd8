"""openpi's own client, unmodified, against our server.

It wants NumPy 1 and forgets to ask for typing_extensions, so it runs in an interpreter of its own: the one that
SELFALIGN_OPENPI_PYTHON names, or a new environment (hence slow). The default suite has frames that it recorded
(`test_protocol`, `test_server`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.factory import small_policy
from selfalign.serve.config import ServeConfig
from selfalign.serve.contexts import ContextTable
from selfalign.serve.server import in_background
from serve.serving import write_contexts

TALK = Path(__file__).parent / "openpi_talk.py"
KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory) -> str:
    if found := os.environ.get("SELFALIGN_OPENPI_PYTHON"):
        return found
    folder = tmp_path_factory.mktemp("openpi")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    packages = ["openpi-client==0.1.2", "typing_extensions", "numpy<2"]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"openpi-client cannot be installed here: {done.stderr[-500:]}")
    return python


def talk(interpreter: str, *arguments: str) -> dict:
    command = [interpreter, str(TALK), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else {}


@pytest.mark.slow
def test_the_recorded_frames_are_what_its_packer_makes(interpreter, tmp_path):
    talk(interpreter, "record", str(tmp_path / "frames.json"))
    recorded = (TALK.parent / "openpi_frames.json").read_text()
    assert (tmp_path / "frames.json").read_text() == recorded


@pytest.mark.slow
def test_its_conversation(interpreter, tmp_path):
    policy = small_policy()
    table = ContextTable(policy, write_contexts(policy, tmp_path / "contexts"))
    (tmp_path / "keys").write_text(KEY)
    config = ServeConfig(port=0, num_steps=1, api_keys=tmp_path / "keys")
    with in_background(policy, table, config) as server:
        told = talk(interpreter, "talk", f"{server.address}/?embodiment=slow", server.address, KEY)
    assert told["metadata"]["embodiments"]["slow"] == {"state_dim": 3, "action_dim": 3}
    assert told["metadata"]["embodiment"] == "slow"
    assert (told["shape"], told["dtype"]) == ([4, 3], "float32")
    assert told["timing"] == [["infer_ms", "batch", "infer_ms"], ["infer_ms", "prev_total_ms", "batch", "infer_ms"]]
    assert told["broker"] == [[3]] * 3
    assert told["error"].startswith("RuntimeError: Error in inference server:\nthe request has no 'observation.state'")
    assert told["after_error"].startswith("ConnectionClosedError: received 1011")
    for outcome in (told["wrong_key"], told["no_key"]):
        assert outcome.startswith("InvalidStatus: server rejected WebSocket connection: HTTP 401")

"""The process that aligns: it is killed, hangs, dies of its own, and nothing of that reaches the one who asked."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from align.factory import make_play, small_policy
from online.steps import many_steps
from selfalign.checkpoint import save_checkpoint
from selfalign.online import worker
from selfalign.online.aligner import Aligner, AlignerError
from selfalign.online.jobs import Material, MeasureJob
from selfalign.online.ring import Ring
from selfalign.online.worker import WorkerSettings, answer


def make_job(policy, folder: Path) -> MeasureJob:
    ring = Ring(folder / "ring", 2**22)
    for step in many_steps(3):
        ring.append(step.pack())
    info = {"fingerprint": policy.fingerprint(), "norm_stats": make_play().stats().to_dict()}
    live = policy.model.prior().detach().with_info(**info).save(folder / "live.safetensors")
    return MeasureJob(Material("toy", ring.snapshot(), 0, 16), live, {})


def test_a_process_answers_as_this_one_would_and_is_replaced_when_it_is_killed(tmp_path):
    policy = small_policy()
    job = make_job(policy, tmp_path)
    settings = WorkerSettings(save_checkpoint(policy, tmp_path / "checkpoint"), policy.fingerprint(), nice=1)
    aligner = Aligner(settings, 300)
    reply = aligner.run(job)
    assert reply["losses"]["live"] == pytest.approx(job.run(policy, 512)["losses"]["live"], rel=1e-5)
    first = aligner.pid
    with pytest.raises(AlignerError, match="FileNotFoundError: no context file"):
        aligner.run(replace(job, live=tmp_path / "none"))
    assert aligner.pid == first, "what is wrong with a job does not end the process"
    assert os.getpriority(os.PRIO_PROCESS, first) == os.getpriority(os.PRIO_PROCESS, 0) + 1

    os.kill(first, signal.SIGSTOP)  # in the middle of a job
    threading.Timer(0.3, os.kill, (first, signal.SIGKILL)).start()
    with pytest.raises(AlignerError, match="was killed by SIGKILL"):
        aligner.run(job)
    assert aligner.pid is None, "the next job starts another one"
    aligner.close()
    with pytest.raises(AlignerError, match="the server is stopping"):
        aligner.run(job)


@pytest.fixture
def instead(monkeypatch):
    """Another program in the process's place."""

    def put(code: str) -> None:
        monkeypatch.setattr("sys.executable", "/bin/sh")
        monkeypatch.setattr(Aligner, "COMMAND", ("-c", code))

    return put


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("exit 3", "ended with status 3"),
        ("kill -11 $$", "was killed by SIGSEGV"),
        ("read job; echo no JSON", "wrote something else"),
        ("exec sleep 60", "took longer than 0.5 s"),
    ],
)
def test_whatever_happens_to_the_process_is_one_error(tmp_path, instead, code, words):
    policy = small_policy()
    job = make_job(policy, tmp_path)
    instead(code)
    aligner = Aligner(WorkerSettings(tmp_path, "abc"), 0.5 if "sleep" in code else 60)
    with pytest.raises(AlignerError, match=words):
        aligner.run(job)
    assert aligner.pid is None


def test_closing_ends_a_job_that_is_under_way(tmp_path, instead):
    policy = small_policy()
    job = make_job(policy, tmp_path)
    instead("exec sleep 60")
    aligner = Aligner(WorkerSettings(tmp_path, "abc"), 60)
    began = time.monotonic()
    threading.Timer(0.3, aligner.close).start()
    with pytest.raises(AlignerError):
        aligner.run(job)
    assert time.monotonic() - began < 50


@pytest.mark.parametrize(("device", "index"), [("cuda:1", 1), ("cuda", 2)])
def test_a_gpu_is_taken_by_the_set_share_only(tmp_path, monkeypatch, device, index):
    """Of the one that is named, or of the current one (2 here)."""
    policy, taken = small_policy(), []
    monkeypatch.setattr(worker, "load", lambda checkpoint, device, **told: taken.append(device) or policy)
    monkeypatch.setattr("torch.cuda.memory._lazy_init", lambda: None)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 2)
    set_share = "torch._C._cuda_setMemoryFraction"  # what torch calls once it has looked at its arguments
    monkeypatch.setattr(set_share, lambda share, index: taken.append((share, index)), raising=False)
    WorkerSettings(tmp_path, policy.fingerprint(), device=device, gpu_share=0.3).policy()
    assert taken == [(0.3, index), device], "before anything is loaded"


def test_a_job_that_cannot_be_done_is_an_answer(tmp_path):
    policy = small_policy()
    job = make_job(policy, tmp_path)
    settings = WorkerSettings(tmp_path, policy.fingerprint(), tokenizer=tmp_path / "words")
    assert WorkerSettings.from_json(settings.to_json()) == settings
    assert "error" in answer(policy, settings, "no job")
    other = save_checkpoint(small_policy(1), tmp_path / "other")
    with pytest.raises(ValueError, match="the files were changed; restart the server"):
        replace(settings, checkpoint=other, tokenizer=None).policy()
    assert job.live.is_file()

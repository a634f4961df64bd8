"""What is due when, and what becomes of the results; nothing is computed here, the replies are made up."""

import errno
import os
from dataclasses import replace

import pytest
import torch

from align.factory import HORIZON, make_episode
from online.contexts import make_context, value
from online.steps import many_steps, steps_of
from selfalign.online.body import BEFORE, LearningBody
from selfalign.online.config import LearnConfig
from selfalign.online.drift import Drift, DriftConfig
from selfalign.online.jobs import AlignJob, MeasureJob

# An episode of `many_steps` has 9 looks and 7 transitions.
CONFIG = LearnConfig(
    learn_mb=4.0,
    window=7,
    align_min=14,
    align_max=70,
    align_every=0,
    rollback_margin=0.1,
    rollback_patience=2,
    probation=3,
    drift=DriftConfig(drift_margin=0.3, drift_calm=0.3, drift_patience=2, drift_calibration=1),
)


class Robot:
    """A body that moves, and whose jobs are answered as a test says."""

    def __init__(self, folder, config: LearnConfig = CONFIG, given: float = 0.1):
        self.body = LearningBody(folder, "arm", config, HORIZON, "abc")
        self.context = value(self.body.adopt(make_context(given)))
        self.episodes = 0

    def moves(self, episodes: int = 1) -> None:
        for _ in range(episodes):
            self.episodes += 1
            for step in many_steps(1, seed=self.episodes):
                self.body.add(step)

    def window(self, live: float, before: float | None = None, parts: dict[str, float] | None = None) -> MeasureJob:
        """One episode, and the job that it makes due, answered."""
        self.moves()
        job = self.body.next_job()
        assert isinstance(job, MeasureJob) and (BEFORE in job.others) == (before is not None)
        losses = {"live": live} | ({} if before is None else {BEFORE: before})
        self.takes(job, {"losses": losses, "parts": parts or {}, "transitions": 7})
        return job

    def aligned(self, fitted: float, accepted: bool = True) -> AlignJob:
        job = self.body.next_job()
        assert isinstance(job, AlignJob)
        if accepted:
            make_context(fitted).save(job.out)
        self.takes(job, {"accepted": accepted, "verdict": {"text": "made up"}})
        return job

    def takes(self, job, reply) -> None:
        context = self.body.finished(job, reply)
        self.context = self.context if context is None else value(context)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.body.versions.events]


def drifted(folder, **changes) -> Robot:
    robot = Robot(folder, replace(CONFIG, **changes))
    for loss in (0.2, 0.5, 0.5):
        robot.window(loss)
    assert robot.body.monitor.state is Drift.DRIFTED
    return robot


def test_a_window_is_measured_when_it_is_full(tmp_path):
    robot = Robot(tmp_path)
    assert robot.body.next_job() is None
    for step in many_steps(1)[:-1]:
        robot.body.add(step)
    assert robot.body.next_job() is None, "one transition is missing"
    robot.body.add(many_steps(1)[-1])
    job = robot.body.next_job()
    assert isinstance(job, MeasureJob) and job.live == robot.body.versions.path(1)
    assert robot.body.next_job() is None, "one job at a time"
    robot.takes(job, {"losses": {"live": 0.2}, "parts": {}, "transitions": 7})
    assert robot.body.next_job() is None and robot.body.monitor.total.reference == 0.2


def test_a_drift_starts_an_alignment_on_what_came_after_it(tmp_path):
    robot = Robot(tmp_path)
    robot.window(0.2)
    robot.window(0.5)
    onset = robot.body.ring.end
    robot.window(0.5)
    assert robot.body.next_job() is None, "7 of 14 transitions since the drift"
    robot.window(0.5)
    job = robot.aligned(0.3)
    assert job.material.since == onset
    assert robot.context == 0.3 and robot.body.versions.current == 2
    assert robot.kinds == ["given", "calibrated", "drift began", "accepted"]
    assert robot.body.versions.events[-1].about["by"] == "drift"
    assert robot.body.monitor.state is Drift.CALIBRATING, "what is usual is learned anew"


def test_a_part_of_the_loss_that_rises_alone_is_a_drift_which_a_restart_remembers(tmp_path):
    robot = Robot(tmp_path)
    robot.window(0.2, parts={"perception": 0.1, "dynamics": 0.1, "unused": 0.0})
    for _ in range(3):
        robot.window(0.21, parts={"perception": 0.3, "dynamics": 0.11, "unused": 0.0})
    event = robot.body.versions.events[-1]
    assert event.kind == "drift began" and event.about["parts"] == {"perception": (0.3, 0.1)}
    robot.body.close()
    again = Robot(tmp_path)
    assert again.body.monitor.state is Drift.DRIFTED and again.body.monitor.drifted == ["perception"]
    again.episodes = 50
    again.window(0.21, parts={"perception": 0.3, "dynamics": 0.11})
    again.window(0.21, parts={"perception": 0.3, "dynamics": 0.3})
    again.aligned(0.3)
    assert again.body.monitor.state is Drift.CALIBRATING and not again.body.monitor.drifted
    again.body.rollback(by="operator")
    again.window(0.21, parts={"perception": 0.3})
    assert again.body.monitor.state is Drift.SUSPECTED, "what was usual with version 1 is still known"


def test_a_rejected_alignment_changes_nothing_and_waits_for_new_steps(tmp_path):
    robot = drifted(tmp_path)
    robot.window(0.5)
    robot.aligned(0.3, accepted=False)
    assert robot.context == 0.1 and robot.body.versions.current == 1 and robot.kinds[-1] == "rejected"
    robot.window(0.5)
    assert robot.body.next_job() is None
    robot.window(0.5)
    assert isinstance(robot.body.next_job(), AlignJob), "14 new transitions"


def test_a_drift_that_goes_by_needs_no_alignment(tmp_path):
    robot = drifted(tmp_path)
    robot.window(0.2)
    assert robot.body.next_job() is None and robot.kinds[-1] == "drift over"


@pytest.mark.parametrize("restarted", [False, True])
def test_an_alignment_after_a_drift_takes_no_steps_of_while_it_lasted(tmp_path, restarted):
    """A camera was bumped and put back; then somebody asks for an alignment."""
    robot = drifted(tmp_path)
    robot.window(0.2)
    over = robot.body.ring.end
    if restarted:
        robot.body.close()
        robot = Robot(tmp_path)
        robot.episodes = 50
    robot.moves(2)
    robot.body.wanted = "operator"
    job = robot.body.next_job()
    assert isinstance(job, AlignJob) and job.material.since == over


def test_without_a_drift_alignments_are_tried_now_and_then(tmp_path):
    robot = Robot(tmp_path, replace(CONFIG, align_every=21))
    for _ in range(2):
        for _ in range(3):
            robot.window(0.2)
        robot.aligned(0.3, accepted=False)
    assert robot.kinds.count("rejected") == 2
    assert robot.body.versions.events[-1].about["by"] == "count"


def test_a_context_that_turns_out_worse_goes_by_itself(tmp_path):
    robot = drifted(tmp_path)
    robot.window(0.5)
    robot.aligned(0.3)
    robot.window(0.45, before=0.4)  # worse by more than a tenth
    robot.window(0.43, before=0.4)  # not so
    robot.window(0.45, before=0.4)
    assert robot.context == 0.3, "never twice in a row"
    robot.window(0.45)
    robot.body.wanted = "operator"
    robot.aligned(0.4)
    robot.window(0.45, before=0.4)
    robot.window(0.45, before=0.4)
    assert robot.context == 0.3 and robot.body.versions.current == 2
    event = robot.body.versions.events[-1]
    assert (event.kind, event.about["left"], event.about["by"]) == ("rolled back", 3, "the server")
    assert robot.body.monitor.total.reference == 0.45, "what was usual with version 2 is still known"


def test_probation_ends(tmp_path):
    robot = drifted(tmp_path)
    robot.window(0.5)
    robot.aligned(0.3)
    for _ in range(3):
        robot.window(0.2, before=0.5)
    robot.window(0.2)


def test_a_result_for_a_context_that_is_no_longer_in_use_is_discarded(tmp_path):
    robot = drifted(tmp_path)
    robot.window(0.5)
    robot.aligned(0.3)
    robot.body.wanted = "operator"
    job = robot.body.next_job()
    assert isinstance(job, AlignJob)
    robot.context = value(robot.body.rollback(by="operator"))
    make_context(0.9).save(job.out)
    robot.takes(job, {"accepted": True, "verdict": {}})
    assert robot.context == 0.1 and robot.body.versions.current == 1 and robot.kinds[-1] == "discarded"


def test_a_fitted_context_with_nan_is_refused(tmp_path):
    robot = drifted(tmp_path)
    robot.window(0.5)
    job = robot.body.next_job()
    make_context(0.3).map(lambda t: t * torch.nan).save(job.out)
    with pytest.raises(ValueError, match="NaN or infinite"):
        robot.takes(job, {"accepted": True, "verdict": {}})
    assert robot.body.versions.current == 1


def test_a_restart_remembers_how_much_the_loss_varies(tmp_path):
    config = replace(CONFIG, drift=replace(CONFIG.drift, drift_calibration=2))
    robot = Robot(tmp_path, config)
    robot.window(0.2)
    robot.window(0.25)
    margin = robot.body.monitor.total.margin
    assert margin > config.drift.drift_margin
    robot.body.close()
    assert Robot(tmp_path, config).body.monitor.total.margin == margin


def test_a_restart_remembers_what_is_usual_and_that_it_has_drifted(tmp_path):
    robot = drifted(tmp_path)
    onset = robot.body.versions.events[-1].about["since"]
    robot.body.close()
    again = Robot(tmp_path)
    assert again.body.monitor.state is Drift.DRIFTED and again.body.monitor.total.reference == 0.2
    again.episodes = 50
    again.window(0.5)
    again.window(0.5)
    assert again.aligned(0.3).material.since == onset
    again.body.close()
    assert Robot(tmp_path).context == 0.3
    other = Robot(tmp_path, given=0.7)
    assert other.context == 0.7, "the operator gives another one"
    assert other.body.versions.events[-1].about == {"since": other.body.ring.end}, "and older steps no longer count"


def test_a_full_disk_loses_steps_and_says_so(tmp_path, monkeypatch):
    robot = Robot(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    steps = many_steps(1)
    with monkeypatch.context() as patch:
        for step in steps[:4]:
            robot.body.add(step)
        patch.setattr(os, "pwrite", full)
        robot.body.add(steps[4])
        status = robot.body.status()
        assert status["lost_steps"] == 1 and "No space left" in status["problem"]
    for step in steps[5:]:
        robot.body.add(step)
    status = robot.body.status()
    assert status["problem"] == "" and status["buffer"]["steps"] == 8
    assert status["transitions"] == 4, "2 before the gap, 2 after it, none across"


def test_a_failed_job_is_told_and_leaves_everything(tmp_path):
    robot = drifted(tmp_path)
    robot.window(0.5)
    job = robot.body.next_job()
    robot.body.failed(job, "was killed by SIGKILL")
    assert robot.context == 0.1 and robot.body.versions.events[-1].about == {
        "by": "drift",
        "why": "was killed by SIGKILL",
    }
    robot.moves()
    robot.body.failed(robot.body.next_job(), "no memory")
    assert robot.body.next_job() is None


def test_jobs_have_the_earlier_looks_of_the_transitions_that_are_due(tmp_path):
    """In one long chain a transition begins before the look that completes it."""
    robot, windows = Robot(tmp_path), 0
    for step in steps_of(make_episode(0, 101), every=2):
        robot.body.add(step)
        if (job := robot.body.next_job()) is not None:
            assert isinstance(job, MeasureJob)
            assert job.material.play(HORIZON).num_transitions(HORIZON) >= CONFIG.window
            robot.takes(job, {"losses": {"live": 0.2}, "parts": {}, "transitions": 7})
            windows += 1
    assert windows == 7


def test_an_alignment_has_as_many_of_the_newest_transitions_as_are_wanted(tmp_path):
    robot = Robot(tmp_path, replace(CONFIG, align_max=14, window=1000))
    for step in steps_of(make_episode(0, 161), every=2):
        robot.body.add(step)
    robot.body.wanted = "operator"
    job = robot.body.next_job()
    assert isinstance(job, AlignJob) and job.material.since > 0
    assert job.material.play(HORIZON).num_transitions(HORIZON) >= 14


def test_a_drift_without_patience_leaves_all_steps_so_far_behind(tmp_path):
    robot = Robot(tmp_path, replace(CONFIG, drift=replace(CONFIG.drift, drift_patience=1)))
    robot.window(0.2)
    robot.window(0.5)
    event = robot.body.versions.events[-1]
    assert event.kind == "drift began" and event.about["since"] == robot.body.ring.end > 0

"""The monitor on series of losses that were made up, with noise as a robot's own motion brings it."""

import math

import numpy as np
import pytest

from selfalign.online.drift import TOTAL, Drift, DriftConfig, DriftMonitor, DriftMonitors


def states(losses, monitor: DriftMonitor | None = None) -> list[Drift]:
    monitor = monitor or DriftMonitor(DriftConfig(drift_calibration=3))
    return [monitor.update(loss) for loss in losses]


def test_a_bump_is_seen_after_as_many_windows_as_patience_says():
    seen = states([0.2, 0.22, 0.18, 0.21, 0.19, 0.5, 0.5, 0.5])
    assert seen[:3] == [Drift.CALIBRATING, Drift.CALIBRATING, Drift.STEADY]
    assert seen[3:] == [Drift.STEADY, Drift.STEADY, Drift.SUSPECTED, Drift.DRIFTED, Drift.DRIFTED]


def test_one_high_window_is_no_drift():
    assert Drift.DRIFTED not in states([0.2, 0.2, 0.2] + [0.5, 0.2] * 10)


def test_a_drift_ends_below_the_lower_threshold_only():
    monitor = DriftMonitor(DriftConfig(drift_margin=0.3, drift_calm=1 / 3, drift_patience=1, drift_calibration=3))
    states([1.0, 1.0, 1.0], monitor)
    assert states([1.31, 1.29, 1.2, 1.11, 1.101], monitor) == [Drift.DRIFTED] * 5
    assert states([1.09, 1.2, 1.29, 1.31], monitor) == [Drift.STEADY, Drift.STEADY, Drift.STEADY, Drift.DRIFTED]


def test_what_is_usual_is_the_median_of_the_first_windows():
    monitor = DriftMonitor(DriftConfig(drift_calibration=5))
    states([0.1, 9.0, 0.2, math.nan, 0.3, 0.15], monitor)
    assert monitor.reference == 0.2


def test_a_loss_that_is_not_finite_is_a_high_one():
    assert states([0.2] * 3 + [math.nan, math.inf])[-2:] == [Drift.SUSPECTED, Drift.DRIFTED]


def test_a_reset_begins_anew():
    monitor = DriftMonitor(DriftConfig(drift_calibration=3))
    assert states([0.2] * 3 + [0.5] * 2, monitor)[-1] == Drift.DRIFTED
    monitor.reset()
    assert states([0.5] * 4, monitor)[-1] == Drift.STEADY
    monitor.reset(0.2)
    assert states([0.5] * 2, monitor)[-1] == Drift.DRIFTED


def test_the_margin_is_some_standard_deviations_of_the_first_windows():
    monitor, losses = DriftMonitor(), [0.9, 1.0, 1.1, 1.0, 0.95, 1.05]
    states(losses, monitor)
    assert monitor.margin == pytest.approx(4 * np.std(losses, ddof=1))
    high = 1 + monitor.margin
    assert states([high - 0.01, high + 0.01, high + 0.01], monitor) == [Drift.STEADY, Drift.SUSPECTED, Drift.DRIFTED]


@pytest.mark.parametrize(("losses", "margin"), [([1.0] * 6, 0.15), ([1.0, 1.0, 1.0, 1.0, 1.0, 9.0], 1.0)])
def test_the_margin_is_neither_nothing_nor_more_than_the_usual_loss(losses, margin):
    monitor = DriftMonitor()
    states(losses, monitor)
    assert monitor.margin == margin


@pytest.mark.parametrize(("noise", "rise"), [(0.02, 1.25), (0.08, 1.8), (0.15, 3.0)])
def test_noise_alone_is_hardly_ever_a_drift_and_a_bump_hardly_ever_missed(noise, rise):
    """60 robots of 100 windows whose loss varies so much; then it rises."""
    rng = np.random.default_rng(0)
    false, missed = 0, 0
    for _ in range(60):
        monitor = DriftMonitor()
        usual = rng.uniform(0.05, 1.0)
        false += Drift.DRIFTED in states(usual * (1 + noise * rng.normal(size=100)), monitor)
        monitor.drifted = False
        missed += Drift.DRIFTED not in states(rise * usual * (1 + noise * rng.normal(size=6)), monitor)
    assert false <= 3 and missed <= 2


MEASURED = {
    "as it was": [
        (1.0604, 0.154, 0.3244, 0.4741),
        (1.1713, 0.129, 0.288, 0.6457),
        (0.9526, 0.1221, 0.2441, 0.4795),
        (1.5621, 0.3899, 0.5139, 0.5553),
        (0.8425, 0.1337, 0.1974, 0.4032),
        (1.1487, 0.1491, 0.2539, 0.6398),
        (1.0145, 0.1322, 0.2386, 0.5379),
        (0.9773, 0.0969, 0.3282, 0.448),
    ],
    "scene camera moved": [
        (1.2835, 0.3979, 0.3154, 0.4623),
        (1.4635, 0.411, 0.2851, 0.6588),
        (1.1577, 0.3504, 0.2363, 0.4637),
    ],
    "both moved": [
        (2.1548, 0.3926, 1.1485, 0.505),
        (2.5498, 0.4179, 1.3553, 0.6674),
        (2.0185, 0.3922, 1.0613, 0.4572),
    ],
}
"""Total, perception, dynamics and inverse of windows of two trajectories: `tiny` on a body that it has never had,
fitted to 20 others, and pictures moved by 6 of their 96 pixels, which is 40 of 640."""


@pytest.mark.parametrize(
    ("what", "parts"), [("scene camera moved", {"perception"}), ("both moved", {TOTAL, "dynamics"})]
)
def test_a_camera_that_moved_by_a_few_pixels_shows_in_a_part_of_the_loss(what, parts):
    monitors, alone = DriftMonitors(DriftConfig()), DriftMonitor()
    for row in MEASURED["as it was"]:
        monitors.update(dict(zip((TOTAL, "perception", "dynamics", "inverse"), row, strict=True)))
        alone.update(row[0])
    assert monitors.state is Drift.STEADY
    for row in MEASURED[what]:
        monitors.update(dict(zip((TOTAL, "perception", "dynamics", "inverse"), row, strict=True)))
        alone.update(row[0])
    assert monitors.state is Drift.DRIFTED and parts <= set(monitors.drifted)
    assert alone.drifted is (TOTAL in parts), "the total varies more than a small move raises it"


def test_parts_of_the_loss_hardly_ever_call_a_false_alarm():
    """60 robots of 100 windows whose losses vary by 8 %, the parts by 15 %, each by itself."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(60):
        monitors, noise = DriftMonitors(DriftConfig()), np.array([0.08, 0.15, 0.15, 0.15])
        for row in rng.uniform(0.05, 1.0, size=4) * (1 + noise * rng.normal(size=(100, 4))):
            monitors.update(dict(zip((TOTAL, "perception", "dynamics", "inverse"), row, strict=True)))
            if monitors.drifted:
                false += 1
                break
    assert false <= 4


@pytest.mark.parametrize(
    "changes",
    [
        {"drift_calm": 1.5},
        {"drift_calm": -0.1},
        {"drift_margin": 1.5},
        {"drift_part_margin": -0.5},
        {"drift_sigmas": -1.0},
        {"drift_patience": 0},
        {"drift_calibration": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match="drift: needs drift_margin and drift_part_margin in"):
        DriftConfig(**changes)


def test_a_part_is_believed_a_window_later_than_the_total():
    def monitors() -> DriftMonitors:
        made = DriftMonitors(DriftConfig(drift_patience=2, drift_calibration=1))
        made.update({TOTAL: 1.0, "perception": 1.0})
        return made

    part, total = monitors(), monitors()
    assert [part.update({TOTAL: 1.0, "perception": 3.0}) for _ in range(3)] == [
        Drift.SUSPECTED,
        Drift.SUSPECTED,
        Drift.DRIFTED,
    ]
    assert [total.update({TOTAL: 3.0, "perception": 1.0}) for _ in range(2)] == [Drift.SUSPECTED, Drift.DRIFTED]

"""Doubted fits and others: the numbers of the page of results."""

from page_doubts import Ended, _told, doubts

from calibrations import make_calibration
from selfalign.calibration import Ample


def test_doubted_bodies_are_counted_and_told_apart():
    calibration = make_calibration(ample=Ample(frames=1000, loss=1.0))  # doubts from 1.1 on
    ended = [Ended(0.9, 1.0), Ended(1.09, 0.8), Ended(1.11, 0.4), Ended(3.0, 0.0)]
    assert _told(ended, calibration) == ["4", "1.10", "3.00", "2", "20 %", "90 %"]
    assert _told(ended[:1], calibration) == ["1", "0.90", "0.90", "0", "-", "100 %"]


def test_rows_are_the_kinds_of_which_there_are_bodies():
    def row(degrees: float, loss: float, success: float) -> dict:
        return {"degrees": degrees, "verdict": {"after": loss}, "success": {"value": success}}

    beyond = {"bodies": [row(10.0, 0.9, 1.0), row(30.0, 1.5, 0.2), row(30.0, 1.0, 0.4)]}
    calibration = make_calibration(ample=Ample(frames=1000, loss=1.0))
    *_, table = doubts([], beyond, calibration)
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]] == [
        "a camera 10° beyond the sources' sector",
        "a camera 30° beyond the sources' sector",
    ]
    assert table.splitlines()[-1].endswith("| 2 | 1.25 | 1.50 | 1 | 20 % | 40 % |")
    assert not list(doubts([], None, calibration)) and not list(doubts([], beyond, make_calibration()))

"""Made-up calibrations."""

from selfalign.calibration import Calibration, Expected


def make_calibration(fingerprint: str = "0123", **changes) -> Calibration:
    values = {
        "fingerprint": fingerprint,
        "task": "reach",
        "loss": (1.0, 1.5, 3.0),
        "success": (0.95, 0.5, 0.0),
        "low": (0.9, 0.3, 0.0),
        "high": (0.98, 0.7, 0.1),
        "action_loss": (0.2, 0.4, 0.6),
        "seen": (0.8, 1.6),
        "before": Expected(0.0, 0.0, 0.05),
        "bodies": 6,
        "attempts": 30,
        "episodes": 300,
        "source": {"seed": 1000},
    }
    return Calibration(**{**values, **changes})

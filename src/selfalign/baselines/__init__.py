"""Other ways to bring the same policy to a new body, and how each is tuned (`docs/baselines.md`)."""

from selfalign.baselines.method import Adapted, Method
from selfalign.baselines.methods import METHODS, fit

__all__ = ["METHODS", "Adapted", "Method", "fit"]

"""Jobs for a cluster's workers, in a file that is quick to import."""

import os


def square(number: int) -> tuple[int, int]:
    """The square, and the process that has found it."""
    if number == 4:
        raise ValueError("4 is broken")
    return number * number, os.getpid()

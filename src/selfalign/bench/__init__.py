"""Closed-loop evaluation: rollouts, the adaptation benchmark, matrices of cells, and calibration."""

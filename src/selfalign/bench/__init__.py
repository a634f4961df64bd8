"""Closed-loop evaluation: rollouts, the adaptation benchmark, the demo and their reports."""

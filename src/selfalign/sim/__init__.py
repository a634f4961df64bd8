"""Simulated robots, tasks and scripted experts in plain MuJoCo."""

"""Fitting a body's context to its play: offline, and rehearsed inside pretraining."""

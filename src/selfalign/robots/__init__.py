"""Robots that move: the small protocol that one has to speak so that it can play, and what keeps it safe meanwhile."""

"""Alignment while robots act: what they did is kept, contexts are fitted to it, watched, and taken back."""

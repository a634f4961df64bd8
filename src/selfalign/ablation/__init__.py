"""Ablations: recipes that differ from the shipped one in one thing, trained and measured alike."""

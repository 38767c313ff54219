"""Evaluation of synthetic sets: fresh networks, continual learning with a replay buffer, architecture search."""

"""Measurements on synthetic sets and experts that are not accuracies."""

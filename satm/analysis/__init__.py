"""Measurements on synthetic sets that are not accuracies."""

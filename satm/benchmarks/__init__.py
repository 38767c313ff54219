"""Benchmarks: our loops and those of the published code, in turn in one process."""

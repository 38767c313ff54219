"""Figures from the files that other stages left behind; a module per kind.

As in `satm.tables`, importing a module here imports neither torch nor matplotlib.
"""

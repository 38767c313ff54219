"""Figures from the results of other stages; a module per kind.

As in `satm.tables`, importing a module here imports neither torch nor matplotlib.
"""

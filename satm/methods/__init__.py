"""The methods: one file per paper, each a composition of parts.

`METHODS` maps names to recipes; `resolve` checks the options of one. `parts/` contains the parts.
"""

from satm.methods.recipe import METHODS, Recipe, resolve

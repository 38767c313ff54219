"""The methods: one file per paper, found by the registry, each a composition of parts.

`METHODS` holds a `Recipe` per name; `resolve` checks the options of one. `parts/` holds what methods are made of.
"""

from satm.methods.recipe import METHODS, Recipe, resolve

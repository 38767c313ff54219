"""Checked options of methods and networks; many cells of a campaign share them. Nothing here imports torch."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from satm.config import Options, canonical
from satm.config.methods import MethodOptions
from satm.methods import METHODS, Recipe
from satm.methods import resolve as resolve_method
from satm.networks import resolve as resolve_network


def method_options(values: Mapping[str, Any]) -> MethodOptions:
    """Return the checked options of `{"method": name, option: value…}`.

    Raises:
        UsageError: an unknown method or option, or an unusable value.
    """
    return _method(canonical(values))


def network_options(values: Mapping[str, Any]) -> Options:
    """Return the checked options of `{"network": name, option: value…}`; raises as `method_options`."""
    return _network(canonical(values))


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a method with these values, which were checked."""
    return METHODS[values["method"]]


def experts_of(values: Mapping[str, Any]) -> str | None:
    """Return the experts of a method with these values; None: it uses none. Raises as `method_options`."""
    name: str | None = getattr(method_options(values), "experts", None)
    return name


@functools.cache
def _method(text: str) -> MethodOptions:
    return resolve_method(json.loads(text))[1]


@functools.cache
def _network(text: str) -> Options:
    return resolve_network(json.loads(text))[1]

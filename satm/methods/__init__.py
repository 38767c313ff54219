"""The methods by name, and how one's options are resolved. A new method is a file and one import line here."""

from collections.abc import Mapping
from typing import Any

from satm.config import parse
from satm.errors import pick
from satm.methods.base import METHODS, IterativeMethod, IterativeOptions, Method, MethodOptions, Problem, Synthetic
from satm.methods.mtt import Mtt
from satm.methods.random import Random
from satm.methods.satm import Satm

__all__ = [
    "METHODS",
    "IterativeMethod",
    "IterativeOptions",
    "Method",
    "MethodOptions",
    "Mtt",
    "Problem",
    "Random",
    "Satm",
    "Synthetic",
    "resolve",
]


def resolve(values: Mapping[str, Any]) -> tuple[type[Method], MethodOptions]:
    """Return the class and the checked options of `{"method": name, option: value…}`.

    Raises:
        UsageError: an unknown method or option, or an unusable value.
    """
    held = dict(values)
    name = str(held.pop("method"))
    method = pick(name, METHODS, "method")
    return method, parse(method.options, held, f"method {name}")

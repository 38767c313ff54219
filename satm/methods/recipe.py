"""A method is a recipe: named parts, options and the code that is new in its paper.

Recipes are read by the workflow, which must not wait for torch: files of this package import it, and the parts that
need it, inside the functions that compute.
"""

import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import create_model
from pydantic.fields import FieldInfo

from satm.config import parse
from satm.config.methods import MethodOptions
from satm.errors import pick
from satm.methods import checks
from satm.registry import Registry

LOG = logging.getLogger("satm")

if TYPE_CHECKING:
    from satm.methods.parts.method import Method
    from satm.methods.parts.problem import Problem


@dataclass(frozen=True)
class Family:
    """The machinery that methods of one kind share.

    Args:
        objective: name of the outer loss in `Recipe.parts`.
        machinery: module and name of the subclass of `Method` that calls a recipe's code.
        check: what is wrong with the options of such methods.
        needs_experts: whether the problem includes trained experts.
        differentiates: whether the set is learned through the training of a network, or through its gradients or
            features, so that the network must treat each image alone and have no state beside its weights.
    """

    objective: str
    machinery: tuple[str, str]
    check: checks.Check = checks.iterative
    needs_experts: bool = False
    differentiates: bool = False


_PARTS = "satm.methods.parts"
SELECTED = Family("none", (f"{_PARTS}.method", "Method"))
ITERATIVE = Family("own", (f"{_PARTS}.method", "Method"))
CHOSEN_BY_EXPERTS = Family("none", (f"{_PARTS}.selection", "Selection"), needs_experts=True)
EXTERNAL = Family("none", (f"{_PARTS}.external", "External"), checks.external)
MATCHING = Family("match", (f"{_PARTS}.matching", "TrajectoryMatching"), checks.matching, True, True)
UNROLLED = Family("real-loss", (f"{_PARTS}.unrolled", "UnrolledTraining"), checks.unrolled, differentiates=True)
CLASS_MATCHING = Family(
    "class-match", (f"{_PARTS}.class_matching", "ClassMatching"), checks.class_matching, differentiates=True
)


@dataclass(frozen=True)
class Recipe:
    """A method by name.

    Args:
        name: the name in campaigns and on the command line.
        family: the shared machinery.
        options: class of the options, with the method's defaults.
        code: the new part of the method: a function, or an object of functions, as the family's class documents.
        check: yields what is wrong with the options; None: the family's check is enough.
        fixed: parts that no option determines, by their names in `parts`.
    """

    name: str
    family: Family
    options: type[MethodOptions]
    code: Any
    check: Callable[[Any], Iterable[str]] | None
    fixed: Mapping[str, str]

    @property
    def needs_experts(self) -> bool:
        """Whether the method uses trained experts."""
        return self.family.needs_experts

    @property
    def parts(self) -> dict[str, str]:
        """The method's choice of each part, with the default options."""
        values: dict[str, Any] = dict(self.options())
        estimator = "truncated" if values.get("keep_divisor", 1) > 1 else "exact"
        segments = values.get("segments", "none")
        return {
            "experts": values.get("experts", "none"),
            "init": values.get("init", "real"),
            "labels": values.get("labels", "hard"),
            "segments": f"concurrent({segments})" if values.get("concurrent") else segments,
            "objective": self.family.objective + (" from noisy weights" if values.get("start_noise") else ""),
            "estimator": "tesla" if values.get("engine") == "tesla" else estimator if "engine" in values else "none",
            "step size": values.get("step_size_gradient", "fixed"),
            "outer": ("descent" if "iterations" in values else "none") + (" + ema" if values.get("ema") else ""),
            **self.fixed,
        }

    def __call__(self, options: MethodOptions, problem: "Problem") -> "Method[Any]":
        """Return the method, ready to run on a problem.

        Raises:
            UsageError: options, experts and data do not fit together.
        """
        module, name = self.family.machinery
        method: Method[Any] = getattr(importlib.import_module(module), name)(self, options, problem)
        if self.needs_experts and problem.experts is not None and (near := problem.experts.near_chance):
            LOG.warning("method %s uses %s", self.name, near)
            method.caution = near
        return method

    def problems(self, options: MethodOptions, facts: checks.Facts) -> list[str]:
        """Return what is wrong with the options, as far as the facts tell."""
        own = () if self.check is None else self.check(options)
        return [*self.family.check(self, options, facts), *own]


METHODS: Registry[Recipe] = Registry("satm.methods")
"""Every method by its name."""


def recipe(
    name: str,
    family: Family,
    options: type[MethodOptions],
    code: Any = None,
    fixed: Mapping[str, str] | None = None,
    check: Callable[[Any], Iterable[str]] | None = None,
    **defaults: object,
) -> Recipe:
    """Register a method and return its recipe (arguments: `Recipe`); `defaults` replace those of the options.

    Raises:
        ValueError: an unknown option or part, or a name that is taken.
    """
    registered = Recipe(name, family, with_defaults(options, **defaults), code, check, fixed or {})
    if unknown := registered.fixed.keys() - replace(registered, fixed={}).parts.keys():
        raise ValueError(f"{name}: unknown part {', '.join(sorted(unknown))}; known: {', '.join(registered.parts)}")
    return METHODS.register(name, registered)


def with_defaults(options: type[MethodOptions], **defaults: object) -> type[MethodOptions]:
    """Return the same options with other defaults.

    Raises:
        ValueError: an unknown option.
    """
    if unknown := defaults.keys() - options.model_fields.keys():
        raise ValueError(f"{options.__name__} has no option {', '.join(sorted(unknown))}")
    if not defaults:
        return options
    fields = {name: options.model_fields[name] for name in defaults}
    changed: dict[str, Any] = {
        name: (field.annotation, FieldInfo.merge_field_infos(field, default=defaults[name]))
        for name, field in fields.items()
    }
    return create_model(
        options.__name__, __base__=options, __doc__=options.__doc__, __module__=options.__module__, **changed
    )


def resolve(values: Mapping[str, Any]) -> tuple[Recipe, MethodOptions]:
    """Return the recipe and the checked options of `{"method": name, option: value…}`.

    Raises:
        UsageError: an unknown method or option, or an unusable value.
    """
    options = dict(values)
    entry = pick(str(options.pop("method")), METHODS, "method")
    return entry, parse(entry.options, options, f"method {entry.name}")

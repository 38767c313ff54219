"""A method is a recipe: named parts, options and the code that is new in its paper.

Recipes are read by the workflow, which must not wait for torch: files of this package import it, and the parts that
need it, inside the functions that compute.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import create_model
from pydantic.fields import FieldInfo

from satm.config import parse
from satm.config.methods import MethodOptions
from satm.errors import pick
from satm.registry import Registry

if TYPE_CHECKING:
    from satm.methods.parts.method import Method
    from satm.methods.parts.problem import Problem


@dataclass(frozen=True)
class Family:
    """The machinery that methods of one kind share.

    Args:
        objective: what should be small, as a word of `Recipe.parts`.
        machinery: module and class, a `Method`; a recipe's own code is put into it.
        needs_experts: trained experts are part of the problem.
    """

    objective: str
    machinery: tuple[str, str]
    needs_experts: bool = False


SELECTED = Family("none", ("satm.methods.parts.method", "Method"))
ITERATIVE = Family("own", ("satm.methods.parts.method", "Method"))
CHOSEN_BY_EXPERTS = Family("none", ("satm.methods.parts.selection", "Selection"), needs_experts=True)
EXTERNAL = Family("none", ("satm.methods.parts.external", "External"))
MATCHING = Family("match", ("satm.methods.parts.matching", "TrajectoryMatching"), needs_experts=True)
UNROLLED = Family("real-loss", ("satm.methods.parts.unrolled", "UnrolledTraining"))
CLASS_MATCHING = Family("class-match", ("satm.methods.parts.class_matching", "ClassMatching"))


@dataclass(frozen=True)
class Recipe:
    """A method by name.

    Args:
        name: in campaigns and on the command line.
        family: the shared machinery.
        options: what can be set; the defaults are the method's own.
        code: what is new in the method: a function, or an object of functions, as the family's class documents.
        check: raises `UsageError` for options that exclude each other; None: the family's checks are enough.
        fixed: parts that no option chooses, by the names of `parts`.
    """

    name: str
    family: Family
    options: type[MethodOptions]
    code: Any
    check: Callable[[Any], object] | None
    fixed: Mapping[str, str]

    @property
    def needs_experts(self) -> bool:
        """Whether it matches, or asks, trained experts."""
        return self.family.needs_experts

    @property
    def parts(self) -> dict[str, str]:
        """The part that answers each question, with the default options."""
        default = self.options()
        held: dict[str, Any] = {name: getattr(default, name) or "" for name in type(default).model_fields}
        kept = "truncated" if held.get("keep_divisor", 1) > 1 else "exact"
        segments, noisy = held.get("segments", "none"), held.get("start_noise")
        return {
            "experts": held.get("experts", "none"),
            "init": held.get("init", "real"),
            "labels": held.get("labels", "hard"),
            "segments": f"concurrent({segments})" if held.get("concurrent") else segments,
            "objective": self.family.objective + (" from noisy weights" if noisy else ""),
            "estimator": "tesla" if held.get("engine") == "tesla" else kept if "engine" in held else "none",
            "step size": held.get("step_size_gradient", "fixed"),
            "outer": ("descent" if "iterations" in held else "none") + (" + ema" if held.get("ema") else ""),
            **self.fixed,
        }

    def __call__(self, options: MethodOptions, problem: "Problem") -> "Method[Any]":
        """Return the method, ready to run on a problem.

        Raises:
            UsageError: options, experts and data do not fit together.
        """
        module, name = self.family.machinery
        made: Method[Any] = getattr(importlib.import_module(module), name)(self, options, problem)
        if self.check is not None:
            self.check(options)
        return made


METHODS: Registry[Recipe] = Registry("satm.methods")
"""Every method by its name."""


def recipe(
    name: str,
    family: Family,
    options: type[MethodOptions],
    code: Any = None,
    fixed: Mapping[str, str] | None = None,
    check: Callable[[Any], object] | None = None,
    **defaults: object,
) -> Recipe:
    """Register a method and return its recipe (arguments: `Recipe`); `defaults` replace those of the options."""
    return METHODS.register(name, Recipe(name, family, with_defaults(options, **defaults), code, check, fixed or {}))


def with_defaults(options: type[MethodOptions], **defaults: object) -> type[MethodOptions]:
    """Return the same options with other defaults.

    Raises:
        ValueError: there is no such option.
    """
    if unknown := defaults.keys() - options.model_fields.keys():
        raise ValueError(f"{options.__name__} has no option {', '.join(sorted(unknown))}")
    if not defaults:
        return options
    changed: dict[str, Any] = {}
    for name, value in defaults.items():
        field = options.model_fields[name]
        changed[name] = (field.annotation, FieldInfo.merge_field_infos(field, default=value))
    made: type[MethodOptions] = create_model(
        options.__name__, __base__=options, __doc__=options.__doc__, __module__=options.__module__, **changed
    )
    return made


def resolve(values: Mapping[str, Any]) -> tuple[Recipe, MethodOptions]:
    """Return the recipe and the checked options of `{"method": name, option: value…}`.

    Raises:
        UsageError: an unknown method or option, or an unusable value.
    """
    held = dict(values)
    name = str(held.pop("method"))
    found = pick(name, METHODS, "method")
    return found, parse(found.options, held, f"method {name}")

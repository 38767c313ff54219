"""What all options have in common: closed models, their parsing, and one text for equal values."""

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from satm.errors import UsageError, short, suggest

NAME = r"[A-Za-z0-9][A-Za-z0-9-]*"
"""What a name in a campaign may look like: it becomes part of paths and a Snakemake wildcard."""

LONGEST_NAME = 100
"""Letters of a name; file systems allow 255, and some files carry two names."""

LARGEST = 2**63 - 1
"""Largest whole number of an option, either way: what 64 bits hold."""

REVISIONS = {
    "data": 1,
    "experts": 1,
    "distill": 1,
    "evaluate": 1,
    "continual": 1,
    "nas": 1,
    "analyse": 1,
    "table": 1,
    "figure": 1,
}
"""Raised by hand when a stage's numbers change, for the workflow cannot see edits of code; stands in what is made."""

M = TypeVar("M", bound="Options")


class Options(BaseModel):
    """Frozen options; an unknown name is an error; so are NaN, infinity, true for a number and a number for true."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _are_what_they_look_like(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if name not in cls.model_fields:
                continue
            kinds = _kinds(cls, name)
            if not kinds & {bool, Any, Options} and any(isinstance(one, bool) for one in _leaves(value)):
                raise ValueError(f"{name} cannot be true or false, which in YAML are yes, no, on and off too")
            if cls.model_fields[name].annotation is bool and not isinstance(value, bool):
                raise ValueError(f"{name} is {short(value)}, expected true or false")
            if Options not in kinds and (found := unusable(value)):
                raise ValueError(f"{name} has {found}")
        return values


@functools.cache
def _kinds(model: type[BaseModel], name: str) -> frozenset[Any]:
    """Return the types that an option's type is made of; `Options` stands for all options, which see to themselves."""

    def parts(annotation: Any) -> Iterator[Any]:
        yield Options if isinstance(annotation, type) and issubclass(annotation, BaseModel) else annotation
        for part in get_args(annotation):
            yield from parts(part)

    found = parts(model.model_fields[name].annotation)
    return frozenset(kind for kind in found if kind in (bool, Any, Options))


def unusable(value: object) -> str | None:
    """Return in words a number in nested lists and mappings that no option can be; None where there is none."""
    for one in _leaves(value):
        if isinstance(one, float) and not math.isfinite(one):
            return f"{one}, which is no finite number"
        if isinstance(one, int) and abs(one) > LARGEST:
            return "a number beyond 64 bits"
    return None


def _leaves(value: object) -> Iterator[object]:
    """Yield the values in nested lists and mappings, and the names in the latter."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield name
            yield from _leaves(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def check_name(name: str) -> None:
    """Check that a name can be part of paths.

    Raises:
        ValueError: it cannot.
    """
    if not re.fullmatch(NAME, name) or len(name) > LONGEST_NAME:
        raise ValueError(
            f"the name {short(name)} may hold letters, digits and '-' only, {LONGEST_NAME} at most, and no '-' first"
        )


def refuse_idle(options: Options, idle: Mapping[str, Sequence[str]], prefix: str = "") -> None:
    """Refuse options that were set and have no effect.

    Args:
        options: to check.
        idle: names by what robs them of their effect, and what to do, in words.
        prefix: what the message begins with.

    Raises:
        UsageError: naming both.
    """
    for cause, names in idle.items():
        for name in names:
            if (value := getattr(options, name)) != type(options).model_fields[name].default:
                raise UsageError(f"{prefix}{name} {value!r} has no effect with {cause}, or leave {name} out")


def parse(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """Return `values` as the options model, checked.

    Args:
        model: the options to fill.
        values: by option name.
        where: what the values belong to, for the message.

    Raises:
        UsageError: an unknown option (with the nearest known one) or an unusable value; one line, the first problem.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_at(model, first["loc"][:-1])
            hint = f"; known: {', '.join(known)}.{suggest(str(first['loc'][-1]), known)}"
            raise UsageError(f"{where}: unknown option {place!r}{hint}") from error
        if first["type"] == "missing":
            raise UsageError(f"{where}: {place} is missing; give it a value") from error
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        raise UsageError(f"{where}: {place or 'the options'}: {message}, got {short(first['input'])}") from error


def _known_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the option names of the model that `path` (of a validation error) leads to."""
    here: Any = model
    for step in path:
        if isinstance(here, type) and issubclass(here, BaseModel) and step in here.model_fields:
            here = here.model_fields[str(step)].annotation
            arguments = [found for found in getattr(here, "__args__", ()) if isinstance(found, type)]
            models = [found for found in arguments if issubclass(found, BaseModel)]
            here = models[0] if models else here
    return sorted(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def canonical(values: Mapping[str, Any] | BaseModel) -> str:
    """Return options as one JSON text that is the same for the same values, for parameters of jobs and metadata."""
    content = values.model_dump(mode="json") if isinstance(values, BaseModel) else values
    return json.dumps(content, sort_keys=True)


def grouped(count: int, each: int) -> list[str]:
    """Return the numbers from 0 up to `count` in groups of so many, `FIRST-LAST`, both included."""
    return [f"{first}-{min(first + each, count) - 1}" for first in range(0, count, each)]

"""What all options have in common: closed models, their parsing, and one text for equal values."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import PydanticCustomError

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
    """Frozen options that reject unknown names, unusable numbers and mix-ups of numbers with true and false."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _as_written(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        given = values if isinstance(values, Mapping) else {}
        for name in given:
            if name not in cls.model_fields:
                known = sorted(cls.model_fields)
                raise PydanticCustomError("unknown_option", "unknown option", {"name": str(name), "known": known})
        # Pydantic's strict mode rejects too much: 1e3 for a whole number, a list for a tuple, a mapping for options.
        options = validate(values)
        for name, value in given.items():
            made = getattr(options, name)
            if lost := _count(bool, value) - _count(bool, made):
                expected = "a number instead of true or false" if lost > 0 else "true or false"
                raise ValueError(f"{name} is {short(value)}, expected {expected}")
            if _count(str, value) > _count(str, made):
                raise ValueError(f"{name} is {short(value)}, expected a number without quotes")
            if problem := unusable(value):
                raise ValueError(f"{name} has {problem}")
        return options


def _count(kind: type, value: object) -> int:
    """Count the values of a type in nested lists, mappings and options."""
    return sum(isinstance(one, kind) for one in _leaves(value))


def unusable(value: object) -> str | None:
    """Return in words a number in nested lists and mappings that no option can be; None where there is none."""
    for one in _leaves(value):
        if isinstance(one, float) and not math.isfinite(one):
            return f"{one}, which is no finite number"
        if isinstance(one, int) and abs(one) > LARGEST:
            return "a number beyond 64 bits"
    return None


def _leaves(value: object) -> Iterator[object]:
    """Yield the values in nested lists, mappings and options (those that are set), and the names in the latter two."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield name
            yield from _leaves(one)
    elif isinstance(value, BaseModel):
        yield from _leaves({name: getattr(value, name) for name in value.model_fields_set})
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
        if first["type"] == "unknown_option":
            name, known = first["ctx"]["name"], first["ctx"]["known"]
            whole = ".".join([*([place] if place else []), name])
            hint = f"; known: {', '.join(known)}.{suggest(name, known)}"
            raise UsageError(f"{where}: unknown option {short(whole)}{hint}") from error
        if first["type"] == "missing":
            raise UsageError(f"{where}: {place} is missing; give it a value") from error
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        got = "" if first["type"] == "value_error" else f", got {short(first['input'])}"
        raise UsageError(": ".join(part for part in (where, place, f"{message}{got}") if part)) from error


def canonical(values: Mapping[str, Any] | BaseModel) -> str:
    """Return options as one JSON text that is the same for the same values, for parameters of jobs and metadata."""
    content = values.model_dump(mode="json") if isinstance(values, BaseModel) else values
    return json.dumps(content, sort_keys=True)


def grouped(count: int, each: int) -> list[str]:
    """Return the numbers from 0 up to `count` in groups of so many, `FIRST-LAST`, both included."""
    return [f"{first}-{min(first + each, count) - 1}" for first in range(0, count, each)]

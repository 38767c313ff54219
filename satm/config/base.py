"""What all options have in common: closed models, their parsing, and one text for equal values."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from satm.errors import UsageError, suggest

NAME = r"[A-Za-z0-9][A-Za-z0-9-]*"
"""What a name in a campaign may look like: it becomes part of paths and a Snakemake wildcard."""

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
"""Raised by hand when a stage's numbers change; the workflow passes it to each job, which cannot see edits of code."""

M = TypeVar("M", bound="Options")


class Options(BaseModel):
    """Frozen options; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
        raise UsageError(f"{where}: {place or 'the options'}: {message}, got {first['input']!r}") from error


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

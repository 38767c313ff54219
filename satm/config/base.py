"""Base of all options: closed models, their parsing and their canonical text."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from satm.errors import refuse, short

NAME = r"[A-Za-z0-9][A-Za-z0-9-]*"
"""Pattern of names in a campaign, which become parts of paths and Snakemake wildcards."""

LONGEST_NAME = 100
"""Largest length of a name; file systems allow 255 characters, and some file names contain two names."""

MOST_FILES = 20_000
"""Largest number of files that one table or figure may read."""

LARGEST = 2**63 - 1
"""Largest absolute value of an integer option, that of 64 bits."""

REVISIONS = {
    "data": 2,  # 2: class folders are in the order of the numbers in their names
    **dict.fromkeys(("experts", "distill", "evaluate", "continual", "nas", "analyse", "table", "figure"), 1),
}
"""Revision by stage, stored in its results: raise it when numbers change, as the workflow does not see code changes."""

T = TypeVar("T")


class _OneForMany:
    """Says in the schema of a campaign that one value stands for a list of one."""

    @staticmethod
    def __get_pydantic_json_schema__(core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        many = handler(core)
        return {"anyOf": [many["items"], many]}


OneOrMore = Annotated[
    tuple[T, ...], BeforeValidator(lambda it: it if isinstance(it, list | tuple) else (it,)), _OneForMany
]
"""Several values, or one that is written without a list."""

UNKNOWN = "unknown_option"
"""Type of pydantic's error about an option that a model lacks; its context has the `name` and the `known` ones."""


class Options(BaseModel):
    """Frozen options that reject unknown names, non-finite numbers and mix-ups of booleans and numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _as_written(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        raw = values if isinstance(values, Mapping) else {}
        known = {name: value for name, value in raw.items() if name in cls.model_fields}
        problems = [_unknown(str(name), cls) for name in raw if name not in known]
        refused: ValidationError | None = None
        try:
            options = validate(known if problems else values)
            parsed = {name: getattr(options, name) for name in known}
        except ValidationError as error:
            refused = error
            parsed = _one_by_one(cls, known, {step for each in error.errors() for step in each["loc"][:1]})
        for name, value in parsed.items():
            if text := _mixed_up(name, known[name], value):
                problems.append(_error("value_error", text))
        if refused and not problems:
            raise refused
        problems += map(_again, refused.errors() if refused else ())
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return options


def _one_by_one(model: type[Options], values: Mapping[str, Any], wrong: Collection[object]) -> dict[str, Any]:
    """Return the values that are of the type of their option, parsed, without those named `wrong`."""
    parsed = {}
    for name in (each for each in values if each not in wrong):
        kind: Any = model.model_fields[name].annotation
        with contextlib.suppress(ValidationError):  # if it needs the field's own validator
            parsed[name] = TypeAdapter(kind).validate_python(values[name])
    return parsed


def _error(
    kind: str, text: str, context: dict[str, Any] | None = None, place: tuple[int | str, ...] = (), value: object = None
) -> InitErrorDetails:
    custom: Any = PydanticCustomError  # its type asks for texts that are literals
    return InitErrorDetails(type=custom(kind, text, context), loc=place, input=value)


def _unknown(name: str, model: type[Options]) -> InitErrorDetails:
    return _error(UNKNOWN, "unknown option", {"name": name, "known": sorted(model.model_fields)})


def _again(error: ErrorDetails) -> InitErrorDetails:
    """Return a reported error in the form in which errors are raised."""
    return _error(error["type"], error["msg"], error.get("ctx"), error["loc"], error["input"])


def _mixed_up(name: str, value: object, parsed: object) -> str | None:
    """Return what is wrong with the types in a parsed value, or None.

    Pydantic's strict mode rejects too much: 1e3 for an integer, a list for a tuple, a mapping for options.
    """
    if lost := _count(bool, value) - _count(bool, parsed):
        expected = "a number instead of true or false" if lost > 0 else "true or false"
        return f"{name} is {short(value)}, expected {expected}"
    if _count(str, value) > _count(str, parsed):
        return f"{name} is {short(value)}, expected a number without quotes"
    return f"{name} has {problem}" if (problem := unusable(value)) else None


def _count(kind: type, value: object) -> int:
    """Count the values of a type in nested lists, mappings and options."""
    return sum(isinstance(one, kind) for one in _leaves(value))


def unusable(value: object) -> str | None:
    """Describe the first number in nested lists and mappings that no option can have; None if all are usable."""
    for leaf in _leaves(value):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            return f"{leaf}, which is not a finite number"
        if isinstance(leaf, int) and abs(leaf) > LARGEST:
            return "a number beyond 64 bits"
    return None


def _leaves(value: object) -> Iterator[object]:
    """Yield the values in nested lists, mappings and options (only those set), and the names in the latter two."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield name
            yield from _leaves(part)
    elif isinstance(value, BaseModel):
        yield from _leaves({name: getattr(value, name) for name in value.model_fields_set})
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def check_name(name: str) -> None:
    """Raise a ValueError if a name cannot be part of paths."""
    if not re.fullmatch(NAME, name) or len(name) > LONGEST_NAME:
        raise ValueError(
            f"the name {short(name)} must have letters, digits and '-' only, at most {LONGEST_NAME}, and no '-' first"
        )


def idle_options(options: Options, idle: Mapping[str, Sequence[str]], prefix: str = "") -> Iterator[str]:
    """Yield a sentence for each option that is set and has no effect; `idle` lists them by cause and remedy (text)."""
    for cause, names in idle.items():
        for name in names:
            if (value := getattr(options, name)) != type(options).model_fields[name].default:
                yield f"{prefix}{name} {value!r} has no effect with {cause}, or leave {name} out"


def refuse_idle(options: Options, idle: Mapping[str, Sequence[str]], prefix: str = "") -> None:
    """Raise a UsageError if options without effect are set (arguments: `idle_options`)."""
    refuse(idle_options(options, idle, prefix))


def canonical(values: Mapping[str, Any] | BaseModel) -> str:
    """Return options as JSON text, the same for equal values, for parameters of jobs and metadata."""
    content = values.model_dump(mode="json") if isinstance(values, BaseModel) else values
    return json.dumps(content, sort_keys=True)


def grouped(count: int, each: int) -> list[str]:
    """Return the numbers 0 to `count` - 1 in groups of `each`, as `FIRST-LAST`, both included."""
    return [f"{first}-{min(first + each, count) - 1}" for first in range(0, count, each)]


def numbers(group: str) -> range:
    """Return the numbers of a group `FIRST-LAST`."""
    first, last = map(int, group.split("-"))
    return range(first, last + 1)


def budgets(datasets: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    """Return each dataset with each of its numbers of images per class."""
    return [(dataset, ipc) for dataset, ipcs in datasets.items() for ipc in ipcs]


def refuse_many(files: int) -> None:
    """Raise a ValueError if a table or figure has too many files for planning a campaign."""
    if files > MOST_FILES:
        raise ValueError(f"it needs {files} files, expected at most {MOST_FILES}; split it")

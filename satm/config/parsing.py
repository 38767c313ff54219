"""Values by option name as checked options, and what is wrong with them in sentences."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from satm.config.base import UNKNOWN, Options
from satm.config.datasets import BUILTIN_DATASETS, built_in
from satm.errors import nearest, refuse, short, suggest

M = TypeVar("M", bound=Options)

ALTERNATIVE = r"(constrained-)?(bool|int|float|str|none)|(literal|tuple|list|dict)\[.*\]"
"""Last step of the place of an error that is about one alternative of a type such as `float | str`."""

MOST = 20
"""Largest number of known options that are listed beside the nearest one."""

NOISE = r", unable to parse.*| after validation, not \d+"
"""Parts of pydantic's messages that say nothing more."""

SHOULD_BE = "Input should be "
"""Begin of pydantic's messages about values of a wrong type or size."""


def parse(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """Return values by option name as checked options; `where` begins the message.

    Raises:
        UsageError: unknown options (the message suggests the nearest) and unusable values, all of them.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors()
    refuse(_problems(found), where)
    raise AssertionError("pydantic reported no error")


def _problems(errors: Sequence[ErrorDetails]) -> Iterator[str]:
    """Yield what is wrong, with one text for all alternatives of a type such as `float | str`."""
    places: dict[tuple[int | str, ...], list[ErrorDetails]] = defaultdict(list)
    for error in errors:
        steps = error["loc"]
        alternative = error["type"] != UNKNOWN and steps and re.fullmatch(ALTERNATIVE, str(steps[-1]))
        places[steps[:-1] if alternative else steps].append(error)
    for steps, found in [*places.items()]:  # a list without its wrong items is not too short
        if any(each != steps and each[: len(steps)] == steps for each in places):
            places[steps] = [error for error in found if error["type"] != "too_short"]
    unknown = [error for error in errors if error["type"] == UNKNOWN]
    meant = {(*error["loc"], nearest(error["ctx"]["name"], error["ctx"]["known"])) for error in unknown}
    for steps, found in places.items():
        place, wrong = ".".join(map(str, steps)), []
        for error in found:
            if error["type"] == UNKNOWN:
                name, known = error["ctx"]["name"], error["ctx"]["known"]
                whole = f"{place}.{name}" if place else name
                hint = suggest(name, known)
                listed = f"; known: {', '.join(known) or 'none'}" if len(known) <= MOST or not hint else ""
                yield f"unknown option {short(whole)}{listed}.{hint}"
            elif error["type"] == "missing":
                replaced = steps[1] if steps[:1] == ("datasets",) and steps[2:] == ("source",) else None
                if steps in meant:  # it is there, misspelt
                    continue
                if replaced in BUILTIN_DATASETS:
                    yield (
                        f"{place} is missing; the entry replaces the built-in {replaced} as a whole, so begin with its "
                        f"options, {built_in(str(replaced))}"
                    )
                else:
                    yield f"{place} is missing; give it a value"
            elif error["type"] == "value_error":
                yield _at(place, error["msg"].removeprefix("Value error, "))
            else:
                wrong.append(error)
        if wrong:
            first, *others = (re.sub(NOISE, "", error["msg"]) for error in wrong)
            expected = " or ".join([first, *(text.removeprefix(SHOULD_BE) for text in others)])
            expected = re.sub("(valid )?tuple", "list", expected, flags=re.IGNORECASE)
            yield _at(place, f"{expected}, got {short(wrong[0]['input'])}")


def _at(place: str, text: str) -> str:
    text = text[:1].lower() + text[1:]
    return f"{place}: {text}" if place else text

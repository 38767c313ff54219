"""Errors of the input and of a run, and the look-up of names."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

LONGEST = 200
"""Largest number of characters of a value in a message."""

SHOWN = 10
"""Largest number of items in a message."""


class _OneLine(Exception):
    """An error with a message of one line, without control characters, whatever names it quotes."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", text).strip()
        super().__init__("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text))


class UsageError(_OneLine, ValueError):
    """Unusable input; the message says what was expected, what was found and what to do. The command exits with 2."""


class MissingRun(UsageError):
    """Missing result of another run, or one that differs from what is asked for; the message has the command that makes
    it."""


class RunError(_OneLine, RuntimeError):
    """Failure of a run or machine with usable input. The command exits with 1."""


def refuse(problems: Iterable[str], where: str = "") -> None:
    """Raise a UsageError with all problems in one line, each once; `where` begins it. Do nothing without problems."""
    if not (found := list(dict.fromkeys(problems))):
        return
    text = found[0]
    if len(found) > 1:
        numbered = [f"({number}) {problem}" for number, problem in enumerate(found[:SHOWN], 1)]
        rest = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        text = f"{len(found)} problems: {'; '.join([*numbered, *rest])}"
    raise UsageError(f"{where}: {text}" if where else text)


def short(value: object) -> str:
    """Return `repr(value)` for a message, without the middle if it is longer than `LONGEST`."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 4 :]}"


def some(items: Sequence[str], total: int | None = None, most: int = SHOWN) -> str:
    """Return the first of many items for a message, and the number of the others; `total`: of all, if not given."""
    shown = items[:most]
    others = (len(items) if total is None else total) - len(shown)
    return ", ".join(shown) + (f" and {others} more" if others > 0 else "")


def suggest(name: str, known: Mapping[str, object] | list[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def pick(name: str, known: Mapping[str, T], what: str, where: str = "") -> T:
    """Return `known[name]`; a message names its kind, `what`, such as ``dataset``, and the place, `where`.

    Raises:
        UsageError: an unknown name; the message lists the known names and suggests the nearest.
    """
    if name in known:
        return known[name]
    names = ", ".join(sorted(known)) or "none"
    raise UsageError(f"unknown {what} {short(name)}{where and f' in {where}'}; known: {names}.{suggest(name, known)}")

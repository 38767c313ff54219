"""Errors in the input and of a run, and look-up of names with a suggestion."""

import difflib
import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

LONGEST = 200
"""Characters of a value in a message."""


class _OneLine(Exception):
    """An error whose message is one line, whatever file or option names it quotes."""

    def __init__(self, text: str) -> None:
        super().__init__(_one_line(text))


class UsageError(_OneLine, ValueError):
    """Unusable input; the message says what was expected, what was found and what to do. The command exits with 2."""


class MissingRun(UsageError):
    """Missing result of another run; the message has the command that produces it."""


class RunError(_OneLine, RuntimeError):
    """Failure of a run or machine with usable input. The command exits with 1."""


def _one_line(text: str) -> str:
    """Return a text without line breaks and terminal control characters."""
    text = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", text).strip()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def short(value: object) -> str:
    """Return `repr(value)` for a message, with the middle left out if it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 4 :]}"


def suggest(name: str, known: Mapping[str, object] | list[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def pick(name: str, known: Mapping[str, T], what: str) -> T:
    """Return `known[name]`.

    Args:
        name: requested name.
        known: all names.
        what: the kind of thing, for the message, such as ``dataset``.

    Raises:
        UsageError: an unknown name; the message lists the known names and suggests the nearest.
    """
    if name in known:
        return known[name]
    raise UsageError(
        f"unknown {what} {short(name)}; known: {', '.join(sorted(known)) or 'none'}.{suggest(name, known)}"
    )

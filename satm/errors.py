"""The two ways a run can end badly, and the look-up that suggests the nearest known name."""

import difflib
import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UsageError(ValueError):
    """The input cannot be used as it is; the text says what was got, what was expected and what to do.

    It is one line, whatever names of files or options it quotes. The command line prints it and exits with 2.
    """

    def __init__(self, text: str) -> None:
        super().__init__(_one_line(text))


class MissingRun(UsageError):
    """A file that another run should have made is not there; the text has the command that makes it."""


class RunError(RuntimeError):
    """The machine or the run failed although the input was usable.

    The text is one line. The command line prints it and exits with 1.
    """

    def __init__(self, text: str) -> None:
        super().__init__(_one_line(text))


def _one_line(text: str) -> str:
    """Return a text without breaks of lines and without what would steer a terminal."""
    text = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", text).strip()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def short(value: object) -> str:
    """Return `repr(value)`, the middle left out where it is long, for a message."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 4 :]}"


LONGEST = 200
"""Letters of a value in a message."""


def suggest(name: str, known: Mapping[str, object] | list[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def pick(name: str, known: Mapping[str, T], what: str) -> T:
    """Return `known[name]`.

    Args:
        name: the name asked for.
        known: everything that could have been asked for.
        what: the word for it in the message, such as ``dataset``.

    Raises:
        UsageError: there is no such name; the text lists the known ones and the nearest.
    """
    if name in known:
        return known[name]
    raise UsageError(f"unknown {what} {name!r}; known: {', '.join(sorted(known))}.{suggest(name, known)}")

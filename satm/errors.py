"""Errors of the input and of a run, and the look-up of names."""

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

LONGEST = 200
"""Largest number of characters of a value in a message."""

SHOWN = 10
"""Largest number of items in a message."""


def one_line(text: str) -> str:
    """Return a text without line breaks, and with control characters as escapes."""
    text = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", text).strip()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class _OneLine(Exception):
    """An error with a message of one line, without control characters, whatever names it quotes."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


class UsageError(_OneLine, ValueError):
    """Unusable input; the message says what was expected, what was found and what to do. The command exits with 2.

    Args:
        text: the message.
        problems: several problems, if the message is about several.
        where: begin of the message, for all of them.
    """

    def __init__(self, text: str, problems: Sequence[str] = (), where: str = "") -> None:
        super().__init__(text)
        self._where, self._found = where, [*map(one_line, problems)]

    @property
    def problems(self) -> list[str]:
        """Each problem as a separate message."""
        return [_joined(self._where, problem) for problem in self._found] or [str(self)]

    @property
    def listed(self) -> str:
        """The message, with several problems one per line."""
        if len(self._found) < 2:
            return str(self)
        return "\n  ".join([f"{_joined(self._where, f'{len(self._found)} problems')}:", *_numbered(self._found)])


class MissingRun(UsageError):
    """Missing result of another run, or one that differs from what is asked for; the message has the command that makes
    it."""


class RunError(_OneLine, RuntimeError):
    """Failure of a run or machine with usable input. The command exits with 1."""


def refuse(problems: Iterable[str], where: str = "") -> None:
    """Raise a UsageError with all problems in one line, each once; `where` begins it. Do nothing without problems."""
    if not (found := list(dict.fromkeys(problems))):
        return
    text = found[0] if len(found) == 1 else f"{len(found)} problems: {'; '.join(_numbered(found))}"
    raise UsageError(_joined(where, text), found, where)


def _joined(where: str, text: str) -> str:
    return f"{where}: {text}" if where else text


def _numbered(problems: Sequence[str]) -> list[str]:
    """Return the first problems, numbered, and the number of the others."""
    numbered = [f"({number}) {problem}" for number, problem in enumerate(problems[:SHOWN], 1)]
    return [*numbered, f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else numbered


def short(value: object) -> str:
    """Return `repr(value)` for a message, without the middle if it is longer than `LONGEST`."""
    return shortened(repr(value))


def shortened(text: str) -> str:
    """Return a text without its middle if it is longer than `LONGEST`."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 4 :]}"


def some(items: Sequence[str], total: int | None = None, most: int = SHOWN, between: str = ", ") -> str:
    """Return the first of many items for a message, and the number of the others; `total`: of all, if not given."""
    shown = items[:most]
    others = (len(items) if total is None else total) - len(shown)
    return between.join(shown) + (f" and {others} more" if others > 0 else "")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the shortest known name that begins with a name, else the one most like it, or None if none is like it."""
    names = list(known)
    begun = sorted((one for one in names if name and one.startswith(name)), key=len)
    return next(iter([*begun, *difflib.get_close_matches(name, names, n=1)]), None)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or an empty string."""
    near = nearest(name, known)
    return f" Did you mean {near!r}?" if near else ""


def pick(name: str, known: Mapping[str, T], what: str, where: str = "") -> T:
    """Return `known[name]`; a message names its kind, `what`, such as ``dataset``, and the place, `where`.

    Raises:
        UsageError: an unknown name; the message lists the known names and suggests the nearest.
    """
    if name in known:
        return known[name]
    names = ", ".join(sorted(known)) or "none"
    raise UsageError(f"unknown {what} {short(name)}{where and f' in {where}'}; known: {names}.{suggest(name, known)}")


def memory_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that mean that memory ran out; torch's is among them once torch has been imported."""
    torch = sys.modules.get("torch")
    return (MemoryError, torch.OutOfMemoryError) if torch else (MemoryError,)


def ran_out(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; torch has a special error for that only on GPUs."""
    return isinstance(error, memory_errors()) or "can't allocate memory" in str(error)

"""The window of differentiated steps of an unroll, and the code that places it.

The inner steps are counted from 0. The outer loss is measured right after a window, and no step after it is run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Window:
    """The differentiated inner steps: `length` of them from index `start`; earlier steps are run without a graph."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """Number of steps that are run."""
        return self.start + self.length


@dataclass(frozen=True)
class Windows:
    """The code of a recipe of unrolled training.

    Args:
        place: `(training, iteration, state) -> Window`.
        remember: `(training, state, loss) -> state` for the next iteration; None: there is no state.
    """

    place: Callable[[Any, int, Any], Window]
    remember: Callable[[Any, Any, Any], Any] | None = None


def window_length(options: Any) -> int:
    """Return the number T of differentiated inner steps, by options `inner_steps` and `window`."""
    length: int = options.inner_steps if options.window is None else options.window
    return length


def check_window(options: Any) -> Iterator[str]:
    """Yield whether the window is longer than all inner steps."""
    if (length := window_length(options)) > options.inner_steps:
        yield (
            f"a window of {length} steps does not fit in {options.inner_steps} inner_steps; lower window or raise "
            "inner_steps"
        )

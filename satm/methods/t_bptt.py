"""Truncated back-propagation through time (T-BPTT)."""

from typing import ClassVar

from pydantic import Field

from satm.errors import UsageError
from satm.methods.base import MethodOptions, Problem, register
from satm.methods.parts.windows import Window
from satm.methods.unrolled import UnrolledTraining
from satm.methods.unrolled_options import UnrolledOptions
from satm.outer import Memory


class WindowOptions(UnrolledOptions):
    """Options of methods that differentiate through a window of the inner steps."""

    window: int | None = Field(None, ge=1)
    """Differentiated inner steps (T in RaT-BPTT); None: all of them."""


@register("t-bptt")
class TruncatedBptt(UnrolledTraining):
    """Differentiate through the last T inner steps; those before are run without a graph.

    Composition: as `bptt`, truncated.

    Source: RaT-BPTT section 2 (T-BPTT).
    """

    options: ClassVar[type[MethodOptions]] = WindowOptions
    settings: WindowOptions

    def __init__(self, options: WindowOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        self.length = options.inner_steps if options.window is None else options.window
        self.most = options.inner_steps - self.length
        if self.most < 0:
            raise UsageError(
                f"a window of {self.length} steps does not fit in {options.inner_steps} inner_steps; lower window or "
                "raise inner_steps"
            )

    def window(self, iteration: int, memory: Memory) -> Window:
        """Return the last T inner steps."""
        return Window(self.most, self.length)

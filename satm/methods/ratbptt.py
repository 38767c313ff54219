"""Random truncated back-propagation through time (RaT-BPTT)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from satm.config import refuse_idle
from satm.methods.base import MethodOptions, Problem, register
from satm.methods.parts import windows
from satm.methods.parts.windows import Placement, Window
from satm.methods.t_bptt import TruncatedBptt, WindowOptions
from satm.outer import NOTHING, Memory


class RatBpttOptions(WindowOptions):
    """Options of RaT-BPTT."""

    placement: Placement = "uniform"
    """Where the window lies: anywhere, each place as likely; moving `forward` from the end to the beginning or
    `backward` from the beginning to the end, by its own length whenever the loss stagnates; or `early` more often than
    late."""
    redraw: Literal["iteration", "pass"] = "iteration"
    """A random window is drawn in each iteration, or once for each pass over the real images as in the public code."""
    patience: int = Field(2000, ge=1)
    """Iterations without a lower average loss after which a moving window moves."""
    early_power: float = Field(2.0, ge=1)
    """How much more often an early window is drawn: the uniform number that it is made of is raised to this power."""


@register("ratbptt")
class RatBptt(TruncatedBptt):
    """Differentiate through a window at a random place, and measure the loss right after it.

    Composition: as `bptt`, a window of T steps; the steps before it are run without a graph, those after it not at all.

    Source: RaT-BPTT Algorithm 1; other placements: C.2; a window for a pass, and where a pass has how many iterations:
        its public code.
    Differs: labels as in `bptt`. The code draws mini-batches of one size per class, anew in each step; here they are
        drawn from all images, without repetition until all were seen.
    """

    options: ClassVar[type[MethodOptions]] = RatBpttOptions
    settings: RatBpttOptions

    def __init__(self, options: RatBpttOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        self.moves = options.placement in ("forward", "backward")
        held = f"placement {options.placement!r}; set placement to"
        if self.moves:
            refuse_idle(options, {f"{held} uniform or early": ("redraw",)})
        else:
            refuse_idle(options, {f"{held} forward or backward": ("patience",)})
        if options.placement != "early":
            refuse_idle(options, {f"{held} early": ("early_power",)})

    def window(self, iteration: int, memory: Memory) -> Window:
        """Return T inner steps, where the placement says."""
        options = self.settings
        if self.moves:
            return Window(windows.moving(memory, options.placement, self.most, self.length), self.length)
        number = iteration // self.per_pass if options.redraw == "pass" else iteration
        generator = self.problem.generator("window", number)
        if options.placement == "early":
            return Window(windows.early(generator, self.most, options.early_power), self.length)
        return Window(windows.uniform(generator, self.most), self.length)

    def remember(self, memory: Memory, loss: Tensor) -> Memory:
        """Return where a moving window is and how its loss has been."""
        return windows.followed(memory, loss, self.settings.patience) if self.moves else NOTHING

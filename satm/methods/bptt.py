"""Back-propagation through time (BPTT)."""

from typing import ClassVar

from pydantic import Field

from satm.errors import UsageError
from satm.methods.base import MethodOptions, Problem, register
from satm.methods.parts.windows import Window
from satm.methods.unrolled import UnrolledTraining
from satm.methods.unrolled_options import UnrolledOptions
from satm.outer import Memory


class BpttOptions(UnrolledOptions):
    """Options of BPTT."""

    grow_from: int | None = Field(None, ge=1)
    """Inner steps of the first iteration, which grow linearly to `inner_steps` in the last; None: all of them always.
    10 of 180 in RaT-BPTT's Figure 8."""


@register("bptt")
class Bptt(UnrolledTraining):
    """Differentiate through all inner steps.

    Composition: no experts; Gaussian noise of norm 1, hard labels; fresh networks, Adam inside and outside; loss on
    real images; exact estimator, fixed step size; descent with clipping.

    Source: RaT-BPTT section 2 and appendix C; growing inner steps: C.5 (BPTT-Increasing Windows).
    Differs: learned labels in the paper are positive numbers that are not normalised, which its public code clips at 0;
        here they are logits, whose softmax is what the network is trained on, as for all methods here.
    """

    options: ClassVar[type[MethodOptions]] = BpttOptions
    settings: BpttOptions

    def __init__(self, options: BpttOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        if options.grow_from is not None and options.grow_from > options.inner_steps:
            raise UsageError(
                f"grow_from {options.grow_from} is more than {options.inner_steps} inner_steps; lower grow_from or "
                "raise inner_steps"
            )

    def window(self, iteration: int, memory: Memory) -> Window:
        """Return all inner steps, or the first so many."""
        options = self.settings
        if options.grow_from is None:
            return Window(0, options.inner_steps)
        done = iteration / max(1, options.iterations - 1)
        return Window(0, round(options.grow_from + done * (options.inner_steps - options.grow_from)))

"""Back-propagation through time along trajectories of random length (R-BPTT)."""

from satm.methods.base import register
from satm.methods.parts import windows
from satm.methods.parts.windows import Window
from satm.methods.unrolled import UnrolledTraining
from satm.outer import Memory


@register("r-bptt")
class RandomBptt(UnrolledTraining):
    """Differentiate through all steps of an unroll of random length.

    Composition: as `bptt`; the length is drawn in each iteration, uniformly from 1 to N.

    Source: RaT-BPTT section 2 (R-BPTT), which says random lengths and gives no distribution; this one is ours.
    """

    def window(self, iteration: int, memory: Memory) -> Window:
        """Return the first so many inner steps."""
        generator = self.problem.generator("window", iteration)
        return Window(0, 1 + windows.uniform(generator, self.settings.inner_steps - 1))

"""Concurrent training on several segments of a trajectory (ConTra), so that matching one does not undo another.

Composition of `contra`: experts sgd (`curriculum` at 1 and 10 images per class); init correct; labels learned; segments
concurrent(uniform); objective match; estimator exact; step size exact; outer descent.

Any matching method does the same with its option `concurrent`: MTT+CT is `{method: mtt, concurrent: 4}` and keeps
uniform segments, DATM+CT keeps expanding ones. Without curriculum: `experts: sgd`. With the memory of one step, as in
the paper's ImageNet-1K runs: `engine: tesla`.

Source: "Enhancing Dataset Distillation with Concurrent Learning", Eq. 8 and Algorithm 1, Table 5.
Not given: the optimiser of the experts (SGD here), the learning rates, the initial step size, the momentum of the
    labels (DATM's here), and whether DATM's expanding range and its skipping of large losses are used (not here).
    The regularisers SI and EWC, which the paper mentions without numbers, are left out.
"""

from typing import TYPE_CHECKING

from satm.config.methods import MatchingOptions
from satm.methods.datm import ALIGNED
from satm.methods.mtt import step
from satm.methods.recipe import MATCHING, recipe

if TYPE_CHECKING:
    from satm.methods.parts.segments import Segment


def concurrent(sampled: "Segment", options: MatchingOptions) -> list[tuple[float, "Segment"]]:
    """Return the sampled segment and K fixed ones of the same expert, each with the weight of its loss.

    Eq. 8: ``beta * L(sampled) + (1 - beta) / K * (L(fixed_1) + ... + L(fixed_K))``, where the fixed segments start at
    ``T-, T- + R, ..., T- + (K - 1) R`` (Algorithm 1, lines 7 to 10): `min_start_epoch` and `spacing` of the options.
    """
    count, beta = options.concurrent, options.beta
    fixed = [sampled.starting_at(options.min_start_epoch + index * options.spacing) for index in range(count)]
    return [(beta, sampled), *(((1 - beta) / count, segment) for segment in fixed)]


recipe("contra", MATCHING, MatchingOptions, step, **{**ALIGNED, "experts": "sgd", "concurrent": 4, "skip_above": None})

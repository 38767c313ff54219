"""Concurrent training on several segments of a trajectory (ConTra)."""

from typing import ClassVar

from pydantic import Field

from satm.methods.base import MethodOptions, register
from satm.methods.datm import DatmOptions
from satm.methods.mtt import Mtt


class ContraOptions(DatmOptions):
    """Options of ConTra."""

    experts: str = "sgd"
    """Name of the experts; `curriculum` at 1 and 10 images per class in the paper."""
    concurrent: int = Field(4, ge=0)
    """Segments at fixed places that are matched in each iteration beside the sampled one (K)."""
    skip_above: float | None = Field(None, gt=0)
    """Iterations with a larger loss move nothing; not mentioned in the paper."""


@register("contra")
class Contra(Mtt):
    """Match several segments of one expert at once, so that matching one does not undo another.

    Composition: curriculum experts at few images per class, else SGD ones; images that experts classify correctly,
    learned labels; uniform segments plus K fixed ones; exact estimator and step-size gradient; descent.

    Any other matching method does the same with its option `concurrent`: MTT+CT is `{method: mtt, concurrent: 4}` and
    keeps uniform segments, DATM+CT keeps expanding ones. Without curriculum: `experts: sgd`. In the memory of one step,
    as the paper does for ImageNet-1K: `engine: tesla`.

    Source: "Enhancing Dataset Distillation with Concurrent Learning", Eq. 8 and Algorithm 1, Table 5. Not given there:
    the optimiser of the experts (SGD here), the rates and the start of the step size, the momentum of the labels
    (DATM's here), and whether DATM's expanding range is used (not here). The regularisers SI and EWC, which it mentions
    without numbers, are left out.
    """

    options: ClassVar[type[MethodOptions]] = ContraOptions

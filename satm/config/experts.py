"""Options of expert networks, and the built-in recipes."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from satm.config.base import Options, grouped, idle_options
from satm.errors import refuse


class ExpertsOptions(Options):
    """Training recipe of the experts. Source of the defaults: protocol of MTT (SGD without momentum).

    `optimiser` and `order` (of the images over the epochs) are independent of each other.
    """

    network: str = "convnet"
    """Name of a network."""
    count: int = Field(100, ge=1, le=100_000)
    """Number of experts."""
    epochs: int = Field(50, ge=1)
    """Epochs of each expert, which is stored at the start and after each epoch."""
    lr: float = Field(0.01, gt=0)
    """Step size of SGD, constant."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty: this times the weight is added to the gradient."""
    batch_size: int = Field(256, ge=1)
    """Real images per step."""
    augment: bool = True
    """Augment the real images, by the dataset's options."""
    seed: int = 0
    """Seed of the experts."""
    per_job: int = Field(10, ge=1)
    """Experts that one job trains, one after another; does not change them."""
    optimiser: Literal["sgd", "flat"] = "sgd"
    """`flat`: SGD along a sharpness-aware gradient, which leads to flat minima (FTD)."""
    flat_rule: Literal["paper", "code"] = "paper"
    """Sharpness-aware gradient: FTD's Algorithm 1, or that of its public code (GSAM)."""
    rho: float = Field(0.01, ge=0)
    """Distance to the worst neighbour of the sharpness-aware gradient. Source: FTD sections 4.3 and A.3.1."""
    alpha: float = Field(1.0, ge=0)
    """`paper`: share of the neighbour's gradient; `code`: weight of the term subtracted from it. Source: FTD Table 7, 1
    except for 0.3 on CIFAR-10 at 1 and 10 images per class; the default of its code is 0.4."""
    adaptive: bool = False
    """Scale the distance by the size of each weight (ASAM), which makes it much shorter; `flat_rule: code` only."""
    order: Literal["full", "curriculum", "balanced-curriculum"] = "full"
    """`full`: all images in every epoch; `curriculum`: easy images first (ConTra Appendix B, Eq. 12);
    `balanced-curriculum`: easy images of each class first, for datasets with hard classes (ours)."""
    difficulty: str = ""
    """Name of the experts that rate the difficulty of each training image, for a curriculum."""
    start_fraction: float = Field(0.5, gt=0, le=1)
    """Fraction of the images, the easiest, in the first epoch of a curriculum (lambda in ConTra); it grows linearly.
    Not given in the paper; 0.5 is ours: the hard half comes later."""
    full_epoch: int | None = Field(None, ge=1)
    """Epochs of a curriculum before it has all images (gamma in ConTra, not given); None: half, rounded down (ours)."""
    difficulty_count: int = Field(5, ge=1)
    """Number of experts, the first ones, that rate images for a curriculum of other experts; does not change them."""

    def check(self, where: str) -> None:
        """Raise a UsageError, whose message begins with `where`, if there are `problems`."""
        refuse(self.problems(), where)

    def problems(self) -> Iterator[str]:
        """Yield options without effect, and where a curriculum is incomplete or contradictory."""
        idle: dict[str, tuple[str, ...]] = {}
        if self.optimiser != "flat":
            idle["optimiser 'sgd'; set optimiser to flat"] = ("flat_rule", "rho", "alpha", "adaptive")
        elif self.flat_rule != "code":
            idle["flat_rule 'paper'; set flat_rule to code"] = ("adaptive",)
        if self.order == "full":
            idle["order 'full'; set order to curriculum"] = ("difficulty", "start_fraction", "full_epoch")
        yield from idle_options(self, idle)
        if self.order == "full":
            return
        if not self.difficulty:
            yield f"order {self.order!r} needs difficulty; name the experts that rate images, such as sgd"
        if self.full_epoch is not None and self.full_epoch > self.epochs:
            yield f"full_epoch {self.full_epoch} is above epochs {self.epochs}; lower full_epoch or raise epochs"


BUILTIN_EXPERTS = {
    "sgd": ExpertsOptions(),
    "flat": ExpertsOptions(optimiser="flat", flat_rule="paper", rho=0.01, alpha=1.0),
    "flat-03": ExpertsOptions(optimiser="flat", flat_rule="paper", rho=0.01, alpha=0.3),
    "flat-code": ExpertsOptions(optimiser="flat", flat_rule="code", rho=0.01, alpha=0.4, adaptive=True),
    "flat-datm": ExpertsOptions(optimiser="flat", flat_rule="code", rho=0.01, alpha=0.3, adaptive=True),
    "sgd-long": ExpertsOptions(),
    "curriculum": ExpertsOptions(order="curriculum", difficulty="sgd"),
}
"""`sgd`: MTT; `flat`: FTD's paper, `flat-03` with the alpha of its Table 7 for CIFAR-10 at 1 and 10 images per class;
`flat-code`: defaults of FTD's public code, `flat-datm`: as DATM uses it; `curriculum`: ConTra with few images per
class, whose paper names no optimiser: plain SGD here, and `{optimiser: flat, order: curriculum, difficulty: sgd}` is
both; `sgd-long`: ConTra with more images per class. Presets give the epochs of DATM and ConTra."""


def parts(options: ExpertsOptions) -> list[str]:
    """Return the experts of each job as `FIRST-LAST`, both included."""
    return grouped(options.count, options.per_job)

"""The options of expert networks, and the recipes that are known by name."""

from typing import Literal

from pydantic import Field

from satm.config.base import Options, grouped, refuse_idle
from satm.errors import UsageError


class ExpertsOptions(Options):
    """The recipe of the expert networks. Source of the defaults: protocol of MTT (SGD without momentum).

    How an expert descends (`optimiser`) and which images it sees when (`order`) are independent of each other.
    """

    network: str = "convnet"
    """Name of a network."""
    count: int = Field(100, ge=1, le=100_000)
    """Experts."""
    epochs: int = Field(50, ge=1)
    """Epochs of each; a snapshot is kept of the start and after each epoch."""
    lr: float = Field(0.01, gt=0)
    """Step size of SGD, constant."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(0.0, ge=0)
    """Added to the gradient, times the weight."""
    batch_size: int = Field(256, ge=1)
    """Real images a step."""
    augment: bool = True
    """Augment the real images as the dataset says."""
    seed: int = 0
    """Another seed gives other experts."""
    per_job: int = Field(10, ge=1)
    """Experts that one job trains, one after another. Does not change them."""
    optimiser: Literal["sgd", "flat"] = "sgd"
    """`flat`: SGD along a sharpness-aware gradient, which leads to flat minima (FTD)."""
    flat_rule: Literal["paper", "code"] = "paper"
    """Which sharpness-aware gradient: FTD's Algorithm 1, or that of its public code (GSAM)."""
    rho: float = Field(0.01, ge=0)
    """Length of the sharpness-aware step to the worst neighbour. Source: FTD sections 4.3 and A.3.1."""
    alpha: float = Field(1.0, ge=0)
    """`paper`: share of the neighbour's gradient; `code`: weight of what is taken away from it. Source: FTD Table 7,
    1 but for 0.3 on CIFAR-10 at 1 and 10 images per class; its code's own default is 0.4."""
    adaptive: bool = False
    """Measure the step relative to each weight's size (ASAM), so that one rho is a much shorter step; `flat_rule: code`
    only."""
    order: Literal["full", "curriculum", "balanced-curriculum"] = "full"
    """`full`: every epoch sees all images; `curriculum`: the easy ones first (ConTra Appendix B, Eq. 12);
    `balanced-curriculum`: the easy ones of each class first, for where whole classes are hard (ours)."""
    difficulty: str = ""
    """Name of the experts whose paths say how hard each training image is, for a curriculum."""
    start_fraction: float = Field(0.5, gt=0, le=1)
    """Fraction of the images, the easiest, that the first epoch of a curriculum sees (lambda in ConTra); from there it
    grows linearly. Not given in the paper; 0.5 is ours: the hard half comes later."""
    full_epoch: int | None = Field(None, ge=1)
    """Epochs of a curriculum before all images are seen (gamma in ConTra); None: half of `epochs`, rounded down. Not
    given in the paper; half is ours."""
    difficulty_count: int = Field(5, ge=1)
    """How many of these experts, the first ones, are asked when they say how hard images are. Does not change them."""

    def check(self, where: str) -> None:
        """Check that the options fit together; a single one is checked when it is set.

        Args:
            where: what the options belong to, for the message.

        Raises:
            UsageError: an option without effect beside another, or a curriculum that lacks or contradicts something.
        """
        idle: dict[str, tuple[str, ...]] = {}
        if self.optimiser != "flat":
            idle["optimiser 'sgd'; set optimiser to flat"] = ("flat_rule", "rho", "alpha", "adaptive")
        elif self.flat_rule != "code":
            idle["flat_rule 'paper'; set flat_rule to code"] = ("adaptive",)
        if self.order == "full":
            idle["order 'full'; set order to curriculum"] = ("difficulty", "start_fraction", "full_epoch")
        refuse_idle(self, idle, f"{where}: ")
        if self.order == "full":
            return
        if not self.difficulty:
            raise UsageError(
                f"{where}: order {self.order!r} needs difficulty: name the experts, such as sgd, whose paths say how "
                "hard each image is"
            )
        if self.full_epoch is not None and self.full_epoch > self.epochs:
            raise UsageError(
                f"{where}: full_epoch {self.full_epoch} lies after the last of {self.epochs} epochs; lower it or "
                "raise epochs"
            )


BUILTIN_EXPERTS = {
    "sgd": ExpertsOptions(),
    "flat": ExpertsOptions(optimiser="flat", flat_rule="paper", rho=0.01, alpha=1.0),
    "flat-03": ExpertsOptions(optimiser="flat", flat_rule="paper", rho=0.01, alpha=0.3),
    "flat-code": ExpertsOptions(optimiser="flat", flat_rule="code", rho=0.01, alpha=0.4, adaptive=True),
    "flat-datm": ExpertsOptions(optimiser="flat", flat_rule="code", rho=0.01, alpha=0.3, adaptive=True),
    "sgd-long": ExpertsOptions(),
    "curriculum": ExpertsOptions(order="curriculum", difficulty="sgd"),
}
"""`sgd`: MTT; `flat`: FTD as its paper says, `flat-03` with the alpha of its Table 7 for CIFAR-10 at 1 and 10 images
per class; `flat-code`: FTD as its public code does by default, `flat-datm` as DATM uses it; `curriculum`: ConTra with
few images per class, whose paper names no optimiser: plain SGD here, and `{optimiser: flat, order: curriculum,
difficulty: sgd}` is both; `sgd-long`: ConTra with more images per class. Presets say how long those of DATM and ConTra
train."""


def parts(options: ExpertsOptions) -> list[str]:
    """Return the parts in which the experts are trained, `FIRST-LAST`, both included."""
    return grouped(options.count, options.per_job)

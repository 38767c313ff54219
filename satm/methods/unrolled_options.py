"""The options of unrolled training, and which of them exclude each other or the data."""

from typing import Literal

from pydantic import Field

from satm.config import refuse_idle
from satm.errors import UsageError
from satm.methods.base import IterativeOptions, Problem
from satm.methods.parts.boosting import check_blocks
from satm.methods.parts.linear import check_budget


class UnrolledOptions(IterativeOptions):
    """Options of every method of unrolled training. Source of the defaults: RaT-BPTT C.1, C.5."""

    network: str = "convnet"
    """Name of the network that is trained in the inner loop."""
    step_size: float = Field(0.001, gt=0)
    """Inner step size; where it is learned, its start."""
    step_size_gradient: Literal["exact", "first-order", "fixed"] = "fixed"
    """How the inner step size is learned: its exact gradient, minus the inner product of the outer loss's gradient and
    all steps' directions, or not at all."""
    init: Literal["real", "correct", "gaussian"] = "gaussian"
    """What the synthetic images start from: real images of each class, or Gaussian noise."""
    init_norm: float | None = Field(1.0, gt=0)
    """Norm that each image starts with, of noise and of real images; None: as it is."""
    outer: Literal["sgd", "adam"] = "adam"
    """Outer optimiser: SGD with momentum, or Adam."""
    lr_images: float = Field(0.001, gt=0)
    """Outer step size of the images, or of the basis."""
    lr_labels: float = Field(0.001, ge=0)
    """Outer step size of learned labels' logits."""
    inner_steps: int = Field(200, ge=1)
    """Steps of the network on the synthetic set (N)."""
    inner: Literal["adam", "sgd"] = "adam"
    """Inner optimiser: Adam without weight decay, or SGD."""
    inner_momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of the inner SGD; 0.9 in RaT-BPTT's public code, not given in the paper."""
    inner_weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the inner SGD; 5e-4 in RaT-BPTT's public code, not given in the paper."""
    milestones: tuple[int, ...] = ()
    """Inner steps after which the step size is multiplied with `factor`; 120 and 200 in RaT-BPTT's variant with SGD."""
    factor: float = Field(0.2, gt=0)
    """See `milestones`."""
    real_batch: int = Field(5000, ge=1)
    """Real images of the outer loss; all of them where there are fewer."""
    batch_size: int | None = Field(None, ge=1)
    """Synthetic images of one inner step, drawn without repetition until all were seen; None: all of them."""
    augment: bool = True
    """Augment the synthetic images in each inner step as the dataset says."""
    augment_real: bool = True
    """Augment the real images of the outer loss as the dataset says, in one draw for the batch."""
    engine: Literal["mixed", "reverse"] = "mixed"
    """How the hypergradient is computed, exactly: in little memory, or as an unrolled graph."""
    clip: float | None = Field(2.0, gt=0)
    """The hypergradient of the images is scaled to a norm of at most this many times an average of its norm over the
    iterations, the present one included; None: never."""
    clip_decay: float = Field(0.9, ge=0, lt=1)
    """Decay of that exponential moving average."""
    normalise: bool = False
    """Scale the hypergradient of the images to norm 1 in each iteration. Source: RaT-BPTT C.5."""
    basis: int = Field(0, ge=0)
    """Images that all synthetic images are weighted sums of; 0: the images themselves are learned."""
    basis_images: int | None = Field(None, ge=1)
    """Images per class that are computed from the basis; None: ipc, which is the budget of stored numbers."""
    lr_weights: float = Field(0.001, ge=0)
    """Outer step size of the weights of a basis."""
    blocks: int = Field(1, ge=1)
    """Equal parts of each class's images that are learned one after another, each in an equal part of the iterations
    and trained on together with those before (boosting)."""
    boost: float = Field(0.0, ge=0, lt=1)
    """Factor on the outer step of blocks that were learned before; 0: they stay as they are."""


def check(options: UnrolledOptions, problem: Problem) -> None:
    """Refuse options that exclude each other or the data.

    Raises:
        UsageError: naming both.
    """
    idle: dict[str, tuple[str, ...]] = {}
    if options.inner == "adam":
        idle["inner 'adam'; set inner to sgd"] = ("inner_momentum", "inner_weight_decay")
    if not options.milestones:
        idle["no milestones; set milestones"] = ("factor",)
    if options.clip is None:
        idle["clip None; set clip to a number"] = ("clip_decay",)
    if not options.basis:
        idle["basis 0; set basis"] = ("basis_images", "lr_weights")
    if options.blocks == 1:
        idle["blocks 1; raise blocks"] = ("boost",)
    refuse_idle(options, idle)
    if late := [milestone for milestone in options.milestones if milestone >= options.inner_steps]:
        raise UsageError(
            f"milestones {late[0]} lies at or after the end of {options.inner_steps} inner_steps; lower it or raise "
            "inner_steps"
        )
    if min(options.milestones, default=1) < 1:
        raise UsageError(f"milestones count inner_steps from 1, got {min(options.milestones)}; lower step_size instead")
    if options.normalise and options.clip is not None:
        raise UsageError(
            f"normalise gives each hypergradient norm 1, which leaves nothing for clip {options.clip:g}; set clip to "
            "None or normalise to false"
        )
    check_blocks(options.blocks, problem.ipc, options.iterations)
    if not options.basis:
        return
    for name, value, off in (("blocks", options.blocks, 1), ("ema", options.ema, None)):
        if value != off:
            raise UsageError(
                f"{name} {value} needs images that are learned themselves, basis {options.basis} computes them; leave "
                "one of them out"
            )
    data = problem.data
    check_budget(
        options.basis,
        options.basis_images or problem.ipc,
        problem.ipc,
        data.classes,
        data.channels * data.size**2,
        options.labels == "learned",
    )

"""The options of trajectory matching, and which of them exclude each other."""

from typing import Literal

from pydantic import Field

from satm.errors import UsageError
from satm.methods.base import IterativeOptions


class MatchingOptions(IterativeOptions):
    """Options of every trajectory-matching method."""

    experts: str = "sgd"
    """Name of the experts."""
    inner_steps: int = Field(50, ge=1)
    """Steps of the student on the synthetic set (N in MTT)."""
    expert_epochs: int = Field(2, ge=1)
    """Epochs of the expert that they should equal (M in MTT)."""
    min_start_epoch: int = Field(0, ge=0)
    """First epoch at which a segment may start (T- in ConTra)."""
    max_start_epoch: int = Field(20, ge=1)
    """One more than the last epoch at which a segment may start (T+ in ConTra)."""
    start_epoch: int | None = Field(None, ge=0)
    """Start of the sampled segment in every iteration, in place of a draw; None: drawn."""
    monitor: int = Field(0, ge=0)
    """Write the matching loss of the segments that start at each of the first so many epochs beside the metrics,
    measured on the last expert, which is then never matched; 0: none. Source: ConTra section 4.2."""
    monitor_every: int = Field(10, ge=1)
    """Iterations between two of these measurements."""
    segments: Literal["uniform", "expanding"] = "uniform"
    """Segments start anywhere in this range, or in a part of it that grows from easy to hard."""
    expand_from: int | None = Field(None, ge=1)
    """`max_start_epoch` in the first iteration, with expanding segments."""
    expand_iterations: int = Field(1000, ge=1)
    """Iterations until an expanding range is whole."""
    concurrent: int = Field(0, ge=0)
    """Segments at fixed places that are matched in each iteration beside the sampled one (K in ConTra); 0: none."""
    distance: int | None = Field(None, ge=1)
    """Epochs from one of their starts to the next (R in ConTra); None: the range divided by their number."""
    beta: float = Field(0.2, ge=0, le=1)
    """Weight of the sampled segment's loss where segments are matched concurrently; the others share the rest."""
    start_noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on the student's first weights (robust learning)."""
    batch_size: int | None = Field(None, ge=1)
    """Synthetic images of one inner step, drawn without repetition until all were seen; None: all of them."""
    augment: bool = True
    """Augment the synthetic images in each inner step as the dataset says."""
    keep_divisor: int = Field(1, ge=1)
    """Differentiate through the last int(inner_steps / keep_divisor) steps of each unroll; 1: through all."""
    step_size_gradient: Literal["exact", "first-order", "fixed"] = "exact"
    """How the inner step size is learned: its exact gradient, SATM's Eq. 12, or not at all."""
    engine: Literal["mixed", "reverse", "tesla"] = "mixed"
    """How the hypergradient is computed: exactly, in little memory (`mixed`) or as an unrolled graph (`reverse`), or by
    TESLA's formula, which is exact for one inner step only and needs the memory of one step."""
    tesla_scale: Literal["paper", "code"] = "paper"
    """With the engine `tesla`: its formula as printed, or half of it for the images, as its public code computes it."""

    @property
    def kept(self) -> int:
        """Differentiated steps of an unroll."""
        return self.inner_steps // self.keep_divisor

    @property
    def spacing(self) -> int:
        """Epochs between the starts of concurrent segments.

        Source: rule: ConTra section 6.4, floor((T+ - T-) / K); Table 5 prints other values, which the presets give.
        """
        if self.distance is not None:
            return self.distance
        return (self.max_start_epoch - self.min_start_epoch) // max(1, self.concurrent)


def check(options: MatchingOptions, epochs: int) -> None:
    """Refuse options that exclude each other or the experts.

    Args:
        options: to check.
        epochs: that the experts have.

    Raises:
        UsageError: naming both.
    """
    least, below, length = options.min_start_epoch, options.max_start_epoch, options.expert_epochs
    if least >= below:
        raise UsageError(
            f"segments start in [min_start_epoch, max_start_epoch), got [{least}, {below}); raise max_start_epoch"
        )
    if below - 1 + length > epochs:
        raise UsageError(
            f"a segment from epoch {below - 1} over {length} epochs ends at epoch {below - 1 + length}, the experts "
            f"have {epochs}; lower max_start_epoch or expert_epochs, or train longer experts"
        )
    if (options.segments == "expanding") != (options.expand_from is not None):
        raise UsageError(
            f"segments {options.segments!r} does not go with expand_from {options.expand_from}; expanding segments "
            "need the range they begin with, uniform ones have none"
        )
    if options.expand_from is not None and not least < options.expand_from <= below:
        raise UsageError(
            f"expand_from must lie above min_start_epoch {least} and not above max_start_epoch {below}, got "
            f"{options.expand_from}"
        )
    if options.start_epoch is not None and options.start_epoch + length > epochs:
        raise UsageError(
            f"a segment from start_epoch {options.start_epoch} over {length} epochs ends after the last of {epochs} "
            f"epochs of the experts; lower start_epoch or expert_epochs, or train longer experts"
        )
    if options.start_epoch is not None and options.segments == "expanding":
        raise UsageError(
            f"segments 'expanding' says where segments start, and so does start_epoch {options.start_epoch}; leave one "
            "of them out"
        )
    if options.monitor and options.monitor - 1 + length > epochs:
        raise UsageError(
            f"monitor {options.monitor} epochs needs segments up to epoch {options.monitor - 1 + length}, the experts "
            f"have {epochs}; lower monitor"
        )
    if options.kept < 1:
        raise UsageError(
            f"int({options.inner_steps} / {options.keep_divisor}) keeps no step; lower keep_divisor or raise "
            "inner_steps"
        )
    if options.tesla_scale != "paper" and options.engine != "tesla":
        raise UsageError(
            f"tesla_scale {options.tesla_scale!r} belongs to the engine 'tesla', the engine is {options.engine!r}; "
            "leave one of them out"
        )
    if options.concurrent:
        _check_concurrent(options, epochs)


def _check_concurrent(options: MatchingOptions, epochs: int) -> None:
    count, least, most = options.concurrent, options.min_start_epoch, options.max_start_epoch
    distance = options.spacing
    start = least + (count - 1) * distance
    if distance < 1:
        raise UsageError(
            f"concurrent {count} segments do not fit between min_start_epoch {least} and max_start_epoch {most}: "
            f"{most - least} epochs divided by {count} are less than one; lower concurrent or set distance"
        )
    if start > most:
        raise UsageError(
            f"concurrent {count} segments at a distance of {distance} from min_start_epoch {least} on reach epoch "
            f"{start}, max_start_epoch is {most}; lower concurrent or distance"
        )
    if start + options.expert_epochs > epochs:
        raise UsageError(
            f"the last of concurrent {count} segments starts at epoch {start} and ends at "
            f"{start + options.expert_epochs}, the experts have {epochs}; lower concurrent, distance or expert_epochs, "
            "or train longer experts"
        )

"""What is wrong with a method's options, alone and with what is known of its problem. Nothing here imports torch.

A campaign is checked with what its options say, a run with everything; each function yields one sentence per problem.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from satm.config import idle_options
from satm.config.methods import (
    ClassMatchingOptions,
    IterativeOptions,
    MatchingOptions,
    MethodOptions,
    UnrolledOptions,
)

if TYPE_CHECKING:
    from satm.methods.external import FilesOptions
    from satm.methods.recipe import Recipe


@dataclass(frozen=True)
class Facts:
    """What the problem of a method is known to be; None: not known before files are read."""

    ipc: int
    """Images per class."""
    classes: int | None = None
    """Number of classes."""
    numbers: int | None = None
    """Numbers of an image: channels times pixels."""
    experts: int | None = None
    """Number of experts."""
    epochs: int | None = None
    """Epochs of each expert."""


Check = Callable[["Recipe", Any, Facts], Iterator[str]]
"""`(recipe, options, facts) -> problems`."""


def iterative(recipe: "Recipe", options: MethodOptions, facts: Facts) -> Iterator[str]:
    """Yield what is wrong with the options of every method that learns its set in iterations."""
    if not isinstance(options, IterativeOptions):
        return
    if options.selection != "last" and options.watch not in (None, options.selection):
        yield (
            f"selection {options.selection!r} looks at the accuracy on those images, watch is {options.watch!r}; "
            "leave watch out"
        )
    for name, value in (("init", "correct"), ("labels", "teacher")):
        if getattr(options, name) == value and not recipe.needs_experts:
            yield f"{name} {value!r} needs experts, method {recipe.name!r} uses none; choose another {name}"
    if options.label_experts is not None:
        if not recipe.needs_experts:
            yield f"label_experts {options.label_experts} needs experts, method {recipe.name!r} uses none; leave it out"
        elif options.labels != "learned":
            yield from idle_options(options, {f"labels {options.labels!r}; set labels to learned": ("label_experts",)})
        elif facts.experts is not None and options.label_experts > facts.experts:
            yield f"label_experts {options.label_experts} is more than there are experts, {facts.experts}; lower it"
    if options.labels == "learned" and facts.classes == 1:
        yield "soft labels need at least 2 classes, the dataset has 1; use labels hard"


def matching(recipe: "Recipe", options: MatchingOptions, facts: Facts) -> Iterator[str]:
    """Yield what is wrong with the options of trajectory matching."""
    yield from iterative(recipe, options, facts)
    yield from one_class(recipe, facts)
    yield from segments(options, facts.epochs)
    if options.monitor and facts.experts is not None and facts.experts < 2:
        yield f"monitor holds out the last expert, so it needs at least 2 experts, got {facts.experts}; train more"
    if options.kept < 1:
        quotient = f"int({options.inner_steps} / {options.keep_divisor})"
        yield f"{quotient} keeps no step; lower keep_divisor or raise inner_steps"
    if options.tesla_scale != "paper" and options.engine != "tesla":
        yield (
            f"tesla_scale {options.tesla_scale!r} belongs to the engine 'tesla', the engine is {options.engine!r}; "
            "leave one of them out"
        )


def one_class(recipe: "Recipe", facts: Facts) -> Iterator[str]:
    """Yield whether there is nothing to decide, so that every network has a loss of 0."""
    if facts.classes == 1:
        yield f"method {recipe.name!r} cannot learn from one class, expected at least 2; add some, or use fewer steps"


def segments(options: MatchingOptions, epochs: int | None) -> Iterator[str]:
    """Yield where segments contradict each other or go beyond the `epochs` of the experts (None: unknown)."""
    least, below, length = options.min_start_epoch, options.max_start_epoch, options.expert_epochs
    first, count, distance = options.expand_from, options.concurrent, options.spacing
    last_fixed = least + (count - 1) * distance
    if least >= below:
        yield f"segments start in [min_start_epoch, max_start_epoch), got [{least}, {below}); raise max_start_epoch"
    if (options.segments == "expanding") != (first is not None):
        yield (
            f"segments {options.segments!r} does not go with expand_from {first}; expanding segments need the range "
            "they begin with, uniform ones have none"
        )
    if first is not None and not least < first <= below:
        yield (
            f"expand_from must lie above min_start_epoch {least} and not above max_start_epoch {below}, got {first}; "
            "correct it"
        )
    if options.start_epoch is not None and options.segments == "expanding":
        yield (
            f"segments 'expanding' says where segments start, and so does start_epoch {options.start_epoch}; leave one "
            "of them out"
        )
    if count and distance < 1:
        yield (
            f"concurrent {count} segments do not fit between min_start_epoch {least} and max_start_epoch {below}: "
            f"{below - least} epochs divided by {count} are less than one; lower concurrent or set distance"
        )
    if count and last_fixed > below:
        yield (
            f"concurrent {count} segments at a distance of {distance} from min_start_epoch {least} on reach epoch "
            f"{last_fixed}, max_start_epoch is {below}; lower concurrent or distance"
        )
    starts = {"max_start_epoch": below - 1, "start_epoch": options.start_epoch}
    starts |= {"monitor": options.monitor - 1} if options.monitor else {}
    starts |= {"concurrent, distance": last_fixed} if count else {}
    for option, start in starts.items():
        if epochs is not None and start is not None and start + length > epochs:
            yield (
                f"{option}: a segment from epoch {start} to epoch {start + length} goes beyond the {epochs} epochs of "
                f"the experts; lower {option} or expert_epochs, or train longer experts"
            )


def unrolled(recipe: "Recipe", options: UnrolledOptions, facts: Facts) -> Iterator[str]:
    """Yield what is wrong with the options of unrolled training."""
    yield from iterative(recipe, options, facts)
    yield from one_class(recipe, facts)
    switches: list[tuple[bool, str, tuple[str, ...]]] = [
        (options.inner == "adam", "inner 'adam'; set inner to sgd", ("inner_momentum", "inner_weight_decay")),
        (not options.milestones, "no milestones; set milestones", ("factor",)),
        (options.clip is None, "clip None; set clip to a number", ("clip_decay",)),
        (not options.basis, "basis 0; set basis", ("basis_images", "lr_weights")),
        (options.blocks == 1, "blocks 1; raise blocks", ("boost",)),
    ]
    yield from idle_options(options, {cause: names for off, cause, names in switches if off})
    steps = options.inner_steps
    if late := [milestone for milestone in options.milestones if milestone >= steps]:
        yield f"milestones {late[0]} lies at or after the end of {steps} inner_steps; lower it or raise inner_steps"
    if min(options.milestones, default=1) < 1:
        yield f"milestones count inner_steps from 1, got {min(options.milestones)}; lower step_size instead"
    if options.normalise and options.clip is not None:
        yield (
            f"normalise gives each hypergradient norm 1, which leaves nothing for clip {options.clip:g}; set clip to "
            "None or normalise to false"
        )
    yield from blocks(options.blocks, facts.ipc, options.iterations)
    if options.basis:
        yield from basis(options, facts)


def blocks(count: int, ipc: int, iterations: int) -> Iterator[str]:
    """Yield whether blocks of boosting would be unequal or get no iteration."""
    if ipc % count:
        yield f"blocks {count} does not divide ipc {ipc}, the images per class; choose a divisor of ipc"
    if iterations < count:
        yield f"{iterations} iterations are fewer than blocks {count}; raise iterations or lower blocks"


def basis(options: UnrolledOptions, facts: Facts) -> Iterator[str]:
    """Yield whether a basis stores more numbers than its budget allows, or has more images than it computes.

    The budget of basis and weights is `ipc` images per class; with learned labels both sides add K numbers per image.
    Hard labels need no storage, as the images are sorted.
    """
    for name, value, off in (("blocks", options.blocks, 1), ("ema", options.ema, None)):
        if value != off:
            yield (
                f"{name} {value} needs images that are learned themselves, basis {options.basis} computes them; leave "
                "one of them out"
            )
    if facts.classes is None:
        return
    per_class, count = options.basis_images or facts.ipc, facts.classes * (options.basis_images or facts.ipc)
    if options.basis > count:
        yield (
            f"basis {options.basis} has more images than basis_images {per_class} computes, {count} in "
            f"{facts.classes} classes; lower basis or raise basis_images"
        )
    if facts.numbers is None:
        return
    label = facts.classes if options.labels == "learned" else 0
    stored = options.basis * facts.numbers + count * (options.basis + label)
    allowed = facts.classes * facts.ipc * (facts.numbers + label)
    if stored > allowed:
        yield (
            f"basis {options.basis} with basis_images {per_class} stores {stored} numbers, ipc {facts.ipc} allows "
            f"{allowed}; lower basis or basis_images"
        )


def class_matching(recipe: "Recipe", options: ClassMatchingOptions, facts: Facts) -> Iterator[str]:
    """Yield what is wrong with the options of a method that compares images class by class."""
    yield from iterative(recipe, options, facts)
    if options.labels != "hard":
        yield (
            f"labels {options.labels!r} does not fit method {recipe.name!r}, whose objective compares images class "
            "by class and gives labels no gradient; use labels hard or a method that matches trajectories"
        )


def external(recipe: "Recipe", options: "FilesOptions", facts: Facts) -> Iterator[str]:
    """Yield what is wrong with the options of an external set."""
    if not options.images:
        yield (
            f"method {recipe.name!r} needs images, the path of an external set; give one, for example "
            "--images images_best.pt"
        )
    if options.space != "normalised":
        idle = {f"space {options.space!r}; set space to normalised": ("mean", "std")}
        yield from idle_options(options, idle, f"method {recipe.name!r}: ")

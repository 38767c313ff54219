"""Whether the jobs of a campaign fit its datasets, networks and experts. Nothing here imports torch.

Before the images are read, by what the options say of them; afterwards by everything (`satm.stages.fit`). What would
otherwise be found by a job of hours, or by a later one, is a problem of the campaign.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from satm.config import Cell, Contents, DatasetOptions, EvaluateOptions, Resolver
from satm.config.analysis import kept_steps
from satm.config.class_order import split_classes
from satm.config.datasets import CLASSES, LARGEST_WHITENED
from satm.config.methods import IterativeOptions, MatchingOptions, MethodOptions, UnrolledOptions
from satm.errors import UsageError, some
from satm.evaluation.candidates import fitting
from satm.evaluation.search import sample
from satm.methods import Recipe
from satm.methods.checks import Facts
from satm.methods.recipe import EXTERNAL
from satm.networks import NETWORKS
from satm.workflow.asked import Wildcards, cell_of, schedule, trained_network
from satm.workflow.graph import Job
from satm.workflow.options import experts_of, method_options, network_options, recipe_of

Values = Mapping[str, Any]
"""`{"network": registered name, option: value…}`, or the same of a method."""

Problems = Iterator[str | tuple[str, str]]
"""Problems of a job, or of another subject, with its name."""

Build = Callable[[Values, Contents, int | None], str | None]
"""`(network, contents, images of its smallest batch or None) -> problem`."""

MOST = 5
"""Largest number of jobs in a message."""

SHOWN = 3
"""Largest number of classes in a message."""


def by_options(network: Values, contents: Contents, batch: int | None) -> str | None:
    """Return why a network does not fit images of a known size, by its options."""
    if contents.size is None:
        return None
    try:
        NETWORKS[network["network"]].check(contents.size, network_options(network))
    except ValueError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Fit:
    """The check of a campaign's jobs.

    Args:
        resolver: the campaign, whose names and options were checked.
        contents: what is known of the images of a whole dataset.
        build: why a network does not fit images.
    """

    resolver: Resolver
    contents: Callable[[str], Contents]
    build: Build = by_options

    def problems(self, jobs: Iterable[Job]) -> list[str]:
        """Return what is wrong, each problem once, with the jobs and the images per class at which it occurs."""
        found: dict[tuple[str, str], list[str]] = {}
        for names in self._kinds(jobs):
            ipc = getattr(names, "ipc", "")
            for problem in self._of(names):
                about = (_subject(names), problem) if isinstance(problem, str) else problem
                places = found.setdefault(about, [])
                places += [] if ipc in ("", *places) else [ipc]
        subjects: dict[str, list[str]] = {}
        for (subject, text), ipcs in found.items():
            subjects.setdefault(text, []).append(f"{subject}{_at(ipcs)}")
        return [f"{some(about, most=MOST)}: {text}" for text, about in subjects.items()]

    def _kinds(self, jobs: Iterable[Job]) -> Iterator[Wildcards]:
        """Yield the wildcards of one job of each kind, with its rule: seeds and parts do not differ in options."""
        seen = set()
        for job in jobs:
            names = tuple(pair for pair in job.names if pair[0] not in ("seed", "part"))
            if job.rule in PROBLEMS and (job.rule, names) not in seen:
                seen.add((job.rule, names))
                wildcards = job.wildcards
                wildcards.rule = job.rule
                yield wildcards

    def _of(self, names: Wildcards) -> Problems:
        try:
            yield from PROBLEMS[names.rule](self, names)
        except UsageError as error:
            yield from error.problems

    def known(self, dataset: str) -> Contents:
        """Return what is known of a dataset's images, or of those of a step."""
        step = self.resolver.step(dataset)
        whole = self.contents(self.resolver.whole(dataset))
        return whole if step is None else whole.of(step.labels(self.resolver.classes(step.dataset)))

    def options(self, dataset: str) -> DatasetOptions:
        """Return the options of a whole dataset."""
        return self.resolver.dataset(self.resolver.whole(dataset))

    def network(self, name: str, dataset: str, batch: int | None = None) -> Problems:
        """Yield why a network does not fit a dataset; `batch`: the images of its smallest batch."""
        if problem := self.build(self.resolver.network(name, dataset), self.known(dataset), batch):
            yield f"network {name} on {dataset}", problem


def _subject(names: Wildcards) -> str:
    """Return what a problem of a job is about, without the images per class."""
    if names.rule in ("images", "zca"):
        return f"dataset {names.dataset}"
    if names.rule == "experts_part":
        return f"experts {names.experts} on {names.dataset}"
    if names.rule == "full":
        return f"network {names.network} on all images of {names.dataset}"
    if names.rule == "nas_real":
        return f"search {names.search} on all images of {names.dataset}"
    what = {
        "continual": f"protocol {getattr(names, 'protocol', '')} with ",
        "nas": f"search {getattr(names, 'search', '')} with ",
        "analysis": f"measurement {getattr(names, 'what', '')} of ",
    }
    return f"{what.get(names.rule, '')}{names.method} on {names.dataset}"


def _at(ipcs: list[str]) -> str:
    return f" at ipc {', '.join(ipcs)}" if ipcs else ""


def _images(fit: Fit, names: Wildcards) -> Problems:
    """Yield what is wrong with a dataset."""
    options, contents = fit.options(names.dataset), fit.contents(names.dataset)
    kept, known = options.classes, CLASSES.get(options.source)
    if kept is not None and (not kept or len(set(kept)) < len(kept) or min(kept) < 0):
        yield f"classes is {list(kept)}, expected different labels from 0 on, at least one; correct it"
    elif kept is not None and known is not None and max(kept) >= known:
        yield f"classes has {max(kept)}, expected labels from 0 to {known - 1}; correct it"
    if contents.classes == 1:
        yield "it has one class only, expected at least 2, between which a network can learn to decide; add classes"
    if contents.train is not None and contents.train and min(contents.train) < 1 <= options.validation:
        yield f"validation {options.validation} leaves a class without training images; lower validation"
    for name, fixed in (("mean", options.mean), ("std", options.std)):
        if fixed is not None and contents.channels not in (None, len(fixed)):
            yield f"{name} has {len(fixed)} values, expected {contents.channels}, one per channel; correct it"
    if options.std is not None and not min(options.std, default=0) > 0:
        yield f"std is {list(options.std)}, expected numbers above 0; correct it"
    if not options.zca:
        return
    channels, size = contents.channels or 1, contents.size or 0
    if (numbers := channels * size**2) > LARGEST_WHITENED:
        yield (
            f"zca whitens images of at most {LARGEST_WHITENED} numbers, got {channels} x {size} x {size} = {numbers}; "
            "set zca to false, or a smaller size"
        )


def _experts(fit: Fit, names: Wildcards) -> Problems:
    """Yield what is wrong with experts."""
    recipe, contents = fit.resolver.experts(names.experts, names.dataset), fit.known(names.dataset)
    batch = None
    if contents.train is not None and recipe.order == "full":
        batch = _smallest_batch(sum(contents.train), recipe.batch_size)
    yield from fit.network(recipe.network, names.dataset, batch)
    if contents.classes == 1:
        yield "experts of one class learn nothing, expected at least 2 classes; use fewer steps"


def _distill(fit: Fit, names: Wildcards) -> Problems:
    """Yield what is wrong with a distillation."""
    cell, values = cell_of(names), fit.resolver.method(cell_of(names))
    recipe, options = recipe_of(values), method_options(values)
    experts = experts_of(values) if recipe.needs_experts else None
    yield from _method(fit, cell, recipe, options, experts)
    contents = fit.known(names.dataset)
    if needed := _real_images(recipe, options, cell.ipc):
        yield from _too_few(contents, needed)
    network = trained_network(fit.resolver, cell_of(names))
    if recipe.family.differentiates and experts is None:
        yield from fit.network(network, names.dataset)
    if isinstance(options, IterativeOptions):
        what = "watch" if options.selection == "last" else "selection"
        if getattr(options, what) == "validation" and not fit.options(names.dataset).validation:
            yield f"{what} 'validation' needs held-out images; set validation above 0 in dataset {names.dataset}"
        if (options.watch or options.selection != "last") and network:
            yield from _training(fit, fit.resolver.evaluation(cell, network), names.dataset)


def _method(fit: Fit, cell: Cell, recipe: Recipe, options: MethodOptions, experts: str | None) -> Iterator[str]:
    """Yield where the options of a method exclude each other, its experts, or its network."""
    contents = fit.known(cell.dataset)
    facts, network = Facts(cell.ipc, contents.classes, contents.numbers), getattr(options, "network", "convnet")
    if experts is not None:
        trained = fit.resolver.experts(experts, cell.dataset)
        facts, network = replace(facts, experts=trained.count, epochs=trained.epochs), trained.network
    yield from recipe.problems(options, facts)
    named = fit.resolver.network(network, cell.dataset)
    if recipe.family.differentiates and getattr(network_options(named), "norm", None) == "batch":
        whose = "" if experts is None else f" of experts {experts}"
        yield (
            f"network {network}{whose} has norm 'batch', whose running statistics no gradient accounts for, and method "
            f"{recipe.name!r} learns through the network; name a network with another norm, such as 'instance'"
        )


def _real_images(recipe: Recipe, options: MethodOptions, ipc: int) -> int:
    """Return the number of real images of each class that a method begins with."""
    if recipe.family is EXTERNAL:
        return 0
    if isinstance(options, UnrolledOptions) and options.basis:
        ipc = options.basis_images or ipc
    return 0 if getattr(options, "init", "real") == "gaussian" else ipc


def _too_few(contents: Contents, ipc: int) -> Iterator[str]:
    """Yield whether classes have fewer training images than a set needs."""
    lacking = [label for label, count in enumerate(contents.train or ()) if count < ipc]
    if lacking:
        named = ", ".join(f"{contents.called(label)} has {(contents.train or ())[label]}" for label in lacking[:SHOWN])
        more = f", and {len(lacking) - SHOWN} more classes have too few" if len(lacking) > SHOWN else ""
        advice = "use a smaller ipc, or keep other labels (option classes)"
        yield f"{ipc} training images of each class are needed, {named}{more}; {advice}"


def _training(fit: Fit, options: EvaluateOptions, dataset: str) -> Problems:
    """Yield whether training and testing need held-out images that the dataset does not have."""
    chosen = "lr 'searched'" if options.lr == "searched" else "a choice of train_steps"
    searched = options.chooses and options.lr_images == "validation"
    used = {"split 'validation'": options.split == "validation", f"{chosen} on 'validation' images": searched}
    if not fit.options(dataset).validation:
        yield from (
            (f"networks on {dataset}", f"{what} needs held-out images; set validation above 0 in its options")
            for what, needed in used.items()
            if needed
        )


def _smallest_batch(count: int, size: int) -> int:
    return count % size or min(count, size)


def _evaluate(fit: Fit, names: Wildcards) -> Problems:
    """Yield what is wrong with the evaluation of a set, or of all real images."""
    options, contents = schedule(fit.resolver, names), fit.known(names.dataset)
    if names.rule == "full":
        count = None if contents.train is None else sum(contents.train)
        if isinstance(options.lr, str):
            yield f"real images have no learned step size, got lr {options.lr!r}; set lr to a number"
    else:
        count = None if contents.classes is None else int(names.ipc) * contents.classes
    batch = None if not count else _smallest_batch(count, options.batch_size)
    yield from fit.network(names.network, names.dataset, batch)
    yield from _training(fit, options, names.dataset)


def _continual(fit: Fit, names: Wildcards) -> Problems:
    """Yield what is wrong with learning classes step by step."""
    options, contents = fit.resolver.learning(names.protocol, cell_of(names)), fit.known(names.dataset)
    yield from _training(fit, options, names.dataset)
    if contents.classes is not None:
        split_classes(contents.classes, 0, options.steps)
    if options.split == "test" and 0 in (contents.test or ()):
        empty = contents.called((contents.test or ()).index(0))
        yield f"{empty} has no test images, so what is forgotten of it cannot be measured; leave it out of classes"
    yield from fit.network(options.network, names.dataset)


def _search(fit: Fit, names: Wildcards) -> Problems:
    """Yield what is wrong with an architecture search."""
    options, contents = fit.resolver.search(names.search), fit.known(names.dataset)
    yield from _training(fit, options.real if names.rule == "nas_real" else options.proxy, names.dataset)
    if contents.size is not None:
        sample(fitting(contents.size, options.width_factor), options.sample, options.sample_seed)


def _analysis(fit: Fit, names: Wildcards) -> Problems:
    """Yield why a measurement does not apply to a set's method."""
    cell = cell_of(names)
    values, measured = fit.resolver.method(cell), fit.resolver.analysis(cell)
    options = method_options(values)
    if names.what == "variance":
        if not isinstance(options, UnrolledOptions):
            yield f"method {cell.method} unrolls no training, which this measurement needs; leave it out"
        elif not options.snapshots:
            yield f"the set of {cell.method} is stored without its history; set snapshots above 0 for it"
        return
    if not isinstance(options, MatchingOptions):
        yield f"method {cell.method} matches no trajectories, which this measurement needs; leave it out"
        return
    if names.what == "trajectory" and measured.experts is not None:
        yield from _method(fit, cell, recipe_of(values), options, measured.experts)
    if names.what == "bounds":
        kept_steps(options.inner_steps, measured.divisors)
    if names.what in ("sharpness", "bounds"):
        shared = method_options(fit.resolver.method(cell._replace(method="satm")))
        if not hasattr(shared, "rho") or not hasattr(shared, "gamma"):
            yield "the rho of this measurement is that of the entry 'satm', another method here; rename it"


PROBLEMS: dict[str, Callable[[Fit, Wildcards], Problems]] = {
    "images": _images,
    "experts_part": _experts,
    "distill": _distill,
    "evaluate": _evaluate,
    "variants": _evaluate,
    "full": _evaluate,
    "continual": _continual,
    "nas": _search,
    "nas_real": _search,
    "analysis": _analysis,
}
"""What is wrong with a job, by its rule."""

"""What a campaign asks of each result: the part of its identity that needs no data. Nothing here imports torch.

The workflow runs a job again when its options change, and tables refuse results that were made with others
(`satm.workflow.provenance`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from satm.config import ANALYSES, Cell, EvaluateOptions, ExpertsOptions, Options, Resolver
from satm.config.methods import IterativeOptions
from satm.workflow.options import experts_of, method_options, network_options

Wildcards = Any
"""Snakemake's wildcards of a job: attributes, all of them texts."""

DECODING = {
    *("source", "image_column", "label_column", "classes", "size", "resize", "validation", "split_seed", "mean", "std"),
}
"""Options of a dataset that determine its stored images; they reach later stages through that file. Where the files lie
(`path`, `train`, `test`) is not among them: the files themselves are compared (`satm.config.source_files`)."""

MEANING = DECODING - {"image_column", "label_column"}
"""Those of them that mean the same in files of another layout."""

WHITENING = ("eps", "per_image", "relative")
"""Options of a dataset's whitening, without the `zca_` before each name."""

SHARING = {"count", "per_job", "difficulty_count"}
"""Options that change no expert: their number, their grouping into jobs and the number of raters."""

UNSTATED = {*SHARING, "network"}
"""Options of a recipe that experts do not state; they state the network's own options."""


@dataclass(frozen=True)
class Chosen:
    """Options of a model, or `only` some of them, and `more` values beside them, as a result states them."""

    options: Options
    only: set[str] | None = None
    more: Mapping[str, object] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """All of them, as JSON values."""
        return {**self.more, **self.options.model_dump(mode="json", include=self.only)}

    @property
    def defaults(self) -> dict[str, Any]:
        """Their defaults, which apply to results of versions without an option."""
        return type(self.options).model_construct().model_dump(mode="json", include=self.only)

    @property
    def changed(self) -> dict[str, Any]:
        """Those that differ from their defaults, so that a new option reruns no job that does not use it."""
        return {**self.more, **self.options.model_dump(mode="json", include=self.only, exclude_defaults=True)}


Asked = Mapping[str, Any]
"""What a campaign asks of a result: fields of its identity, each a JSON value, `Chosen` options, or such a mapping."""


TEACHER = "sgd"
"""Experts that give soft labels to sets without any."""

INPUTS = ("distillations", "experts", "experts_count", "count", "images")
"""Fields with what is asked of a job's inputs; experts that are a name or a number are none."""


def params(asked: object) -> Any:
    """Return what is asked as JSON values, of options only those that differ from their defaults.

    What is asked of inputs is left out: it reaches a job through their files.
    """
    if isinstance(asked, Chosen):
        return asked.changed
    if not isinstance(asked, Mapping):
        return asked
    return {
        name: params(value)
        for name, value in asked.items()
        if name not in INPUTS or (name == "experts" and isinstance(value, str | int))
    }


def wildcards(names: Mapping[str, object]) -> Wildcards:
    """Return the names of a job in Snakemake's form."""
    return SimpleNamespace(**{name: str(value) for name, value in names.items()})


def cell_of(names: Wildcards) -> Cell:
    """Return the synthetic set of a job."""
    return Cell(names.dataset, int(names.ipc), names.method, int(names.seed))


def sets_of(resolver: Resolver, names: Wildcards) -> list[Cell]:
    """Return the synthetic sets that a job with the input `distilled` reads: its own, or those of each step."""
    cell = cell_of(names)
    if not hasattr(names, "protocol"):
        return [cell]
    sources = resolver.learning(names.protocol, cell).sources(names.dataset)
    return [cell._replace(dataset=source) for source in sources]


# Options of parts of a result


def method(values: Mapping[str, Any]) -> Chosen:
    """Return the options of `{"method": registered name, option: value…}`."""
    return Chosen(method_options(values), more={"method": values["method"]})


def network(resolver: Resolver, name: str, dataset: str) -> Chosen:
    """Return the options of a network on a dataset."""
    values = resolver.network(name, dataset)
    return Chosen(network_options(values), more={"network": values["network"]})


def _space(resolver: Resolver, dataset: str) -> Asked:
    """Return space and augmentation of the images that networks are trained on."""
    options = resolver.dataset(dataset)
    return {
        "preprocessing": {"space": "whitened" if options.zca else "normalised"},
        "augmentation": [options.augment, options.augment_share],
    }


def _training(resolver: Resolver, dataset: str) -> Asked:
    """Return source, space and augmentation of the images; experts state a hash of them alone."""
    return {"images": Chosen(resolver.dataset(resolver.whole(dataset)), MEANING), **_space(resolver, dataset)}


def experts(resolver: Resolver, dataset: str, name: str) -> Asked:
    """Return what is asked of experts; their number and grouping into jobs are not part of it."""
    recipe = resolver.experts(name, dataset)
    return {
        "dataset": dataset,
        "network": network(resolver, recipe.network, dataset),
        "experts": name,
        "recipe": Chosen(recipe, set(ExpertsOptions.model_fields) - UNSTATED),
        **_space(resolver, dataset),
        **({} if recipe.augment else {"augmentation": None}),
    }


def trained_network(resolver: Resolver, cell: Cell) -> str:
    """Return the name of the network that a method trains on its sets; that of its experts, if it uses any."""
    options = method_options(resolver.method(cell))
    if (name := getattr(options, "experts", None)) is not None:
        return resolver.experts(name, cell.dataset).network
    return getattr(options, "network", "convnet")


def look_schedule(resolver: Resolver, cell: Cell, options: Options) -> EvaluateOptions | None:
    """Return the training of networks that measure a set's accuracy during its distillation; None: there is none."""
    if not isinstance(options, IterativeOptions):
        return None
    split = options.watch if options.selection == "last" else options.selection
    return None if split is None else resolver.evaluation(cell, trained_network(resolver, cell))


def schedule(resolver: Resolver, names: Wildcards) -> EvaluateOptions:
    """Return the options for training networks on a synthetic set, or with a recipe on all real images."""
    if hasattr(names, "recipe"):
        return resolver.full(names.recipe, names.dataset, names.network)
    return resolver.evaluation(cell_of(names), names.network)


def shared_rho(resolver: Resolver, cell: Cell) -> float | None:
    """Return the rho of the method `satm` in a cell, at which all methods are measured; None: that method has none."""
    rho: float | None = getattr(method_options(resolver.method(cell._replace(method="satm"))), "rho", None)
    return rho


def distillations(resolver: Resolver, *cells: Cell) -> Asked:
    """Return what is asked of the synthetic sets of a result, by dataset: the options and the experts of each."""
    asked = {}
    for cell in cells:
        values = resolver.method(cell)
        name = experts_of(values)
        own = {} if name is None else experts(resolver, cell.dataset, name)
        count = name and resolver.experts(name, cell.dataset).count
        asked[cell.dataset] = {"options": method(values), "experts": own or None, "experts_count": count}
    return {"distillations": asked}


# Results by rule


def of_images(resolver: Resolver, names: Wildcards) -> Asked:
    """Return what is asked of decoded images."""
    return {"options": Chosen(resolver.dataset(names.dataset), DECODING)}


def of_whitening(resolver: Resolver, names: Wildcards) -> Asked:
    """Return what is asked of a whitening."""
    options = resolver.dataset(names.dataset)
    return {name: getattr(options, f"zca_{name}") for name in WHITENING}


def of_experts(resolver: Resolver, names: Wildcards) -> Asked:
    """Return what is asked of experts, together or in parts."""
    return experts(resolver, names.dataset, names.experts)


def of_difficulty(resolver: Resolver, names: Wildcards) -> Asked:
    """Return what is asked of the difficulty of images."""
    recipe = resolver.experts(names.experts, names.dataset)
    return {"identity": of_experts(resolver, names), "experts": min(recipe.difficulty_count, recipe.count)}


def of_set(resolver: Resolver, names: Wildcards) -> Asked:
    """Return what is asked of a synthetic set and its metrics."""
    cell, values = cell_of(names), resolver.method(cell_of(names))
    name, looks = experts_of(values), look_schedule(resolver, cell, method_options(values))
    return {
        "axes": list(cell),
        "options": method(values),
        "network": network(resolver, trained_network(resolver, cell), cell.dataset),
        "looks": looks and Chosen(looks),
        "experts": name and experts(resolver, cell.dataset, name),
        "experts_count": name and resolver.experts(name, cell.dataset).count,
        **_training(resolver, cell.dataset),
    }


def of_evaluation(resolver: Resolver, names: Wildcards) -> Asked:
    """Return what is asked of accuracies, on a synthetic set or on all real images."""
    options, values = Chosen(schedule(resolver, names)), network(resolver, names.network, names.dataset)
    sets = {} if hasattr(names, "recipe") else distillations(resolver, cell_of(names))
    return {"options": options, "network": values, **sets, **_training(resolver, names.dataset)}


def of_variants(resolver: Resolver, names: Wildcards) -> Asked:
    """Return what is asked of accuracies with hard and soft labels, which experts give unless the set has its own."""
    count = resolver.experts(TEACHER, names.dataset).count
    return {
        **of_evaluation(resolver, names),
        "experts": experts(resolver, names.dataset, TEACHER),
        "experts_count": count,
    }


def of_continual(resolver: Resolver, names: Wildcards) -> Asked:
    """Return what is asked of continual learning."""
    learning = resolver.learning(names.protocol, cell_of(names))
    values = network(resolver, learning.network, names.dataset)
    sets = distillations(resolver, *sets_of(resolver, names))
    return {"options": Chosen(learning), "network": values, **sets, **_training(resolver, names.dataset)}


def of_search(resolver: Resolver, names: Wildcards, kind: str) -> Asked:
    """Return what is asked of one part of a search, whose name has the positions of its candidates."""
    search = resolver.search(names.search)
    chosen = {name: getattr(search, name) for name in ("width_factor", "sample_seed")}
    sets = distillations(resolver, cell_of(names)) if kind == "proxy" else {}
    return {"options": Chosen(getattr(search, kind)), **chosen, **sets, **_training(resolver, names.dataset)}


def of_analysis(resolver: Resolver, names: Wildcards) -> Asked:
    """Return what is asked of a measurement at a synthetic set."""
    cell, options = cell_of(names), resolver.analysis(cell_of(names))
    values, own = resolver.method(cell), options.experts if "experts" in ANALYSES[names.what] else None
    name = own or experts_of(values)
    count = resolver.experts(name, cell.dataset).count if name else 0
    return {
        "options": method(values),
        "measurement": Chosen(options, set(ANALYSES[names.what])),
        **({"rho": shared_rho(resolver, cell)} if names.what in ("sharpness", "bounds") else {}),
        **({"experts": experts(resolver, cell.dataset, name)} if name else {}),
        **({"count": min(options.count, count)} if names.what == "trajectory" else {}),
        **distillations(resolver, cell),
        **_training(resolver, cell.dataset),
    }


def of_exhibit(resolver: Resolver, names: Wildcards) -> Asked:
    """Return the entry of a table or figure."""
    entry = resolver.table(names.table) if hasattr(names, "table") else resolver.figure(names.figure)
    return entry.model_dump(mode="json")

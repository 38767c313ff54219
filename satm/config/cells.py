"""The options of tables, searches and continual learning: which synthetic sets each is made of."""

import itertools
import math
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from satm.config.base import Options, grouped
from satm.config.cell import Cell
from satm.config.class_order import Step
from satm.config.layout import Layout
from satm.config.training import CANDIDATES, CandidateOptions, EvaluateOptions

Measured = Literal[
    "memory_gb",
    "seconds",
    "hours_per_1000_iterations",
    "training_hours",
    "iterations_to_converge",
    "hypergradient_norm_mean",
    "hypergradient_norm_spikes",
    "sharpness_first_tenth",
    "sharpness_last_tenth",
]
"""Numbers about a distillation; `satm.config.run_metrics.MEASURES` says what each is."""


Ipc = Annotated[int, Field(ge=1)]
"""Images per class."""

SomeDatasets = Annotated[dict[str, Annotated[tuple[Ipc, ...], Field(min_length=1)]], Field(min_length=1)]
"""Images per class, by dataset, of at least one cell."""

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
"""Seeds of the distillation."""

MOST, MOST_FILES = 10_000, 20_000
"""Synthetic sets, and files, that one table or figure is made of at most."""


class Cells(Options):
    """The synthetic sets that something is made of."""

    datasets: dict[str, tuple[Ipc, ...]]
    """Images per class, by dataset."""
    methods: tuple[str, ...]
    """Rows, in this order."""
    seeds: Seeds = (0,)
    """Seeds of the distillation."""
    seeds_at: dict[Ipc, Seeds] = {}
    """Other seeds at some numbers of images per class."""

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        refuse_twice(self)
        sets = sum(len(self.seeds_for(ipc)) for ipcs in self.datasets.values() for ipc in ipcs) * len(self.methods)
        if sets > MOST:
            raise ValueError(f"it is made of {sets} synthetic sets, the most are {MOST}; make several of it")
        return self

    def seeds_for(self, ipc: int) -> tuple[int, ...]:
        """Return the seeds at so many images per class."""
        return self.seeds_at.get(ipc, self.seeds)

    def cells_of(self, dataset: str, ipc: int, method: str) -> list[Cell]:
        """Return the distillations of all seeds."""
        return [Cell(dataset, ipc, method, seed) for seed in self.seeds_for(ipc)]

    def cells(self, methods: tuple[str, ...] | None = None) -> list[Cell]:
        """Return each distillation in the table's order; `methods`: only of these."""
        return [
            Cell(dataset, ipc, method, seed)
            for dataset, ipcs in self.datasets.items()
            for ipc in ipcs
            for method in (self.methods if methods is None else methods)
            for seed in self.seeds_for(ipc)
        ]


def refuse_twice(options: Options) -> None:
    """Refuse lists that name something twice: it would be counted twice.

    Raises:
        ValueError: naming it.
    """
    for name in type(options).model_fields:
        held = getattr(options, name)
        for each in held.values() if isinstance(held, dict) else [held]:
            if isinstance(each, tuple) and (twice := [one for one in each if each.count(one) > 1]):
                raise ValueError(f"{name} has {twice[0]!r} twice; name it once")


def refuse_many(files: int) -> None:
    """Refuse a table or figure of more files than a campaign can be planned with.

    Raises:
        ValueError: with the number.
    """
    if files > MOST_FILES:
        raise ValueError(f"it is made of {files} files, the most are {MOST_FILES}; make several of it")


class Tabulated(Cells):
    """What becomes a table."""

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the paths of everything that the table of this name is made of."""
        raise TypeError(f"{type(self).__name__} must define files()")


class TableOptions(Tabulated):
    """The cells of one results table."""

    networks: tuple[str, ...] = Field(("convnet",), min_length=1)
    """Networks that are trained on the synthetic sets; with several the table has a row for each."""
    split: Literal["test", "validation"] = "test"
    """Real images that the accuracies are of; `validation` for choosing options (set `split` in the stage evaluate too,
    and `validation` in the dataset)."""
    sharpness: tuple[str, ...] = ()
    """Methods whose sharpness is measured and compared, the first against each other one."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of methods whose difference in accuracy is told with its interval, paired; empty: satm and mtt, where the
    table has both."""
    full: tuple[Literal["experts", "strong"], ...] = ()
    """Recipes by which networks trained on all real images are shown beside the sets (`FULL`)."""
    methods_on: dict[str, tuple[str, ...]] = {}
    """Networks that some of the methods only are tested with, and these methods; other networks: all."""
    published_as: dict[str, str] = {}
    """Names in the published data of methods that have another name here."""
    published: tuple[str, ...] = ()
    """Methods, by their names in `satm/tables/published_results.csv`, that are shown with published numbers only,
    beside those that the paper's own table prints."""

    @field_validator("published")
    @classmethod
    def _only_published(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("split") == "validation":
            raise ValueError("published numbers are of test images, split is 'validation'; leave one of them out")
        for name in value:
            if name in info.data.get("methods", ()):
                raise ValueError(
                    f"methods names {name!r} too, which has its published numbers beside the measured ones; leave it "
                    "out of published"
                )
        return value

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the paths of everything that the table of this name is made of."""
        found = [
            layout.evaluation(cell, network)
            for network in self.networks
            for cell in self.cells(self.tested_with(network))
        ]
        found += [layout.metrics(cell) for cell in self.cells()]
        found += [layout.analysis("sharpness", cell) for cell in self.cells(self.sharpness)]
        places = [
            (dataset, recipe, network) for dataset in self.datasets for recipe in self.full for network in self.networks
        ]
        return found + [layout.full(*place) for place in places]

    def tested_with(self, network: str) -> tuple[str, ...]:
        """Return the methods that are tested with a network, in the table's order."""
        chosen = self.methods_on.get(network, self.methods)
        return tuple(method for method in self.methods if method in chosen)

    @model_validator(mode="after")
    def _knows_what_it_names(self) -> "TableOptions":
        some = [method for methods in self.methods_on.values() for method in methods]
        for option, methods in (("published_as", list(self.published_as)), ("methods_on", some)):
            for method in methods:
                if method not in self.methods:
                    raise ValueError(f"{option} names {method!r}, which is not among methods; add it there")
        for network in self.methods_on:
            if network not in self.networks:
                raise ValueError(f"methods_on names {network!r}, which is not among networks; add it there")
        return self

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs that are compared: `compare`, then the first of `sharpness` against each other one."""
        found = (*self.compare, *((self.sharpness[0], other) for other in self.sharpness[1:]))
        if not found and {"satm", "mtt"} <= set(self.methods):
            found = (("satm", "mtt"),)
        return tuple(dict.fromkeys(found))


class FairOptions(Tabulated):
    """One table that says what a method's images are worth: labels, augmentation, random images and real data apart."""

    networks: tuple[str, ...] = Field(("convnet",), min_length=1)
    """Networks that are trained on the synthetic sets."""
    baseline: str = "random"
    """The method whose sets, with the same labels and schedule, are the measure of an improvement."""
    full: Literal["experts", "strong"] = "strong"
    """Recipe of the networks trained on all real images, the measure of recovery (`FULL`)."""

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the paths of everything that the table of this name is made of."""
        found = [layout.variants(cell, network) for cell in self.cells() for network in self.networks]
        places = [(dataset, self.full, network) for dataset in self.datasets for network in self.networks]
        return found + [layout.full(*place) for place in places]

    @model_validator(mode="after")
    def _has_baseline(self) -> "FairOptions":
        if self.baseline not in self.methods:
            raise ValueError(f"methods lacks the baseline {self.baseline!r}; add it, or name another baseline")
        return self


class SearchOptions(Tabulated):
    """An architecture search with synthetic sets in place of the real images, and its table."""

    sample: int | None = Field(None, ge=1, le=CANDIDATES)
    """How many of the 720 candidates are trained, chosen at random; None: all that fit the images."""
    sample_seed: int = 0
    """Another seed chooses others."""
    width_factor: float = Field(1.0, gt=0)
    """Times the width of every candidate, 32 to 256 filters, for a search where wide ones take too long."""
    per_job: int = Field(20, ge=1)
    """Candidates that one job trains, one after another. Does not change them."""
    proxy: CandidateOptions = CandidateOptions()
    """How they are trained on synthetic sets."""
    real: CandidateOptions = CandidateOptions()
    """How they are trained on all real images."""
    top_by: Literal["real", "proxy"] = "real"
    """Whose accuracies say which the best 5, 10 and 20 candidates are, over which ranks are correlated."""

    def parts(self) -> list[str]:
        """Return the parts in which the candidates are trained, `FIRST-LAST` by their places in the sample."""
        return grouped(self.sample or CANDIDATES, self.per_job)

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the paths of everything that the table of this name is made of."""
        found = [layout.nas(cell, name, part) for cell in self.cells() for part in self.parts()]
        return found + [layout.nas_real(dataset, name, part) for dataset in self.datasets for part in self.parts()]

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        refuse_many(math.ceil((self.sample or CANDIDATES) / self.per_job) * (len(self.cells()) + len(self.datasets)))
        return self

    @field_validator("real")
    @classmethod
    def _has_a_rate(cls, value: CandidateOptions) -> CandidateOptions:
        if value.lr == "learned":
            raise ValueError("real images have no step size of their own, so lr must be a number")
        return value


class MeasuresOptions(Tabulated):
    """A table of numbers about distillations, each from the metrics of their iterations."""

    measures: tuple[Measured, ...] = Field(min_length=1)
    """Which numbers (`satm.config.run_metrics`)."""
    after: int = Field(0, ge=0)
    """So many iterations at the start of each run are left out, as the first ones can be far from the rest."""
    published_as: dict[str, str] = {}
    """Names in the published data of methods that have another name here."""

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the paths of everything that the table of this name is made of."""
        return [layout.metrics(cell) for cell in self.cells()]


class StartsOptions(Tabulated):
    """A table of accuracies by the epoch of the experts' path at which networks begin to learn from a set."""

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the paths of everything that the table of this name is made of."""
        return [layout.analysis("trajectory", cell) for cell in self.cells()]


class StepsOptions(Options):
    """How classes are learned step by step (continual learning)."""

    steps: int = Field(5, ge=1, le=10_000)
    """Steps in which the classes are learned, as even as can be, earlier ones larger."""
    orders: int = Field(5, ge=1, le=10_000)
    """Orders of the classes, the first ones (`satm.config.class_order`)."""
    repeats: int = Field(3, ge=1)
    """Freshly initialised networks at each step of an order."""
    network: str = "convnet"
    """Network that is trained on the synthetic images kept."""
    sets: Literal["sliced", "per-step"] = "sliced"
    """`sliced`: a step brings its classes' images of one distillation of all classes; `per-step`: a set that was
    distilled on the classes of this step only."""

    def sources(self, dataset: str) -> list[str]:
        """Return the datasets whose synthetic sets are learned from: the whole one, or each step of each order."""
        if self.sets == "sliced":
            return [dataset]
        places = itertools.product(range(self.orders), range(1, self.steps + 1))
        return [Step(dataset, order, step, self.steps).name for order, step in places]


class LearnOptions(StepsOptions, EvaluateOptions):
    """How classes are learned step by step, and how a network is trained and tested at each step."""


class ContinualOptions(Tabulated, StepsOptions):
    """Continual learning from some synthetic sets: one table and one figure."""

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        refuse_many(len(self.cells()) * (self.orders * self.steps if self.sets == "per-step" else 1))
        return self

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the paths of everything that the table and the figure of this name are made of."""
        return [layout.continual(cell, name) for cell in self.cells()]

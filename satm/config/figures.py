"""The options of figures: what each is drawn from. A figure is made from the files of other stages and trains nothing.

Every kind says in `files` what it needs, so that one rule and one command serve all of them.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from satm.config.base import Options
from satm.config.cell import Cell
from satm.config.cells import Cells, ContinualOptions, Ipc, Seeds, SomeDatasets, refuse_many, refuse_twice
from satm.config.layout import ACCOUNTING, Layout

AT_EPOCH = "-at-epoch-"
"""Between the name of a method and the epoch that its segments start at, in the name of a derived method."""


class FigureOptions(Options):
    """What every figure has."""

    title: str = ""
    """Above the figure; empty: none."""

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        refuse_twice(self)
        return self

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the paths of everything that the figure is drawn from.

        Args:
            layout: of the campaign.
            continual: the campaign's protocols of continual learning.
        """
        raise TypeError(f"{type(self).__name__} must define files()")


class CellsFigure(Cells, FigureOptions):
    """A figure of some synthetic sets."""

    datasets: SomeDatasets
    """Images per class, by dataset."""
    methods: tuple[str, ...] = Field(min_length=1)
    """Panels or lines, in this order."""
    labels: dict[str, str] = {}
    """What the legend calls a method; without an entry its name."""


Quantity = Literal[
    "loss", "step_size", "hypergradient_norm", "sharpness", "test_accuracy", "validation_accuracy", "seconds"
]


class IterationsFigure(CellsFigure):
    """Measurements along the distillation: a line per method, a row of panels per cell, a column per quantity."""

    kind: Literal["iterations"]
    """Measurements along the distillation."""
    quantities: tuple[Quantity, ...] = Field(min_length=1)
    """Columns of the metrics; accuracies are there where a method's option `watch` or `selection` says so."""
    logarithmic: tuple[Quantity, ...] = ()
    """Quantities drawn on a logarithmic axis."""
    groups: dict[str, tuple[str, ...]] = {}
    """Panels of some of the methods each, by their titles; left out: one panel of all."""
    smooth: int = Field(1, ge=1)
    """Iterations of a centred running mean that is drawn over the pale measurements; 1: the measurements alone."""

    @model_validator(mode="after")
    def _groups_of_its_methods(self) -> "IterationsFigure":
        for method in [method for methods in self.groups.values() for method in methods]:
            if method not in self.methods:
                raise ValueError(f"groups names {method!r}, which is not among methods; add it there")
        return self

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the metrics of all cells."""
        return [layout.metrics(cell) for cell in self.cells()]


class SweepFigure(FigureOptions):
    """Accuracy against the value of an option, a line per series and a panel per cell."""

    kind: Literal["sweep"]
    """Accuracy against the value of an option."""
    datasets: SomeDatasets
    """Images per class, by dataset."""
    series: dict[str, dict[float, str]] = Field(min_length=1)
    """By the legend's name of a line: the method of each value, or `METHOD@NETWORK` for another network."""
    references: tuple[str, ...] = ()
    """Methods drawn as horizontal lines."""
    axis: str
    """What the values are, for the axis."""
    logarithmic: bool = False
    """Draw the values on a logarithmic axis."""
    network: str = "convnet"
    """Network that accuracies are of, where a series does not name another."""
    seeds: Seeds = (0,)
    """Seeds of the distillation."""

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        refuse_many(sum(map(len, self.datasets.values())) * len(self.points()) * len(self.seeds))
        return self

    def points(self) -> list[tuple[str, str]]:
        """Return (method, network) of everything that is drawn, once each."""
        named = [each for values in self.series.values() for each in values.values()] + list(self.references)
        return list(dict.fromkeys(self.place(each) for each in named))

    def place(self, named: str) -> tuple[str, str]:
        """Return the method and network that a value names."""
        method, _, network = named.partition("@")
        return method, network or self.network

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method that is drawn."""
        return tuple(dict.fromkeys(method for method, _ in self.points()))

    def cells(self) -> list[Cell]:
        """Return each distillation."""
        return [
            Cell(dataset, ipc, method, seed)
            for dataset, ipcs in self.datasets.items()
            for ipc in ipcs
            for method in self.methods
            for seed in self.seeds
        ]

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the evaluations of all points."""
        return [
            layout.evaluation(Cell(dataset, ipc, method, seed), network)
            for dataset, ipcs in self.datasets.items()
            for ipc in ipcs
            for method, network in self.points()
            for seed in self.seeds
        ]


class CostsFigure(CellsFigure):
    """Peak memory and time of an iteration as bars, a group per cell."""

    kind: Literal["costs"]
    """Peak memory and time as bars."""

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the metrics of all cells."""
        return [layout.metrics(cell) for cell in self.cells()]


class CorrelationFigure(CellsFigure):
    """How the matching losses of all epochs move while one epoch is matched: a heatmap per method and cell.

    Each matched epoch is a distillation of its own, whose method is named `METHOD-at-epoch-7`: the method with its
    option `start_epoch` set. The method must `monitor` at least so many epochs.
    """

    kind: Literal["correlation"]
    """Correlations of matching losses as heatmaps."""
    epochs: int = Field(ge=2)
    """Epochs that are matched and monitored, the first ones."""
    epochs_at: dict[Ipc, Annotated[int, Field(ge=2)]] = {}
    """Other numbers of them at some numbers of images per class."""

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        refuse_many(sum(self.epochs_for(cell.ipc) for cell in self.cells()))
        return self

    def epochs_for(self, ipc: int) -> int:
        """Return how many epochs are matched at so many images per class."""
        return self.epochs_at.get(ipc, self.epochs)

    def runs(self) -> list[Cell]:
        """Return each distillation, of a derived method."""
        return [
            cell._replace(method=f"{cell.method}{AT_EPOCH}{epoch}")
            for cell in self.cells()
            for epoch in range(self.epochs_for(cell.ipc))
        ]

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the metrics of all distillations."""
        return [layout.metrics(run) for run in self.runs()]


class TrajectoryFigure(CellsFigure):
    """How far networks trained on a synthetic set are from the experts, along their whole path."""

    kind: Literal["trajectory"]
    """Errors along the experts' path."""

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the measured errors of all cells."""
        return [layout.analysis("trajectory", cell) for cell in self.cells()]


class VarianceFigure(CellsFigure):
    """Normalised variance of the hypergradient along the distillation, a line per method."""

    kind: Literal["variance"]
    """Variance of the hypergradient along the distillation."""

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the measured variances of all cells."""
        return [layout.analysis("variance", cell) for cell in self.cells()]


class BoundsFigure(CellsFigure):
    """Errors of a truncated hypergradient and of a reused trajectory beside their bounds."""

    kind: Literal["bounds"]
    """Errors of SATM's approximations beside their bounds."""

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the measured errors of all cells."""
        return [layout.analysis("bounds", cell) for cell in self.cells()]


class ContinualFigure(FigureOptions):
    """Accuracy on the classes seen against their number, a panel per protocol and cell."""

    kind: Literal["continual"]
    """Accuracy in continual learning."""
    protocols: tuple[str, ...] = Field(min_length=1)
    """Names of the campaign's protocols of continual learning."""

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the accuracies of all protocols."""
        return [path for each in self.protocols for path in continual[each].files(layout, each)]


class ImagesFigure(CellsFigure):
    """Synthetic images in true colours, a block per cell and method, the first seed of each."""

    kind: Literal["images"]
    """Synthetic images."""
    start: bool = False
    """Show above each set the images that it began from, where its history was kept (option `snapshots`)."""
    per_class: int = Field(5, ge=1)
    """Images of each class that are shown, at most."""
    classes: int = Field(20, ge=1)
    """Classes that are shown, at most."""

    def chosen(self) -> list[Cell]:
        """Return the cells with the first seed of each."""
        return [cell for cell in self.cells() if cell.seed == self.seeds_for(cell.ipc)[0]]

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the synthetic sets."""
        return [layout.distilled(cell) for cell in self.chosen()]


class AnimationFigure(CellsFigure):
    """One synthetic set on its way: a moving picture, and its states below each other.

    The distillation's option `snapshots` says how many states there are.
    """

    kind: Literal["animation"]
    """A synthetic set on its way."""
    per_class: int = Field(5, ge=1)
    """Images of each class that are shown, at most."""
    classes: int = Field(10, ge=1)
    """Classes that are shown, at most."""

    @model_validator(mode="after")
    def _one_set(self) -> "AnimationFigure":
        if len(cells := self.cells()) != 1:
            raise ValueError(f"an animation shows one synthetic set, got {len(cells)}; name one of each")
        return self

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the synthetic set."""
        return [layout.distilled(cell) for cell in self.cells()]


class AccountingFigure(FigureOptions):
    """What the jobs of the campaign have taken: hours on devices by rule, time in the queue and running."""

    kind: Literal["accounting"]
    """What the jobs have taken."""

    def files(self, layout: Layout, continual: Mapping[str, ContinualOptions]) -> list[str]:
        """Return the table of the same, which is made when all jobs have run."""
        return [layout.table(ACCOUNTING)]


Figure = Annotated[
    IterationsFigure
    | SweepFigure
    | CostsFigure
    | CorrelationFigure
    | TrajectoryFigure
    | VarianceFigure
    | BoundsFigure
    | ContinualFigure
    | ImagesFigure
    | AnimationFigure
    | AccountingFigure,
    Field(discriminator="kind"),
]
"""One figure, of the kind that it names."""

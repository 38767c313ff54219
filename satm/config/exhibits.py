"""Base of the tables and figures of a campaign, its exhibits.

A kind is a class in a module of `satm.tables` or `satm.figures`, registered under its name in `TABLES` or `FIGURES`. It
has the options of an entry, lists the input files of the exhibit, and makes it from them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from satm.config.base import Options, budgets
from satm.config.cell import Cell
from satm.config.layout import Layout
from satm.errors import UsageError, pick
from satm.registry import Registry

if TYPE_CHECKING:
    from satm.config.resolver import Resolver

Ipc = Annotated[int, Field(ge=1)]
"""Images per class."""

SomeDatasets = Annotated[dict[str, Annotated[tuple[Ipc, ...], Field(min_length=1)]], Field(min_length=1)]
"""Images per class by dataset, at least one."""

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
"""Seeds of the distillation."""

MOST = 10_000
"""Largest number of synthetic sets that one table or figure may need."""


class Exhibit(Options):
    """A table or a figure of a campaign."""

    kind: str
    """Kind of the table or figure."""

    @model_validator(mode="after")
    def _names_nothing_twice(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            for each in value.values() if isinstance(value, dict) else [value]:
                if isinstance(each, tuple) and (twice := [one for one in each if each.count(one) > 1]):
                    raise ValueError(f"{name} has {twice[0]!r} twice; name it once")
        return self

    def runs(self) -> list[Cell]:
        """Return every distillation that it needs."""
        return []

    def tested_networks(self) -> Sequence[str]:
        """Return the names of the networks that are trained on the synthetic sets: its `networks`, or its `network`."""
        networks: Sequence[str] = getattr(self, "networks", ())
        network: str | None = getattr(self, "network", None)
        return networks if network is None else [network]

    def size(self) -> dict[str, object]:
        """Return the options that determine its size, by a description."""
        return {}

    def check(self, resolver: "Resolver") -> None:
        """Raise a UsageError if it does not fit the datasets of a campaign."""


class Cells(Exhibit):
    """A table or figure of the synthetic sets of some methods on some datasets."""

    datasets: dict[str, tuple[Ipc, ...]]
    """Images per class, by dataset."""
    methods: tuple[str, ...]
    """Methods, in the order of the rows."""
    seeds: Seeds = (0,)
    """Seeds of the distillation."""
    seeds_at: dict[Ipc, Seeds] = {}
    """Other seeds at some numbers of images per class."""

    @model_validator(mode="after")
    def _shows_some(self) -> Self:
        if not (self.methods or getattr(self, "published", ()) or getattr(self, "full", ())):
            raise ValueError("methods is empty, so there is nothing to show; name a method")
        return self

    @model_validator(mode="after")
    def _limits_sets(self) -> Self:
        sets = sum(len(self.seeds_for(ipc)) for _, ipc in budgets(self.datasets)) * len(self.methods)
        if sets > MOST:
            raise ValueError(f"it needs {sets} synthetic sets, expected at most {MOST}; split it")
        return self

    def seeds_for(self, ipc: int) -> tuple[int, ...]:
        """Return the seeds at a number of images per class."""
        return self.seeds_at.get(ipc, self.seeds)

    def cells_of(self, dataset: str, ipc: int, method: str) -> list[Cell]:
        """Return the distillations of all seeds."""
        return [Cell(dataset, ipc, method, seed) for seed in self.seeds_for(ipc)]

    def cells(self, methods: tuple[str, ...] | None = None) -> list[Cell]:
        """Return each distillation in the table's order; `methods` restricts the methods."""
        names = self.methods if methods is None else methods
        groups = [self.cells_of(dataset, ipc, name) for dataset, ipc in budgets(self.datasets) for name in names]
        return [cell for group in groups for cell in group]

    def runs(self) -> list[Cell]:
        """Return every distillation that it needs."""
        return self.cells()


class TableOptions(Cells):
    """Options of every kind of table; `satm.tables.base.TableKind` adds the methods that make it."""

    def files(self, layout: Layout, name: str) -> list[str]:
        """Return the paths of the input files of the table of this name."""
        raise TypeError(f"{type(self).__name__} must define files()")


class FigureOptions(Exhibit):
    """Options of every kind of figure; `satm.figures.base.FigureKind` adds the methods that draw it."""

    SHOWS_PIXELS: ClassVar[bool] = False
    """Whether it shows images, and so needs the whitening of whitened ones."""

    title: str = ""
    """Title above the figure; empty: none."""

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the paths of the input files of the figure; `tables` are those of the campaign by name."""
        raise TypeError(f"{type(self).__name__} must define files()")

    def tables_shown(self, tables: Mapping[str, TableOptions]) -> Mapping[str, TableOptions]:
        """Return the campaign's tables whose numbers it shows, by name.

        Raises:
            UsageError: the campaign lacks a table.
        """
        return {}

    @classmethod
    def standard(cls, tables: Mapping[str, TableOptions]) -> Mapping[str, "FigureOptions"]:
        """Return the figures of this kind, by name, that a campaign with these tables has without an entry."""
        return {}


TABLES: Registry[type[TableOptions]] = Registry("satm.tables")
"""Every kind of table by its name."""

FIGURES: Registry[type[FigureOptions]] = Registry("satm.figures")
"""Every kind of figure by its name."""


def of_kind(registry: Registry[Any], what: str, default: str | None = None) -> Callable[[object], object]:
    """Return a function that reads an entry (`what` in messages) as the options of its kind.

    `default` is the kind of an entry without one; None: every entry must have a kind.
    """

    def read(entry: object) -> object:
        if not isinstance(entry, Mapping):
            return entry
        kind = entry.get("kind", default)
        if kind is None:
            raise UsageError(f"the kind of {what} is missing; known: {', '.join(registry)}")
        return pick(str(kind), registry, f"kind of {what}").model_validate(entry)

    return read


AnyTable = Annotated[SerializeAsAny[TableOptions], BeforeValidator(of_kind(TABLES, "table", "accuracy"))]
"""A table of the kind that it names; without a kind, a table of accuracies."""

AnyFigure = Annotated[SerializeAsAny[FigureOptions], BeforeValidator(of_kind(FIGURES, "figure"))]
"""A figure of the kind that it names."""

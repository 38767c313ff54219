"""Options of a campaign, the content of one YAML file."""

from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import ModelWrapValidatorHandler, ValidationInfo, field_validator, model_validator

from satm.config.base import OneOrMore, Options, check_name
from satm.config.datasets import DatasetOptions
from satm.config.exhibits import AnyFigure, AnyTable
from satm.config.experts import ExpertsOptions
from satm.config.layout import ACCOUNTING, OVERVIEW, PAIRED
from satm.config.training import StepsOptions
from satm.errors import short

P = TypeVar("P", bound=Options)


class Setting(Options):
    """One row of a preset file or of a campaign's `settings`: options for the jobs that it names."""

    stage: Literal["network", "experts", "distill", "evaluate", "analyse"] = "distill"
    """Stage of the options."""
    method: OneOrMore[str] = ()
    """Names of methods, or their registered methods; empty: all (stages distill, evaluate and analyse)."""
    experts: OneOrMore[str] = ()
    """Names of experts; empty: all (stage experts)."""
    network: OneOrMore[str] = ()
    """Names of networks, or their registered networks (stage network), or tested networks (evaluate); empty: all."""
    dataset: OneOrMore[str] = ()
    """Names of datasets; empty: all."""
    ipc: OneOrMore[int] = ()
    """Images per class; empty: all."""
    options: dict[str, Any]
    """Values by option name."""
    source: str = ""
    """Source of the values."""

    def applies(self, stage: str, **axes: tuple[object, ...]) -> bool:
        """Return whether each axis that this row restricts has one of the given values."""
        return self.stage == stage and all(
            not (names := getattr(self, axis)) or set(names) & set(values) for axis, values in axes.items()
        )


FORMER = {
    **{"fair": "robustness", "searches": "search", "continual": "continual"},
    **{"measures": "run-metrics", "starts": "late-start"},
}
"""Former sections of a campaign, and the kind of table that their entries are now."""

MEANINGS = {
    "tables": {"all": "all tables", OVERVIEW: "the progress of all tables", ACCOUNTING: "the cost of the jobs so far"},
    "figures": {"all": "all figures", ACCOUNTING: "the cost of the jobs so far"},
}
"""Names of tables and figures that commands and paths use for something else."""


class Campaign(Options):
    """One YAML file: datasets, networks, experts and methods by name, and tables and figures of their results."""

    datasets: dict[str, DatasetOptions] = {}
    """Datasets by name, added to the built-in ones; an entry replaces a built-in one of its name."""
    networks: dict[str, dict[str, Any]] = {}
    """Each names a registered network under `network` and fixes its options."""
    experts: dict[str, ExpertsOptions] = {}
    """Recipes by name; an entry changes what it names of a built-in recipe (`satm.config.BUILTIN_EXPERTS`)."""
    methods: dict[str, dict[str, Any]] = {}
    """Each names a registered method under `method` and fixes its options; a registered name needs no entry."""
    settings: tuple[Setting, ...] = ()
    """Options for some of the jobs, after the presets."""
    tables: dict[str, AnyTable] = {}
    """Tables by name, each of the kind that it names; without a kind: accuracies."""
    figures: dict[str, AnyFigure] = {}
    """Figures by name. In addition, every protocol of continual learning has a figure of its name, unless an entry here
    shows it; the synthetic sets of the tables have pictures named `synthetic-DATASET-ipc-N`; and `accounting` shows the
    cost of the jobs."""

    def tables_with(self, options: type[P]) -> dict[str, P]:
        """Return the tables whose options are also options of a stage, such as `SearchOptions`."""
        return {name: table for name, table in self.tables.items() if isinstance(table, options)}

    @model_validator(mode="wrap")
    @classmethod
    def _sections_of_today(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        for section, kind in FORMER.items():
            if isinstance(values, Mapping) and section in values:
                remedy = f"move its entries to tables, each with kind: {kind}"
                raise ValueError(f"the section {section!r} has become a kind of table; {remedy}")
        return validate(values)

    @model_validator(mode="after")
    def _figures_of_its_tables(self) -> "Campaign":
        for name, figure in self.figures.items():
            try:
                figure.tables_shown(self.tables)
            except ValueError as error:
                raise ValueError(f"figure {name}: {error}") from error
        for name in (*self.figures, *self.tables_with(StepsOptions)):
            if name.startswith("synthetic"):
                raise ValueError(f"the figure of {name!r} could be taken for a picture of synthetic images; rename it")
        return self

    @field_validator("datasets", "networks", "experts", "methods", "tables", "figures")
    @classmethod
    def _names(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for name in value:
            check_name(name)
            if info.field_name == "tables" and (shorter := name.removesuffix(PAIRED)) != name and shorter in value:
                raise ValueError(f"{name!r} is the file of paired differences beside the table {shorter!r}; rename it")
            if meaning := MEANINGS.get(str(info.field_name), {}).get(name):
                raise ValueError(f"{name!r} means {meaning}; rename it")
        return value

    @field_validator("networks", "methods")
    @classmethod
    def _registered(cls, value: dict[str, dict[str, Any]], info: ValidationInfo) -> dict[str, dict[str, Any]]:
        kind = str(info.field_name).removesuffix("s")
        for name, entry in value.items():
            if not isinstance(registered := entry.get(kind, name), str):
                raise ValueError(f"{name}: {kind} must be the name of a registered {kind}, got {short(registered)}")
        return value

"""What one YAML file holds."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from satm.config.base import Options, check_name
from satm.config.cells import (
    ContinualOptions,
    FairOptions,
    MeasuresOptions,
    SearchOptions,
    StartsOptions,
    TableOptions,
    Tabulated,
)
from satm.config.datasets import DatasetOptions
from satm.config.experts import ExpertsOptions
from satm.config.figures import ContinualFigure, Figure
from satm.config.layout import ACCOUNTING, OVERVIEW
from satm.errors import short


class Setting(Options):
    """One row of a preset file or of a campaign's `settings`: options for the jobs that it names."""

    stage: Literal["network", "experts", "distill", "evaluate", "analyse"] = "distill"
    """Whose options these are."""
    method: tuple[str, ...] = ()
    """Names of methods, or the registered methods below them; empty: all (stages distill, evaluate and analyse)."""
    experts: tuple[str, ...] = ()
    """Names of experts; empty: all (stage experts)."""
    network: tuple[str, ...] = ()
    """Names of networks, or the registered networks below them; empty: all (stage network). In stage evaluate names of
    the networks that are tested."""
    dataset: tuple[str, ...] = ()
    """Names of datasets; empty: all."""
    ipc: tuple[int, ...] = ()
    """Images per class; empty: all."""
    options: dict[str, Any]
    """Values by option name."""
    source: str = ""
    """Where the values come from."""

    @field_validator("method", "experts", "network", "dataset", "ipc", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return value if isinstance(value, list | tuple) else (value,)

    def applies(self, stage: str, **axes: tuple[object, ...]) -> bool:
        """Say whether each axis that this row restricts has one of the given values."""
        return self.stage == stage and all(
            not (wanted := getattr(self, axis)) or set(wanted) & set(values) for axis, values in axes.items()
        )


NAMED = (
    *("datasets", "networks", "experts", "methods"),
    *("tables", "fair", "searches", "continual", "measures", "starts", "figures"),
)
"""Sections of a campaign whose entries have names."""


class Campaign(Options):
    """One YAML file: the datasets, networks, experts and methods by name, and the tables made of them."""

    datasets: dict[str, DatasetOptions] = {}
    """Added to the built-in ones; the same name replaces."""
    networks: dict[str, dict[str, Any]] = {}
    """Each names a registered network under `network` and fixes its options."""
    experts: dict[str, ExpertsOptions] = {}
    """Recipes by name; an entry changes what it names of a built-in recipe (`satm.config.BUILTIN_EXPERTS`)."""
    methods: dict[str, dict[str, Any]] = {}
    """Each names a registered method under `method` and fixes its options; a registered name needs no entry."""
    settings: tuple[Setting, ...] = ()
    """Options for some of the jobs, after the presets."""
    tables: dict[str, TableOptions] = {}
    """Results tables by name."""
    fair: dict[str, FairOptions] = {}
    """Tables of what images are worth by themselves, by name."""
    searches: dict[str, SearchOptions] = {}
    """Architecture searches by name, a table of each."""
    continual: dict[str, ContinualOptions] = {}
    """Continual learning by the name of the protocol, a table and a figure of each."""
    measures: dict[str, MeasuresOptions] = {}
    """Tables of numbers about distillations, such as memory and time, by name."""
    starts: dict[str, StartsOptions] = {}
    """Tables of accuracies by the epoch at which networks begin on the experts' path, by name."""
    figures: dict[str, Figure] = {}
    """Figures by name. Beside them every protocol has one of its name, unless there is another one of it here, the
    synthetic sets of the tables have pictures named `synthetic-DATASET-ipc-N`, and `accounting` says what jobs took."""

    @property
    def all_tables(self) -> dict[str, Tabulated]:
        """Everything that becomes `results/NAME.csv`, by name."""
        sections = (self.tables, self.fair, self.searches, self.continual, self.measures, self.starts)
        return {name: entry for section in sections for name, entry in section.items()}

    @model_validator(mode="after")
    def _one_file_each(self) -> "Campaign":
        sections: dict[str, Mapping[str, Tabulated]] = {
            "tables": self.tables,
            "fair": self.fair,
            "searches": self.searches,
            "continual": self.continual,
            "measures": self.measures,
            "starts": self.starts,
        }
        seen: dict[str, str] = {}
        for section, entries in sections.items():
            for name in entries:
                if name in seen:
                    raise ValueError(f"{seen[name]} and {section} both name {name!r}; rename one of them")
                seen[name] = section
        return self

    @model_validator(mode="after")
    def _protocols_of_figures(self) -> "Campaign":
        for name, figure in self.figures.items():
            for protocol in figure.protocols if isinstance(figure, ContinualFigure) else ():
                if protocol not in self.continual:
                    known = ", ".join(self.continual) or "none"
                    raise ValueError(f"figure {name} needs the protocol {protocol!r} under continual; known: {known}")
        return self

    @field_validator("continual", "figures")
    @classmethod
    def _other_figures(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name.startswith("synthetic"):
                raise ValueError(f"the figure of {name!r} could be taken for a picture of synthetic images; rename it")
            for taken, meaning in (("all", "all figures"), (ACCOUNTING, "what the jobs have taken")):
                if name == taken:
                    raise ValueError(f"{name!r} means {meaning}; rename it")
        return value

    @field_validator("tables", "fair", "searches", "continual", "measures", "starts")
    @classmethod
    def _not_all(cls, value: dict[str, Any]) -> dict[str, Any]:
        meanings = {
            "all": "all tables",
            OVERVIEW: "what there is of all tables",
            ACCOUNTING: "what the jobs have taken",
        }
        for name, meaning in meanings.items():
            if name in value:
                raise ValueError(f"{name!r} means {meaning}; rename it")
        return value

    @field_validator(*NAMED)
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            check_name(name)
        return value

    @field_validator("networks", "methods")
    @classmethod
    def _registered(cls, value: dict[str, dict[str, Any]], info: ValidationInfo) -> dict[str, dict[str, Any]]:
        kind = str(info.field_name).removesuffix("s")
        for name, entry in value.items():
            if not isinstance(registered := entry.get(kind, name), str):
                raise ValueError(f"{name}: {kind} must be the name of a registered {kind}, got {short(registered)}")
        return value

"""How a table or figure differs from the one of the same name in the papers' campaign, in words.

A campaign for a smaller machine names its tables and figures as `config/paper.yaml` does; then each says below itself
by how much it is smaller.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from satm.config import (
    AccountingFigure,
    Cell,
    CellsFigure,
    ContinualFigure,
    CorrelationFigure,
    Figure,
    Resolver,
    SearchOptions,
    SweepFigure,
    Tabulated,
    load_campaign,
)
from satm.methods import resolve as resolve_method
from satm.networks import resolve as resolve_network
from satm.version import shipped

METHOD = {
    "iterations": "iterations",
    "inner_steps": "inner steps",
    "expert_epochs": "epochs matched",
    "window": "window",
    "real_batch": "real images a step",
    "concurrent": "concurrent segments",
}
"""Options of a method that say how large a run is, in words."""

EXPERTS = {"count": "experts", "epochs": "epochs of an expert"}

TESTED = {"repeats": "networks tested", "epochs": "epochs of a test"}

NETWORK = {"width": "width", "depth": "depth", "width_factor": "width factor"}

OWN = {
    "steps": "steps",
    "orders": "class orders",
    "sample": "candidates",
    "width_factor": "times the width of candidates",
    "epochs": "epochs on the path",
    "classes": "",
    "per_class": "",
}
"""Options of a table or figure itself that say how large it is, in words."""

Entry = Tabulated | Figure


def paper_path() -> Path:
    """Return the file of the papers' campaign: inside an installed package, `config/paper.yaml` in a checkout."""
    return shipped("paper.yaml", "config/paper.yaml")


@cache
def _paper() -> Resolver:
    return load_campaign(paper_path())


def reductions(resolver: Resolver, entry: Entry, kind: str, name: str) -> list[str]:
    """Return one sentence on how an entry differs in size from the papers' one of the same name, if there is one.

    Args:
        resolver: the campaign.
        entry: its table or figure.
        kind: `table` or `figure`.
        name: of it.
    """
    paper = _paper()
    known: Mapping[str, Entry] = paper.campaign.all_tables if kind == "table" else paper.figures
    if resolver.layout.root == paper.layout.root or name not in known:
        return []
    ours, theirs = _described(resolver, entry), _described(paper, known[name])
    if not ours:
        return []
    found = []
    for what in dict.fromkeys([*ours, *theirs]):
        here, there = ours.get(what, ""), theirs.get(what, "")
        if here != there and here and there:
            found.append(f"{what} {here} ({there})")
    if not found:
        return ["As large as in config/paper.yaml."]
    return [f"Reduced; in parentheses the values of config/paper.yaml: {'; '.join(found)}."]


def _described(resolver: Resolver, entry: Entry) -> dict[str, str]:
    """Return what an entry is made of, in words by subject."""
    found: dict[str, list[str]] = {}
    if isinstance(entry, ContinualFigure):
        parts = [_described(resolver, resolver.campaign.continual[name]) for name in entry.protocols]
        for part in parts:
            for what, text in part.items():
                found.setdefault(what, []).append(text)
        return {what: _joined(texts) for what, texts in found.items()}
    if isinstance(entry, AccountingFigure):  # of all that the campaign is made of
        return {}
    cells = _cells(entry)

    def add(what: str, value: object) -> None:
        if value is not None:
            found.setdefault(what, []).append(f"{value:g}" if isinstance(value, float) else str(value))

    for cell in cells:
        add("dataset", cell.dataset)
        add("images per class", cell.ipc)
        _add_method(resolver, cell, add)
    for dataset, network in _networks(entry, cells):
        _, options = resolve_network(resolver.network(network, dataset))
        for option, words in NETWORK.items():
            add(f"{network} {words}", getattr(options, option, None))
    for option, words in OWN.items():
        if words:
            add(words, getattr(entry, option, None))
    if isinstance(entry, SearchOptions):
        for which in ("proxy", "real"):
            add(f"epochs on {which} images", getattr(entry, which).epochs)
            add(f"networks on {which} images", getattr(entry, which).repeats)
    return {what: _joined(texts) for what, texts in found.items()}


def _add_method(resolver: Resolver, cell: Cell, add: Any) -> None:
    """Add how large the runs of one cell are."""
    kind, options = resolve_method(resolver.method(cell))
    for option, words in METHOD.items():
        add(words, getattr(options, option, None))
    if kind.needs_experts:
        recipe = resolver.experts(getattr(options, "experts"), cell.dataset)  # noqa: B009 - the option of such methods
        for option, words in EXPERTS.items():
            add(words, getattr(recipe, option))
    schedule = resolver.evaluation(cell)
    for option, words in TESTED.items():
        add(words, getattr(schedule, option))


def _cells(entry: Tabulated | CellsFigure | SweepFigure) -> list[Cell]:
    runs = entry.runs() if isinstance(entry, CorrelationFigure) else entry.cells()
    return list(dict.fromkeys(run._replace(seed=0) for run in runs))


def _networks(entry: Entry, cells: Iterable[Cell]) -> list[tuple[str, str]]:
    """Return (dataset, network) of what is tested, or of the ConvNet where nothing is."""
    datasets = dict.fromkeys(dataset for dataset, *_ in cells)
    names: Iterable[str] = getattr(entry, "networks", ("convnet",))
    if isinstance(entry, SweepFigure):
        names = dict.fromkeys(network for _, network in entry.points())
    return [(dataset, name) for dataset in datasets for name in names]


def _joined(texts: Iterable[str]) -> str:
    """Return different texts in their order, numbers as a range."""
    different = list(dict.fromkeys(texts))
    if len(different) > 2 and all(text.replace(".", "", 1).isdigit() for text in different):
        numbers = sorted(different, key=float)
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(different)

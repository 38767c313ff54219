"""How a table or figure differs from the one of the same name in the papers' campaign, in words.

A campaign for a smaller machine names its tables and figures as `config/paper.yaml` does; then each says below itself
by how much it is smaller.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from satm.config import Cell, Exhibit, FigureOptions, Resolver, load_campaign
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

Add = Callable[[str, object], None]
"""Notes a value of something, given in words."""


def paper_path() -> Path:
    """Return the file of the papers' campaign: inside an installed package, `config/paper.yaml` in a checkout."""
    return shipped("paper.yaml", "config/paper.yaml")


@cache
def _paper() -> Resolver:
    return load_campaign(paper_path())


def reductions(resolver: Resolver, section: Literal["tables", "figures"], name: str) -> list[str]:
    """Return one sentence on how a table or figure differs in size from the papers' one of the same name, if any.

    Args:
        resolver: the campaign.
        section: of the campaign.
        name: of the table or figure.
    """
    paper = _paper()
    known = _entries(paper, section)
    if resolver.layout.root == paper.layout.root or name not in known:
        return []
    ours, theirs = _described(resolver, _entries(resolver, section)[name]), _described(paper, known[name])
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


def _entries(resolver: Resolver, section: Literal["tables", "figures"]) -> Mapping[str, Exhibit]:
    return resolver.campaign.tables if section == "tables" else resolver.figures


def _described(resolver: Resolver, entry: Exhibit) -> dict[str, str]:
    """Return what an entry is made of, in words by subject."""
    found: dict[str, list[str]] = {}

    def add(what: str, value: object) -> None:
        if value is not None:
            found.setdefault(what, []).append(f"{value:g}" if isinstance(value, float) else str(value))

    if isinstance(entry, FigureOptions):
        for table in entry.tables_shown(resolver.campaign.tables).values():
            for what, text in _described(resolver, table).items():
                add(what, text)
    cells = list(dict.fromkeys(run._replace(seed=0) for run in entry.runs()))
    for cell in cells:
        add("dataset", cell.dataset)
        add("images per class", cell.ipc)
        _add_method(resolver, cell, add)
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        for network in entry.tested_networks() or ("convnet",):
            _add_network(resolver, network, dataset, add)
    for what, value in entry.size().items():
        add(what, value)
    return {what: _joined(texts) for what, texts in found.items()}


def _add_method(resolver: Resolver, cell: Cell, add: Add) -> None:
    """Note how large the runs of one cell are."""
    from satm.methods import resolve

    kind, options = resolve(resolver.method(cell))
    for option, words in METHOD.items():
        add(words, getattr(options, option, None))
    if kind.needs_experts:
        recipe = resolver.experts(getattr(options, "experts"), cell.dataset)  # noqa: B009 - the option of such methods
        for option, words in EXPERTS.items():
            add(words, getattr(recipe, option))
    schedule = resolver.evaluation(cell)
    for option, words in TESTED.items():
        add(words, getattr(schedule, option))


def _add_network(resolver: Resolver, network: str, dataset: str, add: Add) -> None:
    """Note how large a network is that is tested, or the ConvNet where none is."""
    from satm.networks import resolve

    _, options = resolve(resolver.network(network, dataset))
    for option, words in NETWORK.items():
        add(f"{network} {words}", getattr(options, option, None))


def _joined(texts: Iterable[str]) -> str:
    """Return different texts in their order, numbers as a range."""
    different = list(dict.fromkeys(texts))
    if len(different) > 2 and all(text.replace(".", "", 1).isdigit() for text in different):
        numbers = sorted(different, key=float)
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(different)

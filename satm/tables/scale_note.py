"""Notes on the size of a table or figure, compared with the one of the same name in the papers' campaign.

A campaign for a smaller machine names its tables and figures as `config/paper.yaml` does; a note below each of them
then says by how much it is smaller.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal

from satm.config import Exhibit, FigureOptions, Resolver, load_campaign
from satm.version import shipped

METHOD = {
    **{"iterations": "iterations", "inner_steps": "inner steps", "expert_epochs": "epochs matched", "window": "window"},
    **{"real_batch": "real images a step", "concurrent": "concurrent segments"},
}
EXPERTS = {"count": "experts", "epochs": "epochs of an expert"}
TESTED = {"repeats": "networks tested", "epochs": "epochs of a test"}
NETWORK = {"width": "width", "depth": "depth", "width_factor": "width factor"}
"""Descriptions of the options of a method, its experts, its evaluation and a network that determine a run's size."""


def paper_path() -> Path:
    """Return the file of the papers' campaign: in the installed package, or `config/paper.yaml` of a checkout."""
    return shipped("paper.yaml", "config/paper.yaml")


@cache
def _paper() -> Resolver:
    return load_campaign(paper_path())


def reductions(resolver: Resolver, section: Literal["tables", "figures"], name: str) -> list[str]:
    """Return one sentence on the size of a table or figure, compared with the papers' campaign.

    Empty if the papers' campaign has none of this name.
    """
    paper = _paper()
    known = _entries(paper, section)
    if resolver.layout.root == paper.layout.root or name not in known:
        return []
    ours, theirs = _described(resolver, _entries(resolver, section)[name]), _described(paper, known[name])
    both = {what: (ours[what], theirs[what]) for what in ours if what in theirs}
    differences = [f"{what} {here} ({there})" for what, (here, there) in both.items() if here != there]
    if differences:
        return [f"Reduced; in parentheses the values of config/paper.yaml: {'; '.join(differences)}."]
    return ["As large as in config/paper.yaml."] if ours else []


def _entries(resolver: Resolver, section: Literal["tables", "figures"]) -> Mapping[str, Exhibit]:
    return resolver.campaign.tables if section == "tables" else resolver.figures


def _described(resolver: Resolver, entry: Exhibit) -> dict[str, str]:
    """Describe the size of an entry by subject; different values in their order, numbers as a range."""
    values: dict[str, list[str]] = {}
    for what, value in _sizes(resolver, entry):
        if value is not None:
            values.setdefault(what, []).append(f"{value:g}" if isinstance(value, float) else str(value))
    return {what: _joined(texts) for what, texts in values.items()}


def _sizes(resolver: Resolver, entry: Exhibit) -> Iterator[tuple[str, object]]:
    """Yield the options that determine the size of an entry: a description and a value, None if it has none."""
    from satm.methods import resolve as resolve_method
    from satm.networks import resolve as resolve_network

    if isinstance(entry, FigureOptions):
        for table in entry.tables_shown(resolver.campaign.tables).values():
            yield from _described(resolver, table).items()
    cells = list(dict.fromkeys(run._replace(seed=0) for run in entry.runs()))
    for cell in cells:
        variant = resolver.datasets.get(cell.dataset)
        yield from (("dataset", (variant and variant.variant_of) or cell.dataset), ("images per class", cell.ipc))
        kind, options = resolve_method(resolver.method(cell))
        yield from _worded(METHOD, options)
        if kind.needs_experts:
            yield from _worded(EXPERTS, resolver.experts(getattr(options, "experts", ""), cell.dataset))
        yield from _worded(TESTED, resolver.evaluation(cell))
    for dataset, network in product(
        dict.fromkeys(cell.dataset for cell in cells), entry.tested_networks() or ("convnet",)
    ):
        _, network_options = resolve_network(resolver.network(network, dataset))
        yield from _worded({option: f"{network} {words}" for option, words in NETWORK.items()}, network_options)
    yield from entry.size().items()


def _worded(words: Mapping[str, str], options: object) -> Iterator[tuple[str, object]]:
    """Yield the descriptions of some options with their values; None for an option that does not exist."""
    return ((word, getattr(options, option, None)) for option, word in words.items())


def _joined(texts: Iterable[str]) -> str:
    """Return different texts in their order, numbers as a range."""
    different = list(dict.fromkeys(texts))
    if len(different) > 2 and all(text.replace(".", "", 1).isdigit() for text in different):
        numbers = sorted(different, key=float)
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(different)

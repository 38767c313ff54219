"""Check of a whole campaign before anything runs: every name and every option. Nothing here imports torch."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from satm.config import Cell, EvaluateOptions, Exhibit, Options, Resolver, Setting, canonical, parse
from satm.config.analysis import AnalyseOptions
from satm.config.experts import BUILTIN_EXPERTS, ExpertsOptions
from satm.errors import UsageError, pick
from satm.methods import resolve as resolve_method
from satm.networks import NETWORKS
from satm.networks import resolve as resolve_network


def method_options(values: Mapping[str, Any]) -> Options:
    """Return the checked options of `{"method": name, option: value…}`.

    Raises:
        UsageError: an unknown method or option, or an unusable value.
    """
    return _options("method", canonical(values))


def network_options(values: Mapping[str, Any]) -> Options:
    """Return the checked options of `{"network": registered name, option: value…}`; raises as `method_options`."""
    return _options("network", canonical(values))


def experts_of(values: Mapping[str, Any]) -> str | None:
    """Return the experts of a method with these values; None: it uses none. Raises as `method_options`."""
    name: str | None = getattr(method_options(values), "experts", None)
    return name


@functools.cache
def _options(kind: str, text: str) -> Options:
    """Return the checked options of a method or network; many cells of a campaign share them."""
    return (resolve_method if kind == "method" else resolve_network)(json.loads(text))[1]


def check(resolver: Resolver) -> None:
    """Check every name and option of a campaign.

    Raises:
        UsageError: an unknown name or option, or an unusable value; one line, the first problem.
    """
    where, campaign = str(resolver.path), resolver.campaign
    for kind, entries in (("network", campaign.networks), ("method", campaign.methods)):
        for name, entry in entries.items():
            _check(kind, {kind: name, **entry}, f"{where}: {kind}s.{name}")
    for index, setting in enumerate(campaign.settings):
        _check_setting(resolver, setting, f"{where}: settings.{index}")
    for kind, exhibits in (("table", campaign.tables), ("figure", campaign.figures)):
        for name, exhibit in exhibits.items():
            _check_exhibit(resolver, exhibit, f"{where}: {kind} {name}")


def _check(kind: str, values: Mapping[str, Any], where: str) -> None:
    """Check `{kind: registered name, option: value…}`."""
    try:
        _options(kind, canonical(values))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _check_setting(resolver: Resolver, setting: Setting, where: str) -> None:
    models: dict[str, type[Options]] = {
        "experts": ExpertsOptions,
        "evaluate": EvaluateOptions,
        "analyse": AnalyseOptions,
    }
    known_experts = {**BUILTIN_EXPERTS, **resolver.campaign.experts}
    for name in setting.dataset:
        pick(resolver.whole(name), resolver.datasets, "dataset", where)
    for name in setting.experts:
        pick(name, known_experts, "experts", where)
    if setting.stage in models:
        for name in setting.network:
            pick(name, {**NETWORKS, **resolver.campaign.networks}, "network", where)
        options = parse(models[setting.stage], setting.options, where)
        if isinstance(options, AnalyseOptions) and options.experts is not None:
            pick(options.experts, known_experts, "experts", where)
    else:
        kind = "method" if setting.stage == "distill" else "network"
        entries = resolver.campaign.methods if kind == "method" else resolver.campaign.networks
        for name in getattr(setting, kind):
            base = entries.get(name, {}).get(kind, name)
            _check(kind, {**setting.options, kind: base}, where)


def _check_exhibit(resolver: Resolver, entry: Exhibit, where: str) -> None:
    """Check every synthetic set and network that a table or figure needs."""
    cells = list(dict.fromkeys(run._replace(seed=0) for run in entry.runs()))
    for dataset in dict.fromkeys([*getattr(entry, "datasets", ()), *(cell.dataset for cell in cells)]):
        pick(dataset, resolver.datasets, "dataset", where)
        for network in entry.tested_networks():
            _check("network", resolver.network(network, dataset), where)
    try:
        entry.check(resolver)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    for cell in cells:
        _check_cell(resolver, cell, f"{where}: {cell.method} on {cell.dataset} at ipc {cell.ipc}")


def _check_cell(resolver: Resolver, cell: Cell, where: str) -> None:
    values = resolver.method(cell)
    _check("method", values, where)
    resolver.evaluation(cell)
    if (experts := experts_of(values)) is not None:
        recipe = resolver.experts(experts, cell.dataset)
        _check("network", resolver.network(recipe.network, cell.dataset), f"{where}: experts {experts}")

"""Check of a whole campaign before anything runs: every name, every option, and whether its jobs fit each other.

Nothing here imports torch.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from satm.config import (
    Campaign,
    Cell,
    EvaluateOptions,
    Exhibit,
    Options,
    Resolver,
    Setting,
    existing,
    expand,
    load_campaign,
    load_presets,
    load_yaml,
    lost_options,
    parse,
    root_of,
    stated_contents,
)
from satm.config.analysis import AnalyseOptions
from satm.config.experts import BUILTIN_EXPERTS, ExpertsOptions
from satm.config.resolver import at_epoch
from satm.errors import UsageError, pick, refuse, some
from satm.methods import METHODS
from satm.methods.external import FilesOptions
from satm.networks import NETWORKS
from satm.workflow.commands import command_of
from satm.workflow.fit import Fit
from satm.workflow.graph import Single
from satm.workflow.options import experts_of, method_options, network_options
from satm.workflow.provenance import Provenance

MOST = 5
"""Largest number of methods in a message."""


def load_checked(path: Path) -> Resolver:
    """Return the campaign in a YAML file, checked; of a file that is refused, the usable entries are checked too.

    Raises:
        UsageError: as `load_campaign` and `check`, with the problems of both; or files of a dataset have changed since
            its images were stored.
    """
    root = root_of(path)
    try:
        resolver = load_campaign(path)
    except UsageError as error:
        refused = [problem.removeprefix(f"{path}: ") for problem in error.problems]
        rest = _usable(load_yaml(path))
        others = [] if rest is None else _names(Resolver(rest, load_presets(), root, path))
        refuse([*refused, *others], str(path))
        raise
    check(resolver)
    shown = [*resolver.campaign.tables.values(), *resolver.campaign.figures.values()]
    used = list(dict.fromkeys(resolver.whole(cell.dataset) for exhibit in shown for cell in exhibit.runs()))
    refuse(_changed(resolver, used), str(path))
    for name in used:
        if doubt := lost_options(resolver.dataset(name)):
            print(f"satm: warning: {path}: datasets.{name} {doubt}", file=sys.stderr)
    return resolver


def _changed(resolver: Resolver, datasets: Collection[str]) -> Iterator[str]:
    """Yield the datasets whose files have changed since their images were stored, because repeating all costs much.

    What their option `allow` accepts is warned of.
    """
    provenance = Provenance(resolver)
    for name in datasets:
        if difference := provenance.refused_files(name):
            path, again = resolver.layout.images(name), command_of(resolver, "images", {"dataset": name})
            yield f"datasets.{name}: the images {path} are out of date: {difference}; to make them again: {again}"
        elif difference := provenance.changed_files(name):
            print(f"satm: warning: {resolver.path}: datasets.{name}: {difference}", file=sys.stderr)


STAND_INS: Mapping[str, Mapping[str, Any]] = {
    "datasets": {"source": "folder"},
    "experts": {},
    "settings": {"options": {}},
}
"""Entries, by section, in place of unusable ones to which others refer, or that others follow."""


def _usable(content: dict[str, Any]) -> Campaign | None:
    """Return the campaign of the entries that are usable alone; None if these do not fit together either."""
    kept = dict(content)
    for section in Campaign.model_fields:
        given = kept.get(section)
        if not isinstance(given, dict | list):
            continue
        rows, entries = isinstance(given, list), dict(given.items() if isinstance(given, dict) else enumerate(given))
        shown = {"tables": kept.get("tables", {})} if section == "figures" else {}
        for name, entry in list(entries.items()):
            if _campaign({**shown, section: [entry] if rows else {name: entry}}) is not None:
                continue
            if section in STAND_INS:
                entries[name] = STAND_INS[section]
            elif section in ("tables", "figures"):
                del entries[name]
            if section == "datasets":  # on whose classes tables and figures depend
                kept.update(tables={}, figures={})
        kept[section] = list(entries.values()) if rows else entries
    return _campaign(kept)


def _campaign(content: Mapping[str, Any]) -> Campaign | None:
    try:
        return Campaign.model_validate(content)
    except ValueError:
        return None


def check(resolver: Resolver) -> None:
    """Check every name and option of a campaign, and whether its jobs fit each other and the built-in datasets.

    Raises:
        UsageError: one line with all problems; combinations of options are checked if every single one is usable.
    """
    refuse(_names(resolver), str(resolver.path))
    fit = Fit(resolver, lambda dataset: stated_contents(resolver.dataset(dataset)))
    refuse(fit.problems(Single(resolver).jobs()), str(resolver.path))


def _names(resolver: Resolver) -> Iterator[str]:
    """Yield what is wrong with the names and options of a campaign, once for each place where it is written."""
    campaign = resolver.campaign
    for name, options in campaign.datasets.items():
        prepared = Path(resolver.layout.images(name)).is_file()
        if options.path and "$" not in options.path and not prepared:  # variables may be set only where jobs run
            yield from _attempt(f"datasets.{name}", expand, options.path)
        if options.variant_of:
            yield from _attempt(
                "", pick, options.variant_of, resolver.datasets, "dataset", f"datasets.{name}.variant_of"
            )
    wrong: dict[str, set[str]] = {}
    for kind, checked in (("network", network_options), ("method", method_options)):
        entries: Mapping[str, Mapping[str, Any]] = getattr(campaign, f"{kind}s")
        problems = {
            name: [*_attempt(f"{kind}s.{name}", checked, {kind: name, **entry})] for name, entry in entries.items()
        }
        wrong[kind] = {name for name, texts in problems.items() if texts}
        yield from (text for texts in problems.values() for text in texts)
    rows = [
        [*dict.fromkeys(_setting(resolver, setting, f"settings.{index}"))]
        for index, setting in enumerate(campaign.settings)
    ]
    yield from (text for texts in rows for text in texts)
    usable = resolver.without_settings({index for index, texts in enumerate(rows) if texts})
    for kind, exhibits in (("table", campaign.tables), ("figure", campaign.figures)):
        for name, exhibit in exhibits.items():
            yield from _exhibit(usable, exhibit, f"{kind} {name}", wrong)


def _attempt(where: str, action: Callable[..., object], *arguments: object) -> Iterator[str]:
    """Yield the problems that a function raises, each after `where`."""
    try:
        action(*arguments)
    except UsageError as error:
        yield from (f"{where}: {problem}" if where else problem for problem in error.problems)


def _setting(resolver: Resolver, setting: Setting, where: str) -> Iterator[str]:
    """Yield what is wrong with the names and options of a row of the settings; `where` is its place."""
    models: dict[str, type[Options]] = {
        "experts": ExpertsOptions,
        "evaluate": EvaluateOptions,
        "analyse": AnalyseOptions,
    }
    known_experts = {**BUILTIN_EXPERTS, **resolver.campaign.experts}
    for name in setting.dataset:
        yield from _attempt("", pick, resolver.whole(name), resolver.datasets, "dataset", where)
    for name in setting.experts:
        yield from _attempt("", pick, name, known_experts, "experts", where)
    if setting.stage in models:
        for name in setting.network:
            yield from _attempt("", pick, name, {**NETWORKS, **resolver.campaign.networks}, "network", where)
        yield from _attempt("", parse, models[setting.stage], setting.options, where)
        experts = setting.options.get("experts") if setting.stage == "analyse" else None
        if isinstance(experts, str):
            yield from _attempt("", pick, experts, known_experts, "experts", where)
    else:
        kind = "method" if setting.stage == "distill" else "network"
        entries = resolver.campaign.methods if kind == "method" else resolver.campaign.networks
        known: Mapping[str, object] = {**(METHODS if kind == "method" else NETWORKS), **entries}
        checked = method_options if kind == "method" else network_options
        for name in getattr(setting, kind):
            if unknown := [*_attempt(where, pick, name, known, kind)]:
                yield from unknown
            elif (base := entries.get(name, {}).get(kind, name)) in (METHODS if kind == "method" else NETWORKS):
                yield from _attempt(where, checked, {**setting.options, kind: base})


def _exhibit(resolver: Resolver, entry: Exhibit, where: str, wrong: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Yield what is wrong with the synthetic sets and networks that a table or figure needs, each once.

    `wrong` has the names of networks and methods whose entries are wrong.
    """
    cells = list(dict.fromkeys(run._replace(seed=0) for run in entry.runs()))
    problems: dict[str, None] = {}
    for dataset in dict.fromkeys([*getattr(entry, "datasets", ()), *(cell.dataset for cell in cells)]):
        problems |= dict.fromkeys(_attempt("", pick, dataset, resolver.datasets, "dataset", where))
        for network in entry.tested_networks() if dataset in resolver.datasets else ():
            if network not in wrong["network"]:
                problems |= dict.fromkeys(_attempt(where, _network, resolver, network, dataset))
    places: dict[str, list[Cell]] = {}
    for cell in cells:
        known = cell.dataset in resolver.datasets or resolver.step(cell.dataset)
        if known and at_epoch(cell.method, resolver.campaign.methods)[0] not in wrong["method"]:
            for problem in _attempt("", _check_cell, resolver, cell):
                places.setdefault(problem, []).append(cell)
    yield from problems
    for problem, at in places.items():
        methods = some(list(dict.fromkeys(cell.method for cell in at)), most=MOST)
        cause = _cause(resolver, at[0], problem)
        yield f"{where}: {methods} on {at[0].dataset} at ipc {at[0].ipc}: {problem}{cause}"
    if not problems and not places:
        yield from _attempt(where, entry.check, resolver)


def _cause(resolver: Resolver, cell: Cell, problem: str) -> str:
    """Return the row of the campaign's settings to which a cell owes a problem, if there is one, for a message."""
    for index, setting in enumerate(resolver.campaign.settings):
        if problem not in _attempt("", _check_cell, resolver.without_settings({index}), cell):
            every = "" if setting.method else ", which names no method and so applies to all"
            return f" (set by settings.{index}{every})"
    return ""


def _network(resolver: Resolver, name: str, dataset: str) -> None:
    pick(name, {**NETWORKS, **resolver.campaign.networks}, "network")
    network_options(resolver.network(name, dataset))


def _imported(resolver: Resolver, cell: Cell, options: Options) -> None:
    """Check the paths of a set made elsewhere, unless it was imported for one of its seeds."""
    made = Path(resolver.layout.distilled(cell))
    if isinstance(options, FilesOptions) and not any(made.parents[1].glob(f"*/{made.name}")):
        paths = [path for path in (options.images, options.labels_from, options.step_size_from) if path]
        refuse(problem for path in paths for problem in _attempt("", lambda path=path: existing(expand(path))))


def _check_cell(resolver: Resolver, cell: Cell) -> None:
    pick(at_epoch(cell.method, resolver.campaign.methods)[0], {**METHODS, **resolver.campaign.methods}, "method")
    resolver.evaluation(cell)
    _imported(resolver, cell, method_options(resolver.method(cell)))
    experts = experts_of(resolver.method(cell))
    while experts is not None:  # raters of a curriculum have none themselves
        recipe = resolver.experts(experts, cell.dataset)
        refuse(_attempt(f"experts {experts}", _network, resolver, recipe.network, cell.dataset))
        experts = resolver.difficulty(experts, cell.dataset, recipe)

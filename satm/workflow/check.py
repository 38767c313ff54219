"""Check of a whole campaign before anything runs: every name, every option, and whether its jobs fit each other.

Nothing here imports torch.
"""

from collections.abc import Callable, Iterator

from satm.config import Cell, EvaluateOptions, Exhibit, Options, Resolver, Setting, parse, stated_contents
from satm.config.analysis import AnalyseOptions
from satm.config.experts import BUILTIN_EXPERTS, ExpertsOptions
from satm.errors import UsageError, pick, refuse
from satm.networks import NETWORKS
from satm.workflow.fit import Fit
from satm.workflow.graph import Single
from satm.workflow.options import experts_of, method_options, network_options


def check(resolver: Resolver) -> None:
    """Check every name and option of a campaign, and whether its jobs fit each other and the built-in datasets.

    Raises:
        UsageError: one line with all problems; combinations of options are checked if every single one is usable.
    """
    refuse(_names(resolver), str(resolver.path))
    fit = Fit(resolver, lambda dataset: stated_contents(resolver.dataset(dataset)))
    refuse(fit.problems(Single(resolver).jobs()), str(resolver.path))


def _names(resolver: Resolver) -> Iterator[str]:
    """Yield what is wrong with the names and options of a campaign."""
    campaign = resolver.campaign
    for name, entry in campaign.networks.items():
        yield from _attempt(f"networks.{name}", network_options, {"network": name, **entry})
    for name, entry in campaign.methods.items():
        yield from _attempt(f"methods.{name}", method_options, {"method": name, **entry})
    for index, setting in enumerate(campaign.settings):
        yield from _attempt("", _check_setting, resolver, setting, f"settings.{index}")
    for kind, exhibits in (("table", campaign.tables), ("figure", campaign.figures)):
        for name, exhibit in exhibits.items():
            yield from _exhibit(resolver, exhibit, f"{kind} {name}")


def _attempt(where: str, action: Callable[..., object], *arguments: object) -> Iterator[str]:
    """Yield the problem that a function raises, if any, after `where`."""
    try:
        action(*arguments)
    except UsageError as error:
        yield f"{where}: {error}" if where else str(error)


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
            checked = method_options if kind == "method" else network_options
            refuse(_attempt(where, checked, {**setting.options, kind: base}))


def _exhibit(resolver: Resolver, entry: Exhibit, where: str) -> list[str]:
    """Return what is wrong with the synthetic sets and networks that a table or figure needs, each once."""
    cells = list(dict.fromkeys(run._replace(seed=0) for run in entry.runs()))
    problems: dict[tuple[str, str], str] = {}  # by method, if one is meant, and text
    for dataset in dict.fromkeys([*getattr(entry, "datasets", ()), *(cell.dataset for cell in cells)]):
        for problem in _attempt("", pick, dataset, resolver.datasets, "dataset", where):
            problems["", problem] = problem
        if dataset in resolver.datasets:
            for network in entry.tested_networks():
                for problem in _attempt(where, network_options, resolver.network(network, dataset)):
                    problems["", problem] = problem
    for cell in cells:
        if cell.dataset in resolver.datasets or resolver.step(cell.dataset):
            for problem in _attempt("", _check_cell, resolver, cell):
                place = f"{where}: {cell.method} on {cell.dataset} at ipc {cell.ipc}"
                problems.setdefault((cell.method, problem), f"{place}: {problem}")
    return [*problems.values()] or [*_attempt(where, entry.check, resolver)]


def _check_cell(resolver: Resolver, cell: Cell) -> None:
    resolver.evaluation(cell)
    experts = experts_of(resolver.method(cell))
    while experts is not None:  # raters of a curriculum have none themselves
        recipe = resolver.experts(experts, cell.dataset)
        refuse(_attempt(f"experts {experts}", network_options, resolver.network(recipe.network, cell.dataset)))
        experts = resolver.difficulty(experts, cell.dataset, recipe)

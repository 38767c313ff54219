"""What each synthetic set of a table or figure is made with: options that differ from their defaults, with sources.

Nothing here imports torch.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from satm.config import (
    BUILTIN_DATASETS,
    BUILTIN_EXPERTS,
    Cell,
    DatasetOptions,
    EvaluateOptions,
    Exhibit,
    ExpertsOptions,
    Options,
    Resolver,
    load_campaign,
)
from satm.config.resolver import at_epoch
from satm.errors import UsageError
from satm.methods import METHODS
from satm.networks import NETWORKS
from satm.workflow.asked import trained_network
from satm.workflow.options import experts_of, method_options, network_options

if TYPE_CHECKING:
    from rich.console import Console

OURS = re.compile(r"\b(ours|none published)\b")
"""In the source of a row of the settings: its values are not published."""


@dataclass(frozen=True)
class Part:
    """The options of one part of an experiment, such as the experts."""

    name: str
    options: Options
    default: Options
    sources: Mapping[str, str]
    """Sources of the options that a row or an entry gives, by name, whether or not they have their defaults."""
    otherwise: str = ""
    """Source of the other options that differ from their defaults."""

    @property
    def changed(self) -> dict[str, tuple[Any, Any, str]]:
        """Value, default and source of each option that differs from its default."""
        values, defaults = self.options.model_dump(mode="json"), self.default.model_dump(mode="json")
        return {
            name: (value, defaults[name], self.sources.get(name, self.otherwise))
            for name, value in values.items()
            if value != defaults[name]
        }

    @property
    def ours(self) -> list[str]:
        """The options whose source says that their values are not published."""
        return [name for name, source in self.sources.items() if OURS.search(source)]


@dataclass(frozen=True)
class Explained:
    """One synthetic set, and what it is made and tested with."""

    cell: Cell
    parts: Sequence[Part] = field(default_factory=list)

    @property
    def ours(self) -> list[str]:
        """The options, of all parts, whose source says that their values are not published."""
        return [option for part in self.parts for option in part.ours]

    @property
    def title(self) -> str:
        """Name of the set, and which of its options are not published."""
        some = ", ".join(dict.fromkeys(self.ours))
        name = f"{self.cell.method} on {self.cell.dataset}, {self.cell.ipc} per class"
        return f"{name}; not published: {some}" if some else name

    def show(self, console: "Console") -> None:
        """Print the options that differ from their defaults, by part, and their sources by number."""
        from rich.markup import escape
        from rich.padding import Padding
        from rich.table import Table

        table, numbers = Table("option", "value", "default", "source", box=None, pad_edge=False), dict[str, int]()
        for part in self.parts:
            for index, (option, (value, default, source)) in enumerate(part.changed.items()):
                if not index:
                    table.add_row(f"[bold]{part.name}[/]")
                number = numbers.setdefault(source, len(numbers) + 1) if source else ""
                table.add_row(f"  {option}", escape(_text(value)), escape(_text(default)), str(number))
        console.print(f"[bold]{self.title}[/]\n")
        console.print(table)
        for source, number in numbers.items():
            console.print(Padding(escape(f"{number}: {source}"), (0, 0, 0, 2)), highlight=False)
        console.print()


def explain(resolver: Resolver, cell: Cell, networks: Sequence[str] = ()) -> Explained:
    """Return the options of a synthetic set, its images, its experts and the networks that are trained on it.

    Raises:
        UsageError: an unknown name, or an unusable value.
    """
    own, experts = trained_network(resolver, cell), experts_of(resolver.method(cell))
    return Explained(
        cell,
        [
            _dataset(resolver, cell.dataset),
            _method(resolver, cell),
            *([] if experts is None else [_experts(resolver, experts, cell.dataset)]),
            *(_network(resolver, network, cell.dataset) for network in dict.fromkeys([own, *networks])),
            *(_evaluation(resolver, cell, network) for network in networks or [own]),
        ],
    )


def explain_exhibit(resolver: Resolver, exhibit: Exhibit) -> Iterator[Explained]:
    """Yield the options of each synthetic set that a table or figure needs; seeds share them."""
    for cell in dict.fromkeys(run._replace(seed=0) for run in exhibit.runs()):
        yield explain(resolver, cell, exhibit.tested_networks())


ONLY: list[tuple[str, Any, str]] = [
    ("method", str | None, "Only sets of this method."),
    ("dataset", str | None, "Only sets of this dataset."),
    ("ipc", int | None, "Only sets with this number of images per class."),
]
"""Flags that restrict the synthetic sets: name, type and text."""


def print_options(target: str, config: Path | None, only: Mapping[str, object]) -> None:
    """Print the options of the synthetic sets of a table or figure (`find`), those with the values of `only`.

    Raises:
        UsageError: as `find`; no set has these values.
    """
    from rich.console import Console

    resolver, exhibit = find(target, config)
    console, shown = Console(), list[Explained]()
    for explained in explain_exhibit(resolver, exhibit):
        if all(value in (None, getattr(explained.cell, name)) for name, value in only.items()):
            explained.show(console)
            shown.append(explained)
    if not shown:
        wanted = ", ".join(f"{name} {value}" for name, value in only.items() if value is not None)
        raise UsageError(f"{target} has no synthetic set of {wanted or 'its own'}; leave something out")
    ours = sum(bool(each.ours) for each in shown)
    console.print(f"synthetic sets: {len(shown)}; with options that are not published: {ours}")


def find(target: str, config: Path | None) -> tuple[Resolver, Exhibit]:
    """Return the campaign and the entry of a table or figure, given by its name or the path of a file of it.

    Without `config`, a path says which campaign it belongs to; a name is one of `config/paper.yaml`.

    Raises:
        UsageError: there is no such campaign, table or figure.
    """
    path = PurePosixPath(target)
    figure, name = path.parent.name == "figures", path.name.split(".")[0]
    if config is None:
        folder = path.parent.parent if figure else path.parent
        config = Path("config", f"{'paper' if str(folder) in ('.', 'results') else folder.name}.yaml")
        if not config.is_file():
            raise UsageError(f"{target} would belong to the campaign {config}, which is not here; name it in --config")
    resolver = load_campaign(config)
    only_figure = name not in resolver.campaign.tables and name in resolver.figures
    return resolver, resolver.figure(name) if figure or only_figure else resolver.table(name)


def _text(value: object) -> str:
    """Return a value as YAML has it, without quotes."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, str) else json.dumps(value)


def _dataset(resolver: Resolver, name: str) -> Part:
    whole = resolver.whole(name)
    options = resolver.dataset(whole)
    source = f"datasets.{whole} of {resolver.path}" if whole in resolver.campaign.datasets else "built-in dataset"
    default = BUILTIN_DATASETS.get(options.variant_of or options.source, DatasetOptions(source=options.source))
    return Part(f"images of {whole}", options, default, {}, source)


def _method(resolver: Resolver, cell: Cell) -> Part:
    values, methods = resolver.method(cell), resolver.campaign.methods
    base, epoch = at_epoch(cell.method, methods)
    entry = dict.fromkeys(methods.get(base, {}), f"methods.{base} of {resolver.path}")
    entry |= {} if epoch is None else {"start_epoch": f"the name {cell.method}"}
    sources = {**_sources(resolver, "distill", **resolver.axes_of(cell)), **entry}
    return Part("distillation", method_options(values), METHODS[values["method"]].options(), sources)


def _experts(resolver: Resolver, name: str, dataset: str) -> Part:
    own = resolver.campaign.experts.get(name, ExpertsOptions()).model_fields_set
    sources = _sources(resolver, "experts", experts=(name,), dataset=(dataset,))
    sources |= dict.fromkeys(own, f"experts.{name} of {resolver.path}")
    built_in = "built-in experts" if name in BUILTIN_EXPERTS else ""
    return Part(f"experts {name}", resolver.experts(name, dataset), ExpertsOptions(), sources, built_in)


def _network(resolver: Resolver, name: str, dataset: str) -> Part:
    values, own = resolver.network(name, dataset), resolver.campaign.networks.get(name, {})
    sources = _sources(resolver, "network", network=(name, values["network"]), dataset=(dataset,))
    sources |= dict.fromkeys(own, f"networks.{name} of {resolver.path}")
    return Part(f"network {name}", network_options(values), NETWORKS[values["network"]].options(), sources)


def _evaluation(resolver: Resolver, cell: Cell, network: str) -> Part:
    sources = _sources(resolver, "evaluate", **resolver.axes_of(cell), network=(network,))
    return Part(f"evaluation on {network}", resolver.evaluation(cell, network), EvaluateOptions(), sources)


def _sources(resolver: Resolver, stage: str, **axes: tuple[object, ...]) -> dict[str, str]:
    """Return the sources of the options that presets and settings give a stage, by option."""
    return {name: origin.source for name, origin in resolver.origins(stage, **axes).items()}

"""Options of each job, resolved from the names in a campaign.

Later values win: the default of the model, preset files in name order, the campaign's `settings`, the campaign's entry
of that name, a flag on the command line.
"""

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from satm.config.analysis import AnalyseOptions
from satm.config.base import check_name
from satm.config.by_hand import HAND, UNNAMED, ByHand
from satm.config.campaign import Campaign, Setting
from satm.config.cell import Cell
from satm.config.class_order import Step, step_of
from satm.config.datasets import BUILTIN_DATASETS, CLASSES, DatasetOptions
from satm.config.exhibits import FIGURES, FigureOptions, TableOptions
from satm.config.experts import BUILTIN_EXPERTS, ExpertsOptions
from satm.config.layout import FOLDERS, Layout
from satm.config.parsing import parse
from satm.config.training import FULL, EvaluateOptions, LearnOptions, SearchOptions, StepsOptions
from satm.config.yaml_file import load_yaml
from satm.errors import UsageError, pick
from satm.version import shipped


class Origin(NamedTuple):
    """A value that a row of the settings gives an option, and the source of the row."""

    value: Any
    source: str


Axes = tuple[tuple[str, tuple[object, ...]], ...]
"""Names of a job by axis, such as `method`, `dataset` and `ipc`."""


class Resolver:
    """Options by the names in a campaign, presets included.

    Options of methods and networks are plain mappings here, because their modules need torch; `satm.methods.resolve`
    and `satm.networks.resolve` check them.
    """

    by_hand: ByHand | None = None
    """The run by hand that the results belong to; None: they are the campaign's own."""
    overwrite = False
    """Whether a command may replace a finished result."""

    def __init__(self, campaign: Campaign, presets: tuple[Setting, ...], root: str, path: Path | None = None) -> None:
        self.campaign, self.layout, self.path = campaign, Layout(root), path
        self.settings = (*presets, *campaign.settings)
        # Hundreds of cells share a few results, and planning needs each several times.
        self._cache: dict[tuple[str, Axes], dict[str, Origin]] = {}
        self.datasets = {**BUILTIN_DATASETS, **campaign.datasets}

    def for_hand(self, run: ByHand) -> "Resolver":
        """Return the resolver of a run by hand with this campaign."""
        resolver = copy.copy(self)
        resolver.by_hand, resolver.layout = run, Layout(run.root)
        return resolver

    def without_settings(self, indices: Collection[int]) -> "Resolver":
        """Return the resolver of the same campaign with some rows of its settings empty, to find what they cause."""
        campaign, empty = self.campaign.settings, Setting(options={})
        rows = tuple(empty if index in indices else row for index, row in enumerate(campaign))
        presets = self.settings[: len(self.settings) - len(self.campaign.settings)]
        return Resolver(self.campaign.model_copy(update={"settings": rows}), presets, self.layout.root, self.path)

    def file(self, path: str) -> Path:
        """Return an input file of a job: in a run by hand, the run's own, or else that of the results it builds on."""
        if self.by_hand is None:
            return Path(path)
        found = [Path(root + path.removeprefix(self.layout.root)) for root in self.by_hand.folders]
        return next((each for each in found if each.exists()), found[0])

    def data_file(self, path: str) -> Path:
        """Return a file of prepared images, which a run by hand does not make itself."""
        run = self.by_hand
        return Path(path if run is None or run.base is None else run.base + path.removeprefix(self.layout.root))

    def dataset(self, name: str) -> DatasetOptions:
        """Return the options of a dataset, or of a step of one such as `digits-order-0-step-1-of-5`."""
        where = "" if self.path else "the built-in ones (those of a campaign need --config)"
        options = pick(self.whole(name), self.datasets, "dataset", where)
        if (step := self.step(name)) is None:
            return options
        labels = step.labels(self.classes(step.dataset))
        kept = labels if options.classes is None else tuple(options.classes[label] for label in labels)
        return options.model_copy(update={"classes": kept})

    def step(self, name: str) -> Step | None:
        """Return the step that the name of a dataset denotes; None for a dataset of that name."""
        return None if name in self.datasets else step_of(name)

    def whole(self, name: str) -> str:
        """Return the dataset whose images, statistics, whitening and settings apply: for a step the whole dataset."""
        return step.dataset if (step := self.step(name)) else name

    def classes(self, name: str) -> int:
        """Return the number of classes of a dataset, known before its files are read.

        Raises:
            UsageError: the number is known only from the files.
        """
        options = self.dataset(name)
        if options.classes is None and options.source not in CLASSES:
            raise UsageError(
                f"the steps of dataset {name} need its number of classes before its files are read; name the labels to "
                "keep in its option classes"
            )
        return CLASSES[options.source] if options.classes is None else len(options.classes)

    def network(self, name: str, dataset: str) -> dict[str, Any]:
        """Return `{"network": registered name, option: value…}` on a dataset; a registered name needs no entry."""
        own = {"network": name, **self.campaign.networks.get(name, {})}
        return {**self._merged("network", network=(name, own["network"]), dataset=(dataset,)), **own}

    def experts(self, name: str, dataset: str) -> ExpertsOptions:
        """Return the recipe of the experts `name` on a dataset."""
        entries = (BUILTIN_EXPERTS, self.campaign.experts)
        pick(name, {**entries[0], **entries[1]}, "experts")
        base, own = (some[name].model_dump(exclude_unset=True) if name in some else {} for some in entries)
        settings = self._merged("experts", experts=(name,), dataset=(dataset,))
        changed = self.by_hand.options("experts", dataset=dataset, experts=name) if self.by_hand else {}
        options = parse(ExpertsOptions, {**base, **settings, **own, **changed}, where := f"experts {name}")
        options.check(where)
        return options

    def difficulty(self, name: str, dataset: str, options: ExpertsOptions) -> str | None:
        """Return the experts that rate images for the curriculum of the experts `name`; None without a curriculum.

        Raises:
            UsageError: the options do not fit together, or the rating experts have a curriculum themselves.
        """
        options.check(f"experts {name}")
        if options.order == "full":
            return None
        if (order := self.experts(options.difficulty, dataset).order) != "full":
            named = f"difficulty names {options.difficulty}, experts of order {order!r}"
            raise UsageError(f"experts {name}: {named}; name experts of order 'full'")
        return options.difficulty

    def method(self, cell: Cell) -> dict[str, Any]:
        """Return `{"method": registered name, option: value…}` for one cell of a table."""
        base, epoch = at_epoch(cell.method, self.campaign.methods)
        own = {"method": base, **self.campaign.methods.get(base, {})}
        settings = self._merged("distill", **self.axes_of(cell))
        changed = self.by_hand.options("distill", **cell.axes) if self.by_hand else {}
        return {**settings, **own, **({} if epoch is None else {"start_epoch": epoch}), **changed}

    def evaluation(self, cell: Cell, network: str = "") -> EvaluateOptions:
        """Return the evaluation options of a cell's synthetic sets for a network; empty: any network."""
        return parse(EvaluateOptions, self._merged("evaluate", **self.axes_of(cell), network=(network,)), "evaluate")

    def analysis(self, cell: Cell) -> AnalyseOptions:
        """Return the measurement options of a cell's synthetic sets."""
        return parse(AnalyseOptions, self._merged("analyse", **self.axes_of(cell)), "analyse")

    def full(self, recipe: str, dataset: str, network: str = "") -> EvaluateOptions:
        """Return the options of a recipe of `FULL` for training networks on all real images; network empty: any.

        Settings of the stage evaluate that name the method `full-RECIPE` change it.
        """
        pick(recipe, FULL, "recipe for all real images")
        options: dict[str, Any] = {"lr": 0.1, "batch_size": 128, "epochs": 200, "schedule": "cosine"}
        if recipe == "experts":
            shared = {"lr", "batch_size", "epochs", "augment", "momentum", "weight_decay"}
            options = self.experts("sgd", dataset).model_dump(include=shared)
        axes = {"method": (f"full-{recipe}",), "dataset": (dataset,), "ipc": (0,), "network": (network,)}
        for setting in self.settings:
            if setting.method and setting.applies("evaluate", **axes):
                options.update(setting.options)
        return parse(EvaluateOptions, {"decay_epoch": None, **options}, f"full-{recipe}")

    def table(self, name: str) -> TableOptions:
        """Return a table of this campaign, of any kind."""
        return pick(name, self.campaign.tables, "table", self._where())

    def search(self, name: str) -> SearchOptions:
        """Return an architecture search; without a campaign every name has the defaults, for runs by hand."""
        if self.path is None:
            return SearchOptions()
        table = pick(name, self.campaign.tables_with(SearchOptions), "search", str(self.path))
        return parse(SearchOptions, table.model_dump(include=set(SearchOptions.model_fields)), f"search {name}")

    def learning(self, protocol: str, cell: Cell) -> LearnOptions:
        """Return a protocol's options; without a campaign every protocol has the defaults, for runs by hand."""
        known = self.campaign.tables_with(StepsOptions)
        where = f"protocol of continual learning in {self.path}"
        plan = StepsOptions() if self.path is None else pick(protocol, known, where)
        training = self.evaluation(cell, plan.network).model_dump()
        return parse(LearnOptions, {**training, **plan.model_dump(include=set(StepsOptions.model_fields))}, "continual")

    @cached_property
    def figures(self) -> dict[str, FigureOptions]:
        """Every figure by name: those that every campaign has, and the campaign's own."""
        standard = [figure for kind in FIGURES.values() for figure in kind.standard(self.campaign.tables).items()]
        return {**dict(standard), **self.campaign.figures}

    def figure(self, name: str) -> FigureOptions:
        """Return a figure of this campaign, of any kind."""
        return pick(name, self.figures, "figure", self._where())

    def _where(self) -> str:
        """Return the place of tables and figures, for messages."""
        return str(self.path or "the presets (a campaign, named with --config, has tables and figures)")

    def axes_of(self, cell: Cell) -> dict[str, tuple[object, ...]]:
        """Return the names by which settings select a cell: its own and the methods that its method builds on."""
        named = at_epoch(cell.method, self.campaign.methods)[0]
        base = self.campaign.methods.get(named, {}).get("method", named)
        return {"method": (cell.method, named, base), "dataset": (cell.dataset,), "ipc": (cell.ipc,)}

    def _datasets_of(self, name: str) -> Iterator[str]:
        """Yield the names whose settings apply to a dataset: its own, that of a step's whole dataset, a variant's."""
        whole = self.whole(name)
        yield from dict.fromkeys([name, whole])
        if whole in self.datasets and self.datasets[whole].variant_of:
            yield self.datasets[whole].variant_of

    def _merged(self, stage: str, **axes: tuple[object, ...]) -> dict[str, Any]:
        """Return the options that presets and settings give a stage for these names."""
        return {name: origin.value for name, origin in self.origins(stage, **axes).items()}

    def origins(self, stage: str, **axes: tuple[object, ...]) -> Mapping[str, Origin]:
        """Return the options that presets and settings give a stage for these names (`axes_of`), with their sources."""
        key = (stage, tuple(axes.items()))
        if key not in self._cache:
            axes["dataset"] = tuple(each for name in axes["dataset"] for each in self._datasets_of(str(name)))
            found: dict[str, Origin] = {}
            presets = len(self.settings) - len(self.campaign.settings)
            for index, row in enumerate(self.settings):
                if row.applies(stage, **axes):
                    place = "" if index < presets else f"settings.{index - presets} of {self.path}"
                    source = ": ".join(filter(None, (place, row.source)))
                    found |= {name: Origin(value, source) for name, value in row.options.items()}
            self._cache[key] = found
        return self._cache[key]


AT_EPOCH = "-at-epoch-"
"""Part of a derived method's name between the method and the start epoch of its segments."""


def at_epoch(name: str, methods: Mapping[str, object]) -> tuple[str, int | None]:
    """Return method and start epoch of a derived name such as `mtt-at-epoch-7`; epoch None for a name of `methods`."""
    match = re.fullmatch(f"(.+){AT_EPOCH}(0|[1-9][0-9]{{0,8}})", name)
    return (match[1], int(match[2])) if match and name not in methods else (name, None)


def load_presets() -> tuple[Setting, ...]:
    """Return the rows of all preset files, in name order; they are in the package or in `config/presets`."""
    return tuple(
        parse(Setting, row, f"{path}: settings.{index}")
        for path in sorted(shipped("presets", "config/presets").glob("*.yaml"))
        for index, row in enumerate(load_yaml(path).get("settings", []))
    )


def load_campaign(path: Path | None) -> Resolver:
    """Return the campaign in a YAML file; None: the built-in campaign, without tables, as a run by hand.

    Raises:
        UsageError: the file is missing, is not YAML, or has an unknown name or an unusable value.
    """
    if path is None:
        run = ByHand(UNNAMED, None, recalls=False)
        return Resolver(Campaign(), load_presets(), run.root).for_hand(run)
    root = root_of(path)
    return Resolver(parse(Campaign, load_yaml(path), str(path)), load_presets(), root, path)


def root_of(path: Path) -> str:
    """Return the results folder of a campaign, unique to it: `results` for `paper.yaml`, else `results/NAME`.

    Raises:
        UsageError: the file's name cannot be a folder.
    """
    try:
        check_name(path.stem)
    except ValueError as error:
        raise UsageError(f"the name of {path} names the folder of results: {error}; rename it") from error
    if (root := "results" if path.stem == "paper" else f"results/{path.stem}") == HAND:
        raise UsageError(f"the name of {path} names the folder {HAND}, that of runs by hand; rename it")
    if path.stem in FOLDERS:
        raise UsageError(f"the name of {path} names the folder {root}, which belongs to the paper's results; rename it")
    return root

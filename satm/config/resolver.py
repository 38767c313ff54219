"""A campaign's names turned into the options of each job.

A value is looked for in this order, the later winning: the default of its model, the preset files in name order
(`preset_folder`), the campaign's `settings`, the campaign's own entry of that name, a flag on the command line.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from satm.config.analysis import AnalyseOptions
from satm.config.base import check_name, parse
from satm.config.campaign import Campaign, Setting
from satm.config.cell import Cell
from satm.config.class_order import Step, step_of
from satm.config.datasets import BUILTIN_DATASETS, CLASSES, DatasetOptions
from satm.config.exhibits import FIGURES, FigureOptions, TableOptions
from satm.config.experts import BUILTIN_EXPERTS, ExpertsOptions
from satm.config.layout import Layout
from satm.config.training import FULL, EvaluateOptions, LearnOptions, SearchOptions, StepsOptions
from satm.config.yaml_file import load_yaml
from satm.errors import UsageError, pick
from satm.version import shipped

Axes = tuple[tuple[str, tuple[object, ...]], ...]
"""What a job is about: names by axis, such as `method`, `dataset` and `ipc`."""


class Resolver:
    """A campaign's names turned into options, presets included.

    Values are resolved as plain mappings where the model belongs to a registered method or network, because those
    modules need torch; `satm.methods.resolve` and `satm.networks.resolve` check them.
    """

    def __init__(self, campaign: Campaign, presets: tuple[Setting, ...], root: str, path: Path | None = None) -> None:
        self.campaign = campaign
        self.settings = (*presets, *campaign.settings)
        self._settings: dict[str, list[Setting]] = {}
        for setting in self.settings:
            self._settings.setdefault(setting.stage, []).append(setting)
        # A campaign has hundreds of cells with the same few answers, and a plan asks for each of them several times.
        self._found: dict[tuple[str, Axes], dict[str, Any]] = {}
        self.layout = Layout(root)
        self.path = path
        self.datasets = {**BUILTIN_DATASETS, **campaign.datasets}

    def dataset(self, name: str) -> DatasetOptions:
        """Return the options of a dataset; the error for an unknown name lists the known ones.

        A name such as `digits-order-0-step-1-of-5` (`satm.config.class_order`) means the classes of one step of another
        one.
        """
        options = pick(self.whole(name), self.datasets, "dataset")
        if (step := self.step(name)) is None:
            return options
        labels = step.labels(self.classes(step.dataset))
        kept = labels if options.classes is None else tuple(options.classes[label] for label in labels)
        return options.model_copy(update={"classes": kept})

    def step(self, name: str) -> Step | None:
        """Return the step that the name of a dataset means; None: it is a dataset of its own."""
        return None if name in self.datasets else step_of(name)

    def whole(self, name: str) -> str:
        """Return the dataset whose images, normalisation, whitening and settings serve; mostly `name` itself."""
        return step.dataset if (step := self.step(name)) else name

    def classes(self, name: str) -> int:
        """Return how many classes a dataset has, as far as that can be known before its files are read.

        Raises:
            UsageError: it cannot.
        """
        options = self.dataset(name)
        if options.classes is None and options.source not in CLASSES:
            raise UsageError(
                f"only the files of dataset {name} say how many classes it has, and its steps need the number before; "
                "name the labels to keep in its option classes"
            )
        return CLASSES[options.source] if options.classes is None else len(options.classes)

    def network(self, name: str, dataset: str) -> dict[str, Any]:
        """Return `{"network": registered name, option: value…}` on a dataset; a registered name needs no entry."""
        own = {"network": name, **self.campaign.networks.get(name, {})}
        return {**self._set("network", network=(name, own["network"]), dataset=(dataset,)), **own}

    def experts(self, name: str, dataset: str) -> ExpertsOptions:
        """Return the recipe of the experts `name` on a dataset."""
        pick(name, {**BUILTIN_EXPERTS, **self.campaign.experts}, "experts")
        base, own = (
            entries[name].model_dump(exclude_unset=True) if name in entries else {}
            for entries in (BUILTIN_EXPERTS, self.campaign.experts)
        )
        found = self._set("experts", experts=(name,), dataset=(dataset,))
        options = parse(ExpertsOptions, {**base, **found, **own}, f"experts {name}")
        options.check(f"experts {name}")
        return options

    def difficulty(self, name: str, dataset: str, options: ExpertsOptions) -> str | None:
        """Return the experts whose paths order the images for the experts `name`; None where the order is full.

        Raises:
            UsageError: options that do not fit together, or experts that learn from an order themselves.
        """
        options.check(f"experts {name}")
        if options.order == "full":
            return None
        if (found := self.experts(options.difficulty, dataset).order) != "full":
            raise UsageError(
                f"experts {name}: difficulty names {options.difficulty}, experts of order {found!r}; name experts of "
                "order 'full'"
            )
        return options.difficulty

    def method(self, cell: Cell) -> dict[str, Any]:
        """Return `{"method": registered name, option: value…}` for one cell of a table."""
        base, epoch = at_epoch(cell.method, self.campaign.methods)
        own = {"method": base, **self.campaign.methods.get(base, {})}
        found = self._set(
            "distill", method=(cell.method, base, own["method"]), dataset=(cell.dataset,), ipc=(cell.ipc,)
        )
        return {**found, **own, **({} if epoch is None else {"start_epoch": epoch})}

    def evaluation(self, cell: Cell, network: str = "") -> EvaluateOptions:
        """Return how the synthetic sets of one cell are tested, with a network; empty: with any."""
        axes = {**self._axes(cell), "network": (network,)}
        found = self._set("evaluate", **axes)
        return parse(EvaluateOptions, found, "evaluate")

    def analysis(self, cell: Cell) -> AnalyseOptions:
        """Return how the synthetic sets of one cell are measured."""
        return parse(AnalyseOptions, self._set("analyse", **self._axes(cell)), "analyse")

    def full(self, recipe: str, dataset: str, network: str = "") -> EvaluateOptions:
        """Return how networks are trained on all images of a dataset by a recipe of `FULL`; network empty: any.

        The campaign's settings of the stage evaluate that name the method `full-RECIPE` change it.
        """
        pick(recipe, FULL, "recipe for all real images")
        found: dict[str, Any] = {"lr": 0.1, "batch_size": 128, "epochs": 200, "schedule": "cosine"}
        if recipe == "experts":
            base = self.experts("sgd", dataset)
            same = ("lr", "batch_size", "epochs", "augment", "momentum", "weight_decay")
            found = {name: getattr(base, name) for name in same}
        axes = {"method": (f"full-{recipe}",), "dataset": (dataset,), "ipc": (0,), "network": (network,)}
        for setting in self._settings.get("evaluate", ()):
            if setting.method and setting.applies("evaluate", **axes):
                found.update(setting.options)
        return parse(EvaluateOptions, {"decay_epoch": None, **found}, f"full-{recipe}")

    def table(self, name: str) -> TableOptions:
        """Return a table of this campaign, of whatever kind."""
        return pick(name, self.campaign.tables, f"table in {self.path or 'the built-in campaign'}")

    def search(self, name: str) -> SearchOptions:
        """Return an architecture search; without a campaign every name has the defaults, for runs by hand."""
        if self.path is None:
            return SearchOptions()
        table = pick(name, self.campaign.tables_with(SearchOptions), f"search in {self.path}")
        return parse(SearchOptions, table.model_dump(include=set(SearchOptions.model_fields)), f"search {name}")

    def learning(self, protocol: str, cell: Cell) -> LearnOptions:
        """Return how classes are learned; without a campaign every protocol has the defaults, for runs by hand."""
        known = self.campaign.tables_with(StepsOptions)
        where = f"protocol of continual learning in {self.path}"
        plan = StepsOptions() if self.path is None else pick(protocol, known, where)
        training = self.evaluation(cell, plan.network).model_dump()
        return parse(LearnOptions, {**training, **plan.model_dump(include=set(StepsOptions.model_fields))}, "continual")

    @cached_property
    def figures(self) -> dict[str, FigureOptions]:
        """Every figure by name: those that every campaign has, and the campaign's own."""
        standard = [kind.standard(self.campaign.tables) for kind in FIGURES.values()]
        return {**{name: figure for some in standard for name, figure in some.items()}, **self.campaign.figures}

    def figure(self, name: str) -> FigureOptions:
        """Return a figure of this campaign, of whatever kind."""
        return pick(name, self.figures, f"figure in {self.path or 'the built-in campaign'}")

    def _axes(self, cell: Cell) -> dict[str, tuple[object, ...]]:
        """Return the names by which settings find a cell: of a derived method also the one that it derives from."""
        named = at_epoch(cell.method, self.campaign.methods)[0]
        base = self.campaign.methods.get(named, {}).get("method", named)
        return {"method": (cell.method, named, base), "dataset": (cell.dataset,), "ipc": (cell.ipc,)}

    def _set(self, stage: str, **axes: tuple[object, ...]) -> Mapping[str, Any]:
        """Return what presets and settings say of a stage for these names."""
        key = (stage, tuple(axes.items()))
        if key not in self._found:
            names = axes["dataset"]
            axes["dataset"] = (*names, *(self.whole(str(name)) for name in names))
            found: dict[str, Any] = {}
            for setting in self._settings.get(stage, ()):
                if setting.applies(stage, **axes):
                    found.update(setting.options)
            self._found[key] = found
        return self._found[key]


AT_EPOCH = "-at-epoch-"
"""Between the name of a method and the epoch that its segments start at, in the name of a derived method."""


def at_epoch(name: str, methods: Mapping[str, object]) -> tuple[str, int | None]:
    """Return the method and the epoch that a name such as `mtt-at-epoch-7` means; None: it is a method of its own.

    Args:
        name: of a method.
        methods: the campaign's own ones.
    """
    found = re.fullmatch(f"(.+){AT_EPOCH}(0|[1-9][0-9]{{0,8}})", name)
    return (found[1], int(found[2])) if found and name not in methods else (name, None)


def preset_folder() -> Path:
    """Return the folder of the preset files: inside an installed package, `config/presets` in a checkout."""
    return shipped("presets", "config/presets")


def load_presets() -> tuple[Setting, ...]:
    """Return the rows of all preset files, in the order of the files' names."""
    found: list[Setting] = []
    for path in sorted(preset_folder().glob("*.yaml")):
        rows = load_yaml(path).get("settings", [])
        found += [parse(Setting, row, f"{path}: settings.{index}") for index, row in enumerate(rows)]
    return tuple(found)


def load_campaign(path: Path | None) -> Resolver:
    """Return the campaign in a YAML file; None gives the built-in one, which has no tables.

    `paper.yaml` and the built-in campaign root at `results/`, every other NAME.yaml at `results/NAME/`, so that no two
    files share an output.

    Raises:
        UsageError: the file is missing, is not YAML, or holds an unknown name or an unusable value.
    """
    if path is None:
        return Resolver(Campaign(), load_presets(), "results")
    root = root_of(path)
    return Resolver(parse(Campaign, load_yaml(path), str(path)), load_presets(), root, path)


def root_of(path: Path) -> str:
    """Return the folder of everything that a campaign makes, from the name of its file.

    Raises:
        UsageError: the name cannot become a folder.
    """
    try:
        check_name(path.stem)
    except ValueError as error:
        raise UsageError(f"the name of {path} becomes a folder: {error}; rename it") from error
    return "results" if path.stem == "paper" else f"results/{path.stem}"

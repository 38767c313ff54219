"""What the Snakefiles ask for: the inputs and parameters of a job, from its wildcards. Nothing here imports torch.

Wildcards are named like the flags of the command line. Parameters hold only the values that a job uses, and of those
only what differs from the default, so that a new option, method or network schedules nothing that does not use it.
"""

import os
import re
import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from satm.config import (
    ACCOUNTING,
    ANALYSES,
    FULL,
    NAME,
    OVERVIEW,
    Cell,
    LearnOptions,
    Options,
    Resolver,
    canonical,
    load_campaign,
    parts,
    root_of,
)
from satm.errors import UsageError, pick
from satm.run.lock import IN_WORKFLOW
from satm.workflow.schema import Checker

Wildcards = Any
"""Snakemake's wildcards of a job: attributes, all of them texts."""


def cell_of(wildcards: Wildcards) -> Cell:
    """Return the synthetic set that a job is about."""
    return Cell(wildcards.dataset, int(wildcards.ipc), wildcards.method, int(wildcards.seed))


NUMBER = "(?:0|[1-9][0-9]*)"
"""What a number in a path looks like: as Python writes it, so that the file is the one that the command makes."""

DECODING = {
    *("source", "path", "train", "test", "image_column", "label_column", "classes", "size"),
    *("validation", "split_seed", "mean", "std"),
}
"""The options of a dataset that decide its stored images; they reach later stages through that file."""

WHITENING = {"zca_eps", "zca_per_image", "zca_relative"}
"""The options of a dataset that decide its whitening."""

SHARING = {"count", "per_job", "difficulty_count"}
"""The options of experts that say how many there are, which job trains them and how many are asked, not what one is."""


class Campaigns:
    """Every campaign whose files the workflow can make; each is read, and checked, when a job first asks for it."""

    def __init__(self, base: Path, given: Iterable[Path] = (), partial: bool = False, checked: bool = False) -> None:
        """Find the campaigns.

        Args:
            base: folder of the checkout; its `config/*.yaml` are known.
            given: further files, of `--configfile`.
            partial: tables and figures are made of what is there, and nothing else is run for them.
            checked: the process that planned this job has checked the campaigns, which takes longer than the rest.

        Raises:
            UsageError: two files would write to one folder, or the name of a given one cannot become a folder.
        """
        self._base = base
        self._given = list(given)
        self._partial = partial
        self._checked = checked
        self._loaded: dict[str, Resolver] = {}
        known = [path for path in sorted(base.glob("config/*.yaml")) if re.fullmatch(NAME, path.stem)]
        self.paths = {root_of(path): path for path in known}
        for path in self._given:
            root = root_of(path)
            if root in self.paths and not self.paths[root].samefile(path):
                raise UsageError(f"{path} and {self.paths[root]} would both write to {root}; rename one of them")
            self.paths[root] = path

    @cached_property
    def checker(self) -> Checker:
        """The schema, read once."""
        return Checker(self._base / "workflow" / "schemas" / "campaign.schema.json")

    def of(self, root: str) -> Resolver:
        """Return the campaign that writes below `root`, checked.

        Raises:
            UsageError: the file cannot be used as it is.
        """
        if root not in self._loaded:
            resolver = load_campaign(pick(root, self.paths, "folder of a campaign"))
            if not self._checked:
                self.checker.check(resolver)
            self._loaded[root] = resolver
        return self._loaded[root]

    def check(self, arguments: Iterable[str]) -> None:
        """Read the given campaigns, and those of files named on the command line.

        Only so that a mistake is told in one line: Snakemake adds a traceback to what an input function raises.
        """
        for path in self._given:
            self.of(root_of(path))
        roots = sorted(self.paths, key=len, reverse=True)
        for argument in arguments:
            found = next((root for root in roots if argument.startswith(f"{root}/")), None)
            if found is not None:
                self.of(found)

    def constraints(self) -> dict[str, str]:
        """Return what each wildcard may look like."""
        names = ("dataset", "experts", "method", "network", "table", "figure", "search", "protocol")
        roots = "|".join(re.escape(root) for root in sorted(self.paths))
        return {
            "root": roots,
            "ipc": NUMBER,
            "seed": NUMBER,
            "part": f"{NUMBER}-{NUMBER}",
            "recipe": "|".join(FULL),
            "what": "|".join(ANALYSES),
            **dict.fromkeys(names, NAME),
            "table": rf"(?!(?:{OVERVIEW}|{ACCOUNTING})\.){NAME}",
        }

    # Files

    def defaults(self, _wildcards: Wildcards) -> list[str]:
        """Return all tables and figures of the given campaigns, or of the paper's."""
        found: list[str] = []
        for root in [root_of(path) for path in self._given] or ["results"]:
            found += self._tables(self.of(root)) + self._figures(self.of(root))
        return found

    def tables(self, wildcards: Wildcards) -> list[str]:
        """Return every table of a campaign."""
        return self._tables(self.of(wildcards.root))

    def tabulated(self, wildcards: Wildcards) -> list[str]:
        """Return what overview and accounting are made after: every table of a campaign."""
        resolver = self.of(wildcards.root)
        return self._there([resolver.layout.table(name) for name in resolver.campaign.tables])

    def figures(self, wildcards: Wildcards) -> list[str]:
        """Return every figure of a campaign."""
        return self._figures(self.of(wildcards.root))

    def prepared(self, wildcards: Wildcards) -> list[str]:
        """Return the decoded images of a dataset and, if its options ask for it, the whitening; those of a whole serve
        its parts.
        """
        resolver = self.of(wildcards.root)
        whole = resolver.whole(wildcards.dataset)
        images = [resolver.layout.images(whole)]
        return [*images, resolver.layout.zca(whole)] if resolver.dataset(whole).zca else images

    def difficulty(self, wildcards: Wildcards) -> list[str]:
        """Return the file that says how hard each image is, for experts that see the easy ones first."""
        resolver = self.of(wildcards.root)
        recipe = resolver.experts(wildcards.experts, wildcards.dataset)
        asked = resolver.difficulty(wildcards.experts, wildcards.dataset, recipe)
        return [] if asked is None else [resolver.layout.difficulty(wildcards.dataset, asked)]

    def parts(self, wildcards: Wildcards) -> list[str]:
        """Return the parts of a trajectory store."""
        resolver = self.of(wildcards.root)
        recipe = resolver.experts(wildcards.experts, wildcards.dataset)
        return [resolver.layout.experts_part(wildcards.dataset, wildcards.experts, part) for part in parts(recipe)]

    def manifest(self, wildcards: Wildcards) -> list[str]:
        """Return the manifest of the experts that a method matches; nothing if it uses none."""
        resolver = self.of(wildcards.root)
        experts = self.checker.experts(self._method(wildcards))
        return [] if experts is None else [resolver.layout.manifest(wildcards.dataset, experts)]

    def measured_along(self, wildcards: Wildcards) -> list[str]:
        """Return the manifest of the experts that a measurement at a synthetic set uses: those that the method matches,
        unless their path is followed and the options name others.
        """
        resolver = self.of(wildcards.root)
        named = resolver.analysis(cell_of(wildcards)).experts
        if named is None or "experts" not in ANALYSES[wildcards.what]:
            return self.manifest(wildcards)
        return [resolver.layout.manifest(wildcards.dataset, named)]

    def learned(self, wildcards: Wildcards) -> list[str]:
        """Return the synthetic sets that classes are learned from, step by step."""
        resolver = self.of(wildcards.root)
        sources = self._learning(wildcards).sources(wildcards.dataset)
        return [resolver.layout.distilled(cell_of(wildcards)._replace(dataset=source)) for source in sources]

    def measured(self, wildcards: Wildcards) -> list[str]:
        """Return everything that a table is made of."""
        resolver = self.of(wildcards.root)
        return self._there(resolver.table(wildcards.table).files(resolver.layout, wildcards.table))

    def drawn(self, wildcards: Wildcards) -> list[str]:
        """Return everything that a figure is made of."""
        resolver = self.of(wildcards.root)
        return self._there(resolver.figure(wildcards.figure).files(resolver.layout, resolver.campaign.tables))

    def _there(self, files: list[str]) -> list[str]:
        """Return the files, or with `partial` those that exist."""
        return [path for path in files if Path(path).is_file()] if self._partial else files

    @staticmethod
    def _tables(resolver: Resolver) -> list[str]:
        return [resolver.layout.table(name) for name in (*resolver.campaign.tables, OVERVIEW, ACCOUNTING)]

    @staticmethod
    def _figures(resolver: Resolver) -> list[str]:
        return [resolver.layout.figure(name) for name in resolver.figures]

    # Parameters

    def config(self, wildcards: Wildcards) -> str:
        """Return the path of the campaign's file, relative if possible: then a moved checkout runs nothing again."""
        path = self.paths[wildcards.root].absolute()
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

    def image_options(self, wildcards: Wildcards) -> str:
        """Return the options of decoding."""
        return canonical(_values(self._dataset(wildcards), only=DECODING))

    def zca_options(self, wildcards: Wildcards) -> str:
        """Return the options of whitening."""
        return canonical(_values(self._dataset(wildcards), only=WHITENING))

    def expert_options(self, wildcards: Wildcards) -> str:
        """Return the options of one expert: recipe, network, dataset."""
        resolver = self.of(wildcards.root)
        recipe = resolver.experts(wildcards.experts, wildcards.dataset)
        network = resolver.network(recipe.network, wildcards.dataset)
        return canonical({"recipe": _values(recipe, without=SHARING), "network": network, **self._data(wildcards)})

    def difficulty_options(self, wildcards: Wildcards) -> str:
        """Return the options of measuring difficulty: how many experts are asked. The rest reaches it through files."""
        recipe = self.of(wildcards.root).experts(wildcards.experts, wildcards.dataset)
        return canonical(_values(recipe, only={"difficulty_count"}))

    def distill_options(self, wildcards: Wildcards) -> str:
        """Return the options of a distillation: method, dataset. Those of the experts reach it through their files."""
        return canonical({"method": self._method(wildcards), **self._data(wildcards)})

    def partial(self, _wildcards: Wildcards) -> str:
        """Return the flag of tables and figures of what is there."""
        return "--partial" if self._partial else ""

    def analysis_options(self, wildcards: Wildcards) -> str:
        """Return the options of a measurement at a synthetic set: method, dataset, and a rho that all methods share."""
        resolver, cell = self.of(wildcards.root), cell_of(wildcards)
        how = resolver.analysis(cell)
        shared: dict[str, Any] = _values(how, only=set(ANALYSES[wildcards.what]))
        if wildcards.what in ("sharpness", "bounds"):
            shared["rho"] = resolver.method(cell._replace(method="satm")).get("rho")
        return canonical({"method": self._method(wildcards), **shared, **self._data(wildcards)})

    def evaluate_options(self, wildcards: Wildcards) -> str:
        """Return the options of an evaluation: schedule, network, dataset."""
        resolver = self.of(wildcards.root)
        schedule = resolver.evaluation(cell_of(wildcards), wildcards.network)
        network = resolver.network(wildcards.network, wildcards.dataset)
        return canonical({"schedule": _values(schedule), "network": network, **self._data(wildcards)})

    def full_options(self, wildcards: Wildcards) -> str:
        """Return the options of networks trained on all real images: schedule, network, dataset."""
        resolver = self.of(wildcards.root)
        schedule = resolver.full(wildcards.recipe, wildcards.dataset, wildcards.network)
        network = resolver.network(wildcards.network, wildcards.dataset)
        return canonical({"schedule": _values(schedule), "network": network, **self._data(wildcards)})

    def teacher(self, wildcards: Wildcards) -> list[str]:
        """Return the manifest of the experts that give soft labels to sets with hard ones."""
        return [self.of(wildcards.root).layout.manifest(wildcards.dataset, "sgd")]

    def nas_options(self, wildcards: Wildcards) -> str:
        """Return the options of one part of a search on a synthetic set: candidates and their order, recipe, dataset.

        How many there are is not among them: the places of a part's candidates are in its name.
        """
        return self._search_options(wildcards, "proxy")

    def nas_real_options(self, wildcards: Wildcards) -> str:
        """Return the same of a part on the real images."""
        return self._search_options(wildcards, "real")

    def _search_options(self, wildcards: Wildcards, kind: str) -> str:
        search = self.of(wildcards.root).search(wildcards.search)
        return canonical({**_values(search, only={"sample_seed", "width_factor", kind}), **self._data(wildcards)})

    def continual_options(self, wildcards: Wildcards) -> str:
        """Return the options of continual learning: steps and schedule, network, dataset."""
        learning = self._learning(wildcards)
        network = self.of(wildcards.root).network(learning.network, wildcards.dataset)
        return canonical({"learning": _values(learning), "network": network, **self._data(wildcards)})

    def figure_options(self, wildcards: Wildcards) -> str:
        """Return what a figure is drawn from, and how."""
        return canonical(self.of(wildcards.root).figure(wildcards.figure))

    def table_options(self, wildcards: Wildcards) -> str:
        """Return the cells of a table."""
        return canonical(self.of(wildcards.root).table(wildcards.table))

    def _learning(self, wildcards: Wildcards) -> LearnOptions:
        resolver = self.of(wildcards.root)
        return resolver.learning(wildcards.protocol, cell_of(wildcards))

    def _dataset(self, wildcards: Wildcards) -> Options:
        return self.of(wildcards.root).dataset(wildcards.dataset)

    def _data(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return the options of a dataset that act while a network is trained on it."""
        return {"dataset": _values(self._dataset(wildcards), without=DECODING)}

    def _method(self, wildcards: Wildcards) -> dict[str, Any]:
        resolver = self.of(wildcards.root)
        values = resolver.method(cell_of(wildcards))
        pick(values["method"], self.checker.registered("method"), f"method in {resolver.path}")
        return values


def _values(options: Options, only: set[str] | None = None, without: set[str] | None = None) -> dict[str, Any]:
    """Return what differs from the defaults."""
    return options.model_dump(mode="json", include=only, exclude=without, exclude_defaults=True)


def use_this_checkout(base: Path) -> None:
    """Let jobs find this interpreter as `python` and this checkout as `satm`.

    A Snakemake that is called by its path, without its environment activated, would otherwise run another Python; with
    `--directory` the checkout is not the working folder. A job's conda environment, if asked for, still comes first.
    A job that meets another one at the same run, left behind by a Snakemake that was killed, waits for its end.
    """
    for name, folder in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", base)):
        held = [entry for entry in os.environ.get(name, "").split(os.pathsep) if entry]
        if str(folder) not in held[:1]:
            os.environ[name] = os.pathsep.join([str(folder), *held])
    os.environ.setdefault(IN_WORKFLOW, "yes")


def open_campaigns(workflow: Any) -> Campaigns:
    """Return the campaigns, for the Snakefile; `workflow` is Snakemake's object of that name.

    Raises:
        WorkflowError: as `Campaigns`. Of this one Snakemake prints the line without a traceback.
    """
    from snakemake.exceptions import WorkflowError  # type: ignore[import-untyped]  # optional

    base = Path(workflow.basedir)
    use_this_checkout(base)
    try:
        given = dict(workflow.config_settings.config)
        partial = str(given.pop("partial", False)).lower()
        if given or partial not in ("true", "false"):
            raise UsageError(
                "--config takes partial=true or false alone, for tables and figures of what is there; write any other "
                "value into a campaign, for --configfile"
            )
        campaigns = Campaigns(base, workflow.configfiles, partial == "true", checked=not workflow.is_main_process)
        campaigns.check(sys.argv[1:])
    except UsageError as error:
        raise WorkflowError(str(error)) from None
    return campaigns

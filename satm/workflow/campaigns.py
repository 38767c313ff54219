"""The campaigns that the workflow can make, and what the Snakefiles say of each rule. Nothing here imports torch."""

import os
import re
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from satm.config import (
    ACCOUNTING,
    ANALYSES,
    FULL,
    NAME,
    OVERVIEW,
    PLACES,
    REVISIONS,
    Resolver,
    canonical,
    load_campaign,
    root_of,
)
from satm.errors import UsageError, pick
from satm.run.lock import IN_WORKFLOW
from satm.workflow.check import check
from satm.workflow.rules import PATTERNS, RULES, Rule, Wildcards

NUMBER = "(?:0|[1-9][0-9]*)"
"""What a number in a path looks like: as Python writes it, so that the file is the one that the command makes."""


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

    def of(self, root: str) -> Resolver:
        """Return the campaign that writes below `root`, checked.

        Raises:
            UsageError: the file cannot be used as it is.
        """
        if root not in self._loaded:
            resolver = load_campaign(pick(root, self.paths, "folder of a campaign"))
            if not self._checked:
                check(resolver)
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

    def defaults(self, _wildcards: Wildcards) -> list[str]:
        """Return all tables and figures of the given campaigns, or of the paper's."""
        roots = [root_of(path) for path in self._given] or ["results"]
        each = [SimpleNamespace(root=root) for root in roots]
        return [path for names in each for path in (*self.tables(names), *self.figures(names))]

    def tables(self, wildcards: Wildcards) -> list[str]:
        """Return every table of a campaign."""
        resolver = self.of(wildcards.root)
        return [resolver.layout.table(name) for name in (*resolver.campaign.tables, OVERVIEW, ACCOUNTING)]

    def figures(self, wildcards: Wildcards) -> list[str]:
        """Return every figure of a campaign."""
        resolver = self.of(wildcards.root)
        return [resolver.layout.figure(name) for name in resolver.figures]

    def inputs(self, rule: str, wildcards: Wildcards) -> dict[str, list[str]]:
        """Return the files that a job reads, by name.

        Raises:
            UsageError: a wildcard is no name of the campaign.
        """
        resolver, entry = self.of(wildcards.root), RULES[rule]
        found = {name: files(resolver, wildcards) for name, files in entry.inputs.items()}
        if self._partial and entry.gathers:
            found = {name: [path for path in files if Path(path).is_file()] for name, files in found.items()}
        return found

    def options(self, rule: str, wildcards: Wildcards) -> str:
        """Return what the result of a job depends on beside its inputs, as one JSON text.

        Raises:
            UsageError: a wildcard is no name of the campaign.
        """
        entry = RULES[rule]
        return canonical(entry.options(self.of(wildcards.root), wildcards) if entry.options else {})

    def config(self, wildcards: Wildcards) -> str:
        """Return the path of the campaign's file, relative if possible: then a moved checkout runs nothing again."""
        path = self.paths[wildcards.root].absolute()
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

    def rules(self) -> SimpleNamespace:
        """Return what the Snakefiles say of each rule: its `inputs`, `outputs`, `params`, `log` and `benchmark`."""
        return SimpleNamespace(**{name: self._rule(name, rule) for name, rule in RULES.items()})

    def _rule(self, name: str, rule: Rule) -> SimpleNamespace:
        params: dict[str, Any] = {"config": self.config, "revision": REVISIONS[rule.stage]}
        if rule.options is not None:
            params["options"] = partial(self.options, name)
            if rule.gathers:
                params["partial"] = "--partial" if self._partial else ""
        return SimpleNamespace(
            inputs=partial(self.inputs, name),
            outputs=rule.outputs,
            params=params,
            log=PATTERNS.log(*PLACES[name]),
            benchmark=PATTERNS.benchmark(*PLACES[name]),
        )


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

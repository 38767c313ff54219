"""The campaigns that the workflow can make, and the parts of their rules for Snakemake. Nothing here imports torch."""

import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from satm.config import NAME, REVISIONS, Resolver, canonical, load_campaign, root_of
from satm.config.layout import ACCOUNTING, OVERVIEW, PLACES
from satm.errors import UsageError, pick
from satm.run import preload
from satm.run.lock import IN_WORKFLOW
from satm.workflow.asked import Wildcards, params
from satm.workflow.check import load_checked
from satm.workflow.graph import constraints
from satm.workflow.provenance import Provenance
from satm.workflow.rules import PATTERNS, RULES, Rule


class Campaigns:
    """Every campaign that the workflow can make; each is read and checked when a job first needs it."""

    def __init__(
        self, base: Path | None, files: Iterable[Path] = (), partial: bool = False, checked: bool = False
    ) -> None:
        """Collect `files`, those of `--configfile`, and if there is a checkout, `base`, its campaigns `config/*.yaml`.

        With `partial`, tables and figures use existing results only. With `checked`, the campaigns are not checked
        here, because the process that planned this job has done it; checking takes longer than the rest.

        Raises:
            UsageError: two files would write to one folder, or the name of one of `files` cannot become a folder.
        """
        self._files = list(files)
        self._partial = partial
        self._checked = checked
        self._loaded: dict[str, Resolver] = {}
        self._provenance: dict[str, Provenance] = {}
        self.force: Callable[[Iterable[str]], object] | None = None
        """Makes files again that exist; None: nothing is compared with the campaigns."""
        known = sorted(base.glob("config/*.yaml")) if base else []
        self.paths = {root_of(path): path for path in known if re.fullmatch(NAME, path.stem)}
        for path in self._files:
            root = root_of(path)
            if root in self.paths and not self.paths[root].samefile(path):
                raise UsageError(f"{path} and {self.paths[root]} would both write to {root}; rename one of them")
            self.paths[root] = path

    def of(self, root: str) -> Resolver:
        """Return the campaign that writes below `root`, checked.

        Raises:
            UsageError: the file is unusable.
        """
        if root not in self._loaded:
            path = pick(root, self.paths, "folder of a campaign")
            self._loaded[root] = load_campaign(path) if self._checked else load_checked(path)
        return self._loaded[root]

    def check(self, arguments: Iterable[str]) -> None:
        """Read the campaigns of `--configfile`, and those of files named on the command line.

        This reports a mistake in one line: Snakemake adds a traceback to the errors of an input function.
        """
        for path in self._files:
            self.of(root_of(path))
        roots = sorted(self.paths, key=len, reverse=True)
        for argument in arguments:
            if root := next((root for root in roots if argument.startswith(f"{root}/")), None):
                self.of(root)

    def constraints(self) -> dict[str, str]:
        """Return the pattern of each wildcard."""
        return constraints(self.paths)

    def defaults(self, _wildcards: Wildcards) -> list[str]:
        """Return all tables and figures of the campaigns of `--configfile`, or of the paper's."""
        roots = [root_of(path) for path in self._files] or ["results"]
        return [path for root in roots for path in self.targets(root)]

    def targets(self, root: str) -> list[str]:
        """Return every table and figure of the campaign below `root`."""
        names = SimpleNamespace(root=root)
        return [*self.tables(names), *self.figures(names)]

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
            UsageError: a wildcard is not a name in the campaign.
        """
        resolver, entry = self.of(wildcards.root), RULES[rule]
        inputs = {name: files(resolver, wildcards) for name, files in entry.inputs.items()}
        if self._partial and entry.gathers:
            return {name: [path for path in files if Path(path).is_file()] for name, files in inputs.items()}
        return inputs

    def planned_inputs(self, rule: str, wildcards: Any) -> dict[str, list[str]]:
        """Return the input files of a job of Snakemake; a result that differs from what is asked for is made again.

        Snakemake itself notices neither a result that it did not make, nor one that was replaced, nor a missing input
        of a table that exists.
        """
        inputs = self.inputs(rule, wildcards)
        if self.force is None or rule in (OVERVIEW, ACCOUNTING):
            return inputs
        names = dict(wildcards.items())
        provenance = self._provenance.setdefault(names["root"], Provenance(self.of(names["root"])))
        if RULES[rule].gathers:
            difference = provenance.differing_exhibit(rule, names[rule], self._partial)
        else:
            difference = provenance.difference(rule, **names)
        if difference:
            outputs = [pattern.format(**names) for pattern in RULES[rule].outputs.values()]
            self.force(outputs)
            print(f"satm: {outputs[0]} is made again: {difference}", file=sys.stderr)
        return inputs

    def options(self, rule: str, wildcards: Wildcards) -> str:
        """Return the options that a job's result depends on beside its inputs, as one JSON text; raises as `inputs`."""
        options = RULES[rule].options
        return canonical(params(options(self.of(wildcards.root), wildcards)) if options else {})

    def config(self, wildcards: Wildcards) -> str:
        """Return the path of the campaign's file, relative if possible, so that a moved checkout runs nothing again."""
        path = self.paths[wildcards.root].absolute()
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

    def rules(self) -> SimpleNamespace:
        """Return the parts of each rule for the Snakefiles: `inputs`, `outputs`, `params`, `log` and `benchmark`."""
        return SimpleNamespace(**{name: self._rule(name, rule) for name, rule in RULES.items()})

    def _rule(self, name: str, rule: Rule) -> SimpleNamespace:
        params: dict[str, Any] = {"config": self.config, "revision": REVISIONS[rule.stage]}
        if rule.options is not None:
            params["options"] = partial(self.options, name)
            if rule.gathers:
                params["partial"] = "--partial" if self._partial else ""
        inputs, place = partial(self.planned_inputs, name), PLACES[name]
        files = {"log": PATTERNS.log(*place), "benchmark": PATTERNS.benchmark(*place)}
        return SimpleNamespace(inputs=inputs, outputs=rule.outputs, params=params, **files)


def use_this_checkout(base: Path) -> None:
    """Make jobs use this interpreter as `python` and this checkout as `satm`.

    Otherwise a Snakemake that was called by its path, without its environment activated, would run another Python; with
    `--directory` the checkout is not the working folder. A job's conda environment, if there is one, still comes first.
    A job waits for a process that a killed Snakemake has left behind at the same run.
    """
    for name, folder in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", base)):
        entries = [entry for entry in os.environ.get(name, "").split(os.pathsep) if entry]
        if str(folder) not in entries[:1]:
            os.environ[name] = os.pathsep.join([str(folder), *entries])
    os.environ.setdefault(IN_WORKFLOW, "yes")


def share_starts(workflow: Any) -> None:
    """Let jobs on this machine share the start of a process, for `onstart`; `workflow` as in `open_campaigns`."""
    if workflow.local_exec:
        preload.share_starts(os.getpid())


def open_campaigns(workflow: Any) -> Campaigns:
    """Return the campaigns, for the Snakefile; `workflow` is Snakemake's object of that name.

    Raises:
        WorkflowError: as `Campaigns`. Snakemake prints this error as one line, without a traceback.
    """
    from snakemake.exceptions import WorkflowError  # type: ignore[import-untyped]  # optional

    base = Path(workflow.basedir)
    use_this_checkout(base)
    try:
        values = dict(workflow.config_settings.config)
        partial = str(values.pop("partial", False)).lower()
        if values or partial not in ("true", "false"):
            raise UsageError(
                "--config accepts only partial=true or partial=false, for tables and figures of existing results; "
                "write other values into a campaign, for --configfile"
            )
        campaigns = Campaigns(base, workflow.configfiles, partial == "true", checked=not workflow.is_main_process)
        campaigns.check(sys.argv[1:])
        if workflow.is_main_process:
            campaigns.force = lambda paths: workflow.dag.forcefiles.update(paths)
    except UsageError as error:
        raise WorkflowError(error.listed) from None
    return campaigns

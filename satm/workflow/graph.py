"""The jobs behind the files of a campaign, without Snakemake. Nothing here imports torch."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

from satm.config import ANALYSES, FULL, NAME, Resolver, place_of
from satm.config.layout import ACCOUNTING, OVERVIEW
from satm.errors import UsageError
from satm.workflow.asked import Wildcards
from satm.workflow.rules import RULES

NUMBER = "(?:0|[1-9][0-9]*)"
"""Pattern of a number in a path, as Python writes it, so that the path is the one that the command writes."""


def constraints(roots: Iterable[str]) -> dict[str, str]:
    """Return the pattern of each wildcard, for campaigns with these folders."""
    names = ("dataset", "experts", "method", "network", "table", "figure", "search", "protocol")
    return {
        "root": "|".join(re.escape(root) for root in sorted(roots)),
        **dict.fromkeys(("ipc", "seed"), NUMBER),
        "part": f"{NUMBER}-{NUMBER}",
        "recipe": "|".join(FULL),
        "what": "|".join(ANALYSES),
        **dict.fromkeys(names, NAME),
        "table": rf"(?!(?:{OVERVIEW}|{ACCOUNTING})\.){NAME}",
    }


@dataclass(frozen=True, order=True)
class Job:
    """One job of the workflow: its rule, and its wildcards as pairs."""

    rule: str
    names: tuple[tuple[str, str], ...]

    @property
    def wildcards(self) -> Wildcards:
        """The wildcards in Snakemake's form: attributes, all of them texts."""
        return SimpleNamespace(**dict(self.names))

    @property
    def outputs(self) -> list[Path]:
        """The files that the job makes."""
        return [Path(pattern.format(**dict(self.names))) for pattern in RULES[self.rule].outputs.values()]

    @property
    def place(self) -> tuple[str, ...]:
        """Place of the log, account, benchmark and state, for the functions of the layout."""
        return place_of(self.rule, **dict(self.names))

    def __str__(self) -> str:
        return " ".join([self.rule, *(f"{name} {value}" for name, value in self.names if name != "root")])


class Source(Protocol):
    """The campaigns whose jobs are listed."""

    def constraints(self) -> dict[str, str]:
        """Return the pattern of each wildcard."""

    def inputs(self, rule: str, wildcards: Wildcards) -> dict[str, list[str]]:
        """Return the files that a job reads, by name."""


@dataclass(frozen=True)
class Single:
    """One campaign as the source of jobs."""

    resolver: Resolver

    def constraints(self) -> dict[str, str]:
        """Return the pattern of each wildcard."""
        return constraints([self.resolver.layout.root])

    def inputs(self, rule: str, wildcards: Wildcards) -> dict[str, list[str]]:
        """Return the files that a job reads, by name."""
        return {name: files(self.resolver, wildcards) for name, files in RULES[rule].inputs.items()}

    def jobs(self) -> list[Job]:
        """Return every job of all tables and figures of the campaign, sorted."""
        resolver, layout = self.resolver, self.resolver.layout
        targets = [*map(layout.table, resolver.campaign.tables), *map(layout.figure, resolver.campaign.figures)]
        return sorted(Graph(self).behind(targets))


class Graph:
    """The job that makes a file, and the jobs behind it."""

    def __init__(self, campaigns: Source) -> None:
        self._campaigns = campaigns
        groups = {name: f"(?P<{name}>{pattern})" for name, pattern in campaigns.constraints().items()}
        self._patterns = [
            (name, re.compile(re.sub(r"\\{(\w+)\\}", lambda match: groups[match[1]], re.escape(output))))
            for name, rule in RULES.items()
            for output in rule.outputs.values()
        ]
        self._makers: dict[str, Job] = {}
        self._inputs: dict[Job, list[str]] = {}

    def maker(self, path: str) -> Job:
        """Return the job that makes a file.

        Raises:
            UsageError: no rule makes it.
        """
        if path not in self._makers:
            matches = ((rule, match) for rule, pattern in self._patterns if (match := pattern.fullmatch(path)))
            rule, match = next(matches, ("", None))
            if match is None:
                raise UsageError(f"no rule makes {path}; give `satm.workflow.rules.RULES` its pattern")
            self._makers[path] = Job(rule, tuple(sorted(match.groupdict().items())))
        return self._makers[path]

    def behind(self, paths: Iterable[str]) -> set[Job]:
        """Return the jobs that make some files and all that these need; the files need not exist."""
        waiting, seen = list(paths), set[Job]()
        while waiting:
            if (job := self.maker(waiting.pop())) not in seen:
                seen.add(job)
                if job not in self._inputs:
                    inputs = self._campaigns.inputs(job.rule, job.wildcards)
                    self._inputs[job] = [path for files in inputs.values() for path in files]
                waiting += self._inputs[job]
        return seen

"""Every job of a campaign, without Snakemake. Nothing here imports torch."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from satm.config import place_of
from satm.errors import UsageError
from satm.workflow.campaigns import Campaigns
from satm.workflow.rules import RULES, Wildcards


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


def jobs(campaigns: Campaigns, root: str) -> list[Job]:
    """Return every job of all tables and figures of the campaign below `root`, sorted; their files need not exist.

    Raises:
        UsageError: the campaign is unusable.
    """
    return sorted(Graph(campaigns).behind(campaigns.targets(root)))


class Graph:
    """The job that makes a file, and the jobs behind it."""

    def __init__(self, campaigns: Campaigns) -> None:
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


def campaigns_of(path: Path) -> Campaigns:
    """Return a campaign without those of a checkout, which need not be there."""
    return Campaigns(None, [path])

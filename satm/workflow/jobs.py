"""Every job of a campaign, without Snakemake: which rule, for which names. Nothing here imports torch."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from satm.config import place_of
from satm.errors import UsageError
from satm.version import CHECKOUT
from satm.workflow.campaigns import Campaigns
from satm.workflow.rules import RULES, Wildcards


@dataclass(frozen=True, order=True)
class Job:
    """One job of the workflow.

    Args:
        rule: its name in the workflow.
        names: its wildcards, as pairs.
    """

    rule: str
    names: tuple[tuple[str, str], ...]

    @property
    def wildcards(self) -> Wildcards:
        """The names as Snakemake gives them to a rule: attributes, all of them texts."""
        return SimpleNamespace(**dict(self.names))

    @property
    def outputs(self) -> list[Path]:
        """The files that it makes."""
        return [Path(pattern.format(**dict(self.names))) for pattern in RULES[self.rule].outputs.values()]

    @property
    def place(self) -> tuple[str, ...]:
        """Where its log, account, benchmark and state are, for the functions of the layout."""
        return place_of(self.rule, **dict(self.names))

    def __str__(self) -> str:
        return " ".join([self.rule, *(f"{name} {value}" for name, value in self.names if name != "root")])


def jobs(campaigns: Campaigns, root: str) -> list[Job]:
    """Return every job of all tables and figures of a campaign, sorted, whether its files exist or not.

    Args:
        campaigns: those that are known.
        root: folder of the campaign.

    Raises:
        UsageError: the campaign cannot be used as it is.
    """
    names = SimpleNamespace(root=root)
    return sorted(Graph(campaigns).behind([*campaigns.tables(names), *campaigns.figures(names)]))


class Graph:
    """Which job makes a file, and which jobs are behind it.

    Args:
        campaigns: those that are known.
    """

    def __init__(self, campaigns: Campaigns) -> None:
        self._campaigns = campaigns
        self._patterns = _patterns(campaigns)
        self._needs: dict[Job, list[str]] = {}
        self._makers: dict[str, Job] = {}

    def maker(self, path: str) -> Job:
        """Return the job that makes a file.

        Raises:
            UsageError: no rule does.
        """
        if path not in self._makers:
            matches = ((rule, known.fullmatch(path)) for rule, some in self._patterns.items() for known in some)
            rule, match = next(((rule, match) for rule, match in matches if match), ("", None))
            if match is None:
                raise UsageError(f"no rule makes {path}; give `satm.workflow.rules.RULES` its pattern")
            self._makers[path] = Job(rule, tuple(sorted(match.groupdict().items())))
        return self._makers[path]

    def behind(self, paths: Iterable[str]) -> set[Job]:
        """Return the jobs that make some files, and all that these need, whether the files exist or not."""
        waiting = list(paths)
        seen: set[str] = set()
        found: set[Job] = set()
        while waiting:
            if (path := waiting.pop()) in seen:
                continue
            seen.add(path)
            job = self.maker(path)
            if job not in found:
                found.add(job)
                if job not in self._needs:
                    self._needs[job] = needs(self._campaigns, job)
                waiting += self._needs[job]
        return found


def needs(campaigns: Campaigns, job: Job) -> list[str]:
    """Return the files that a job reads and that another job makes."""
    return [path for files in campaigns.inputs(job.rule, job.wildcards).values() for path in files]


def campaigns_of(path: Path) -> Campaigns:
    """Return the campaigns of this checkout with one file among them."""
    return Campaigns(CHECKOUT, [path])


def _patterns(campaigns: Campaigns) -> Mapping[str, list[re.Pattern[str]]]:
    constraints = campaigns.constraints()

    def compiled(pattern: str) -> re.Pattern[str]:
        text, *parts = re.split(r"\{(\w+)\}", pattern)
        text = re.escape(text)
        for name, after in zip(parts[::2], parts[1::2], strict=True):
            known = f"(?P<{name}>" in text
            text += f"(?P={name})" if known else f"(?P<{name}>{constraints[name]})"
            text += re.escape(after)
        return re.compile(text)

    return {name: [compiled(pattern) for pattern in rule.outputs.values()] for name, rule in RULES.items()}

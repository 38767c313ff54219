"""Every job of a campaign, without Snakemake: which rule, for which names. Nothing here imports torch.

The patterns are the outputs of the workflow's rules and the needs their inputs, both by the functions that the rules
call, so that what is said of a campaign before it starts is said of the jobs that would run.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from satm.config import ACCOUNTING, OVERVIEW, PATTERN, Layout
from satm.errors import UsageError
from satm.version import CHECKOUT
from satm.workflow.campaigns import Campaigns, Wildcards, cell_of


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

    def __str__(self) -> str:
        return " ".join([self.rule, *(f"{name} {value}" for name, value in self.names if name != "root")])


OUTPUTS: dict[str, Callable[[Layout], tuple[str, ...]]] = {
    "images": lambda layout: (layout.images("{dataset}"),),
    "zca": lambda layout: (layout.zca("{dataset}"),),
    "experts_part": lambda layout: (layout.experts_part("{dataset}", "{experts}", "{part}"),),
    "experts": lambda layout: (layout.manifest("{dataset}", "{experts}"),),
    "difficulty": lambda layout: (layout.difficulty("{dataset}", "{experts}"),),
    "distill": lambda layout: (layout.distilled(PATTERN), layout.metrics(PATTERN)),
    "evaluate": lambda layout: (layout.evaluation(PATTERN, "{network}"),),
    "variants": lambda layout: (layout.variants(PATTERN, "{network}"),),
    "full": lambda layout: (layout.full("{dataset}", "{recipe}", "{network}"),),
    "continual": lambda layout: (layout.continual(PATTERN, "{protocol}"),),
    "nas": lambda layout: (layout.nas(PATTERN, "{search}", "{part}"),),
    "nas_real": lambda layout: (layout.nas_real("{dataset}", "{search}", "{part}"),),
    "analysis": lambda layout: (layout.analysis("{what}", PATTERN),),
    "expert_sharpness": lambda layout: (layout.expert_sharpness("{dataset}", "{experts}"),),
    "overview": lambda layout: (layout.table(OVERVIEW),),
    "accounting": lambda layout: (layout.table(ACCOUNTING),),
    "table": lambda layout: (layout.table("{table}"),),
    "figure": lambda layout: (layout.figure("{figure}"),),
}
"""Patterns of a rule's files by its name."""

PLACES: dict[str, tuple[str, ...]] = {
    "images": ("data", "{dataset}", "images"),
    "zca": ("data", "{dataset}", "zca"),
    "experts_part": ("experts", "{dataset}", "{experts}", "part-{part}"),
    "experts": ("experts", "{dataset}", "{experts}", "manifest"),
    "difficulty": ("experts", "{dataset}", "{experts}", "difficulty"),
    "distill": ("distill", *PATTERN.place),
    "evaluate": ("evaluate", *PATTERN.place, "{network}"),
    "variants": ("variants", *PATTERN.place, "{network}"),
    "full": ("full", "{dataset}", "{recipe}", "{network}"),
    "continual": ("continual", *PATTERN.place, "{protocol}"),
    "nas": ("nas", *PATTERN.place, "{search}", "part-{part}"),
    "nas_real": ("nas", "{dataset}", "real", "{search}", "part-{part}"),
    "analysis": ("{what}", *PATTERN.place),
    "expert_sharpness": ("expert-sharpness", "{dataset}", "{experts}"),
    "overview": ("table", OVERVIEW),
    "accounting": ("table", ACCOUNTING),
    "table": ("table", "{table}"),
    "figure": ("figure", "{figure}"),
}
"""Where a rule's log, account and benchmark are, by its name (`satm.config.Layout.log`)."""


def outputs(job: Job) -> list[Path]:
    """Return the files that a job makes."""
    names = dict(job.names)
    return [Path(pattern.format(**names)) for pattern in OUTPUTS[job.rule](Layout(names["root"]))]


def place(job: Job) -> list[str]:
    """Return where a job's log, account and benchmark are, for the functions of the layout."""
    names = dict(job.names)
    return [part.format(**names) for part in PLACES[job.rule]]


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
            self._makers[path] = _maker(self._patterns, path)
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
    names = job.wildcards
    layout = Layout(names.root)
    prepared = partial_of(campaigns.prepared, names)

    def distilled() -> list[str]:
        return [layout.distilled(cell_of(names))]

    def manifest() -> list[str]:
        return [layout.manifest(names.dataset, names.experts)]

    wanted: dict[str, tuple[Callable[[], Iterable[str]], ...]] = {
        "images": (),
        "zca": (lambda: [layout.images(names.dataset)],),
        "experts_part": (prepared, partial_of(campaigns.difficulty, names)),
        "experts": (partial_of(campaigns.parts, names),),
        "difficulty": (prepared, manifest),
        "distill": (prepared, partial_of(campaigns.manifest, names)),
        "evaluate": (prepared, distilled),
        "variants": (prepared, partial_of(campaigns.teacher, names), distilled),
        "full": (prepared,),
        "continual": (prepared, partial_of(campaigns.learned, names)),
        "nas": (prepared, distilled),
        "nas_real": (prepared,),
        "analysis": (prepared, partial_of(campaigns.measured_along, names), distilled),
        "expert_sharpness": (prepared, manifest),
        "overview": (partial_of(campaigns.tabulated, names),),
        "accounting": (partial_of(campaigns.tabulated, names),),
        "table": (partial_of(campaigns.measured, names),),
        "figure": (partial_of(campaigns.drawn, names),),
    }
    return [path for files in wanted[job.rule] for path in files()]


def partial_of(function: Callable[[Wildcards], Iterable[str]], names: Wildcards) -> Callable[[], Iterable[str]]:
    """Return the function with its wildcards put in."""
    return lambda: function(names)


def campaigns_of(path: Path) -> Campaigns:
    """Return the campaigns of this checkout with one file among them."""
    return Campaigns(CHECKOUT, [path])


def _patterns(campaigns: Campaigns) -> Mapping[str, list[re.Pattern[str]]]:
    constraints = campaigns.constraints()
    layout = Layout("{root}")

    def compiled(pattern: str) -> re.Pattern[str]:
        parts = re.split(r"\{(\w+)\}", pattern)
        seen: set[str] = set()
        text = ""
        for place, part in enumerate(parts):
            if place % 2 == 0:
                text += re.escape(part)
            elif part in seen:
                text += f"(?P={part})"
            else:
                seen.add(part)
                text += f"(?P<{part}>{constraints[part]})"
        return re.compile(text)

    return {rule: [compiled(pattern) for pattern in outputs(layout)] for rule, outputs in OUTPUTS.items()}


def _maker(patterns: Mapping[str, list[re.Pattern[str]]], path: str) -> Job:
    for rule, known in patterns.items():
        for pattern in known:
            if match := pattern.fullmatch(path):
                return Job(rule, tuple(sorted(match.groupdict().items())))
    raise UsageError(f"no rule makes {path}; give `satm.workflow.jobs.OUTPUTS` its pattern")

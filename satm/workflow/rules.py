"""The table of jobs: outputs, inputs and options of each rule of the workflow. Nothing here imports torch.

The Snakefiles, the plan, the forecast and the accounting read it. Wildcards are named like the flags of the command
line.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from satm.config import (
    ACCOUNTING,
    ANALYSES,
    OVERVIEW,
    PATTERN,
    Exhibit,
    FigureOptions,
    Layout,
    Resolver,
    StepsOptions,
    parts,
)
from satm.workflow import asked
from satm.workflow.asked import Asked, Wildcards, cell_of, sets_of
from satm.workflow.options import experts_of

Input = Callable[[Resolver, Wildcards], list[str]]
"""Files that a job reads."""


@dataclass(frozen=True)
class Rule:
    """One kind of job; its place (log, account, benchmark, state) is in `satm.config.PLACES`.

    Args:
        stage: command that runs, as in `satm.config.REVISIONS`.
        outputs: patterns of files by name.
        inputs: functions that list the input files, by name.
        options: what the campaign asks of the result beside its inputs; None: nothing.
        keeps: whether results are kept until the workflow has succeeded (`satm.workflow.recovery`).
        gathers: whether the job only presents other results, and with `partial` only existing ones.
    """

    stage: str
    outputs: Mapping[str, str]
    inputs: Mapping[str, Input]
    options: Callable[[Resolver, Wildcards], Asked] | None = None
    keeps: bool = True
    gathers: bool = False


def _dataset_files(resolver: Resolver, names: Wildcards) -> list[str]:
    """Return the files of a dataset's images and whitening, if any; a step uses those of the whole dataset."""
    whole = resolver.whole(names.dataset)
    images = [resolver.layout.images(whole)]
    return [*images, resolver.layout.zca(whole)] if resolver.dataset(whole).zca else images


def _difficulty(resolver: Resolver, names: Wildcards) -> list[str]:
    """Return the file with the difficulty of each image, for experts with a curriculum."""
    recipe = resolver.experts(names.experts, names.dataset)
    raters = resolver.difficulty(names.experts, names.dataset, recipe)
    return [] if raters is None else [resolver.layout.difficulty(names.dataset, raters)]


def _parts(resolver: Resolver, names: Wildcards) -> list[str]:
    recipe = resolver.experts(names.experts, names.dataset)
    return [resolver.layout.experts_part(names.dataset, names.experts, part) for part in parts(recipe)]


def _method_experts(resolver: Resolver, names: Wildcards) -> list[str]:
    """Return the manifest of the experts that a method matches; empty if it uses none."""
    experts = experts_of(resolver.method(cell_of(names)))
    return [] if experts is None else [resolver.layout.manifest(names.dataset, experts)]


def _analysis_experts(resolver: Resolver, names: Wildcards) -> list[str]:
    """Return the manifest of the experts in a measurement's options, or else of those that the method matches."""
    experts = resolver.analysis(cell_of(names)).experts
    if experts is None or "experts" not in ANALYSES[names.what]:
        return _method_experts(resolver, names)
    return [resolver.layout.manifest(names.dataset, experts)]


def _sets(resolver: Resolver, names: Wildcards) -> list[str]:
    return [resolver.layout.distilled(cell) for cell in sets_of(resolver, names)]


def _exhibit_files(resolver: Resolver, names: Wildcards) -> list[str]:
    """Return the results that a table or figure shows, the synthetic sets behind them, and whitenings of pictures."""
    if hasattr(names, "table"):
        entry: Exhibit = resolver.table(names.table)
        files = resolver.table(names.table).files(resolver.layout, names.table)
    else:
        entry = resolver.figure(names.figure)
        files = resolver.figure(names.figure).files(resolver.layout, resolver.campaign.tables)
    shown = entry.tables_shown(resolver.campaign.tables).values() if isinstance(entry, FigureOptions) else ()
    for one in (entry, *shown):
        steps = isinstance(one, StepsOptions)
        for cell in one.runs():
            sources = one.sources(cell.dataset) if steps else [cell.dataset]
            files += [resolver.layout.distilled(cell._replace(dataset=source)) for source in sources]
            if isinstance(one, FigureOptions) and one.SHOWS_PIXELS:
                files += _dataset_files(resolver, cell)[1:]
    return list(dict.fromkeys(files))


def _tables(resolver: Resolver, names: Wildcards) -> list[str]:
    return [resolver.layout.table(name) for name in resolver.campaign.tables]


PATTERNS = Layout("{root}")
"""Paths with wildcards in place of values; `{root}` is the folder of a campaign."""

_EXPERTS = ("{dataset}", "{experts}")
_DATA: dict[str, Input] = {"data": _dataset_files}
_ON_EXPERTS = _DATA | {"experts": lambda resolver, names: [resolver.layout.manifest(names.dataset, names.experts)]}
_ON_SET = _DATA | {"distilled": _sets}
_TABLES: dict[str, Input] = {"tables": _tables}


def _files(path: Callable[[str, str], str], name: str, kinds: str) -> dict[str, str]:
    return {kind: path(name, kind) for kind in kinds.split()}


RULES: dict[str, Rule] = {
    "images": Rule(
        "data",
        {"images": PATTERNS.images("{dataset}")},
        {},
        asked.of_images,
        keeps=False,
    ),
    "zca": Rule(
        "data",
        {"zca": PATTERNS.zca("{dataset}")},
        {"images": lambda resolver, names: [resolver.layout.images(names.dataset)]},
        asked.of_whitening,
        keeps=False,
    ),
    "experts_part": Rule(
        "experts",
        {"part": PATTERNS.experts_part(*_EXPERTS, "{part}")},
        _DATA | {"difficulty": _difficulty},
        asked.of_experts,
        keeps=False,
    ),
    "experts": Rule(
        "experts", {"manifest": PATTERNS.manifest(*_EXPERTS)}, {"parts": _parts}, asked.of_experts, keeps=False
    ),
    "difficulty": Rule(
        "experts",
        {"difficulty": PATTERNS.difficulty(*_EXPERTS)},
        _ON_EXPERTS,
        asked.of_difficulty,
    ),
    "distill": Rule(
        "distill",
        {"distilled": PATTERNS.distilled(PATTERN), "metrics": PATTERNS.metrics(PATTERN)},
        _DATA | {"experts": _method_experts},
        asked.of_set,
    ),
    "evaluate": Rule(
        "evaluate", {"evaluation": PATTERNS.evaluation(PATTERN, "{network}")}, _ON_SET, asked.of_evaluation
    ),
    "variants": Rule(
        "evaluate",
        {"evaluation": PATTERNS.variants(PATTERN, "{network}")},
        _ON_SET | {"teacher": lambda resolver, names: [resolver.layout.manifest(names.dataset, asked.TEACHER)]},
        asked.of_variants,
    ),
    "full": Rule(
        "evaluate", {"evaluation": PATTERNS.full("{dataset}", "{recipe}", "{network}")}, _DATA, asked.of_evaluation
    ),
    "continual": Rule(
        "continual",
        {"accuracies": PATTERNS.continual(PATTERN, "{protocol}")},
        _ON_SET,
        asked.of_continual,
    ),
    "nas": Rule(
        "nas",
        {"accuracies": PATTERNS.nas(PATTERN, "{search}", "{part}")},
        _ON_SET,
        partial(asked.of_search, kind="proxy"),
    ),
    "nas_real": Rule(
        "nas",
        {"accuracies": PATTERNS.nas_real("{dataset}", "{search}", "{part}")},
        _DATA,
        partial(asked.of_search, kind="real"),
    ),
    "analysis": Rule(
        "analyse",
        {"rows": PATTERNS.analysis("{what}", PATTERN)},
        _ON_SET | {"experts": _analysis_experts},
        asked.of_analysis,
    ),
    "expert_sharpness": Rule(
        "analyse",
        {"sharpness": PATTERNS.expert_sharpness(*_EXPERTS)},
        _ON_EXPERTS,
        lambda resolver, names: {"experts": asked.of_experts(resolver, names)},
    ),
    "overview": Rule("table", _files(PATTERNS.table, OVERVIEW, "csv md html"), _TABLES, gathers=True),
    "accounting": Rule("table", _files(PATTERNS.table, ACCOUNTING, "csv md tex html"), _TABLES, gathers=True),
    "table": Rule(
        "table",
        _files(PATTERNS.table, "{table}", "csv md tex html"),
        {"measured": _exhibit_files},
        asked.of_exhibit,
        gathers=True,
    ),
    "figure": Rule(
        "figure",
        _files(PATTERNS.figure, "{figure}", "png pdf csv"),
        {"measured": _exhibit_files},
        asked.of_exhibit,
        gathers=True,
    ),
}
"""Every rule whose jobs compute, in the order of the work."""

ALL = {what: PATTERNS.all(what) for what in ("tables", "figures")}
"""Patterns of the files that follow all tables or all figures of a campaign."""

"""The table of jobs: outputs, inputs and options of each rule of the workflow. Nothing here imports torch.

The Snakefiles, the plan, the forecast and the accounting read it. Wildcards are named like the flags of the command
line. Options are those that a job uses and that differ from the default, so that a new option, method or network
reruns no job that does not use it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel

from satm.config import ACCOUNTING, ANALYSES, OVERVIEW, PATTERN, Cell, EvaluateOptions, Layout, Options, Resolver, parts
from satm.workflow.options import experts_of, method_options

Wildcards = Any
"""Snakemake's wildcards of a job: attributes, all of them texts."""

Input = Callable[[Resolver, Wildcards], list[str]]
"""Files that a job reads."""

DECODING = {
    *("source", "path", "train", "test", "image_column", "label_column", "classes", "size"),
    *("validation", "split_seed", "mean", "std"),
}
"""Options of a dataset that determine its stored images; they reach later stages through that file."""

WHITENING = {"zca_eps", "zca_per_image", "zca_relative"}
"""Options of a dataset that determine its whitening."""

SHARING = {"count", "per_job", "difficulty_count"}
"""Options that change no expert: their number, their grouping into jobs and the number of raters."""


@dataclass(frozen=True)
class Rule:
    """One kind of job; its place (log, account, benchmark, state) is in `satm.config.PLACES`.

    Args:
        stage: command that runs, as in `satm.config.REVISIONS`.
        outputs: patterns of files by name.
        inputs: functions that list the input files, by name.
        options: options that the result depends on beside its inputs; None: none.
        keeps: whether results are kept until the workflow has succeeded (`satm.workflow.recovery`).
        gathers: whether the job only presents other results, and with `partial` only existing ones.
    """

    stage: str
    outputs: Mapping[str, str]
    inputs: Mapping[str, Input]
    options: Callable[[Resolver, Wildcards], Mapping[str, Any] | BaseModel] | None = None
    keeps: bool = True
    gathers: bool = False


def cell_of(names: Wildcards) -> Cell:
    """Return the synthetic set of a job."""
    return Cell(names.dataset, int(names.ipc), names.method, int(names.seed))


# Files


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


def _continual_sets(resolver: Resolver, names: Wildcards) -> list[str]:
    """Return the synthetic sets of continual learning."""
    cell = cell_of(names)
    sources = resolver.learning(names.protocol, cell).sources(names.dataset)
    return [resolver.layout.distilled(cell._replace(dataset=source)) for source in sources]


def _exhibit_files(resolver: Resolver, names: Wildcards) -> list[str]:
    if hasattr(names, "table"):
        return resolver.table(names.table).files(resolver.layout, names.table)
    return resolver.figure(names.figure).files(resolver.layout, resolver.campaign.tables)


def _tables(resolver: Resolver, names: Wildcards) -> list[str]:
    return [resolver.layout.table(name) for name in resolver.campaign.tables]


# Options


def _non_default(options: Options, only: set[str] | None = None, without: set[str] | None = None) -> dict[str, Any]:
    """Return the options that differ from the defaults."""
    return options.model_dump(mode="json", include=only, exclude=without, exclude_defaults=True)


def _data(resolver: Resolver, names: Wildcards) -> dict[str, Any]:
    """Return the options of a dataset that affect the training of networks on it."""
    return {"dataset": _non_default(resolver.dataset(names.dataset), without=DECODING)}


def _experts(resolver: Resolver, names: Wildcards) -> dict[str, Any]:
    recipe = resolver.experts(names.experts, names.dataset)
    return _network_options(resolver, names, recipe.network) | {"recipe": _non_default(recipe, without=SHARING)}


def _distill(resolver: Resolver, names: Wildcards) -> dict[str, Any]:
    """Return the options of a distillation; those of the experts reach it through their files."""
    method_options(values := resolver.method(cell_of(names)))
    return {"method": values, **_data(resolver, names)}


def _network_options(resolver: Resolver, names: Wildcards, network: str) -> dict[str, Any]:
    return {"network": resolver.network(network, names.dataset), **_data(resolver, names)}


def schedule(resolver: Resolver, names: Wildcards) -> EvaluateOptions:
    """Return the options for training networks on a synthetic set, or with a recipe on all real images."""
    if hasattr(names, "recipe"):
        return resolver.full(names.recipe, names.dataset, names.network)
    return resolver.evaluation(cell_of(names), names.network)


def _evaluation(resolver: Resolver, names: Wildcards) -> dict[str, Any]:
    return _network_options(resolver, names, names.network) | {"schedule": _non_default(schedule(resolver, names))}


def _continual(resolver: Resolver, names: Wildcards) -> dict[str, Any]:
    learning = resolver.learning(names.protocol, cell_of(names))
    return _network_options(resolver, names, learning.network) | {"learning": _non_default(learning)}


def _search(resolver: Resolver, names: Wildcards, kind: str) -> dict[str, Any]:
    """Return the options of one part of a search, whose name has the positions of its candidates."""
    only = {"sample_seed", "width_factor", kind}
    return _non_default(resolver.search(names.search), only=only) | _data(resolver, names)


def _analysis(resolver: Resolver, names: Wildcards) -> dict[str, Any]:
    """Return the options of a measurement at a synthetic set; all methods share the rho of `satm`."""
    cell = cell_of(names)
    shared = _non_default(resolver.analysis(cell), only=set(ANALYSES[names.what]))
    if names.what in ("sharpness", "bounds"):
        shared["rho"] = resolver.method(cell._replace(method="satm")).get("rho")
    return _distill(resolver, names) | shared


PATTERNS = Layout("{root}")
"""Paths with wildcards in place of values; `{root}` is the folder of a campaign."""

_EXPERTS = ("{dataset}", "{experts}")
_DATA: dict[str, Input] = {"data": _dataset_files}
_ON_EXPERTS = _DATA | {"experts": lambda resolver, names: [resolver.layout.manifest(names.dataset, names.experts)]}
_ON_SET = _DATA | {"distilled": lambda resolver, names: [resolver.layout.distilled(cell_of(names))]}
_TABLES: dict[str, Input] = {"tables": _tables}


def _files(path: Callable[[str, str], str], name: str, kinds: str) -> dict[str, str]:
    return {kind: path(name, kind) for kind in kinds.split()}


RULES: dict[str, Rule] = {
    "images": Rule(
        "data",
        {"images": PATTERNS.images("{dataset}")},
        {},
        lambda resolver, names: _non_default(resolver.dataset(names.dataset), only=DECODING),
        keeps=False,
    ),
    "zca": Rule(
        "data",
        {"zca": PATTERNS.zca("{dataset}")},
        {"images": lambda resolver, names: [resolver.layout.images(names.dataset)]},
        lambda resolver, names: _non_default(resolver.dataset(names.dataset), only=WHITENING),
        keeps=False,
    ),
    "experts_part": Rule(
        "experts",
        {"part": PATTERNS.experts_part(*_EXPERTS, "{part}")},
        _DATA | {"difficulty": _difficulty},
        _experts,
        keeps=False,
    ),
    "experts": Rule("experts", {"manifest": PATTERNS.manifest(*_EXPERTS)}, {"parts": _parts}, _experts, keeps=False),
    "difficulty": Rule(
        "experts",
        {"difficulty": PATTERNS.difficulty(*_EXPERTS)},
        _ON_EXPERTS,
        lambda resolver, names: _non_default(resolver.experts(names.experts, names.dataset), only={"difficulty_count"}),
    ),
    "distill": Rule(
        "distill",
        {"distilled": PATTERNS.distilled(PATTERN), "metrics": PATTERNS.metrics(PATTERN)},
        _DATA | {"experts": _method_experts},
        _distill,
    ),
    "evaluate": Rule("evaluate", {"evaluation": PATTERNS.evaluation(PATTERN, "{network}")}, _ON_SET, _evaluation),
    "variants": Rule(
        "evaluate",
        {"evaluation": PATTERNS.variants(PATTERN, "{network}")},
        _ON_SET | {"teacher": lambda resolver, names: [resolver.layout.manifest(names.dataset, "sgd")]},
        _evaluation,
    ),
    "full": Rule("evaluate", {"evaluation": PATTERNS.full("{dataset}", "{recipe}", "{network}")}, _DATA, _evaluation),
    "continual": Rule(
        "continual",
        {"accuracies": PATTERNS.continual(PATTERN, "{protocol}")},
        _DATA | {"distilled": _continual_sets},
        _continual,
    ),
    "nas": Rule(
        "nas", {"accuracies": PATTERNS.nas(PATTERN, "{search}", "{part}")}, _ON_SET, partial(_search, kind="proxy")
    ),
    "nas_real": Rule(
        "nas",
        {"accuracies": PATTERNS.nas_real("{dataset}", "{search}", "{part}")},
        _DATA,
        partial(_search, kind="real"),
    ),
    "analysis": Rule(
        "analyse", {"rows": PATTERNS.analysis("{what}", PATTERN)}, _ON_SET | {"experts": _analysis_experts}, _analysis
    ),
    "expert_sharpness": Rule("analyse", {"sharpness": PATTERNS.expert_sharpness(*_EXPERTS)}, _ON_EXPERTS),
    "overview": Rule("table", _files(PATTERNS.table, OVERVIEW, "csv md html"), _TABLES, gathers=True),
    "accounting": Rule("table", _files(PATTERNS.table, ACCOUNTING, "csv md tex html"), _TABLES, gathers=True),
    "table": Rule(
        "table",
        _files(PATTERNS.table, "{table}", "csv md tex html"),
        {"measured": _exhibit_files},
        lambda resolver, names: resolver.table(names.table),
        gathers=True,
    ),
    "figure": Rule(
        "figure",
        _files(PATTERNS.figure, "{figure}", "png pdf csv"),
        {"measured": _exhibit_files},
        lambda resolver, names: resolver.figure(names.figure),
        gathers=True,
    ),
}
"""Every rule whose jobs compute, in the order of the work."""

ALL = {what: PATTERNS.all(what) for what in ("tables", "figures")}
"""Patterns of the files that follow all tables or all figures of a campaign."""

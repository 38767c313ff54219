"""Every synthetic set of the papers' campaign has the published settings, or says which of them are not published.

`published_hyperparameters.csv` has what papers and public code print, by source, dataset and images per class.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas
import pytest

from satm.config import Cell, Resolver, load_campaign
from satm.config.methods import IterativeOptions, MatchingOptions, UnrolledOptions
from satm.methods import resolve
from satm.workflow.explain import OURS, Explained, explain_exhibit

ROOT = Path(__file__).parent.parent
PRINTED = pandas.read_csv(Path(__file__).with_name("published_hyperparameters.csv"))

SOURCES = {
    **{"satm": "satm", "ftd": "ftd", "contra": "contra", "ratbptt": "ratbptt", "mtt": "mtt-dcbench"},
    **{"datm": "datm-repo", "tesla": "tesla-repo"},
}
"""Where the rows of a method are from."""

SUBSETS = {"mtt": "mtt-issue-1", "ftd": "ftd-issue-3"}
"""Where those for subsets of ImageNet are from."""

CLASSES = {"cifar100": 100, "tiny-imagenet": 200, "cub200": 200, "imagenet1k": 1000}
"""Classes of datasets that do not have ten."""

WHITENED = {
    "mtt": "SATM's and ConTra's own comparisons, analyses, searches and figures whiten what MTT's tables do not",
    "tesla": "TESLA's readme whitens for the experts on CIFAR-10 and not for the distillation, which cannot fit",
}
"""Methods whose sets are whitened in some cells although their source does not whiten, and why."""


@cache
def paper() -> tuple[Resolver, dict[Cell, Explained]]:
    """Return the papers' campaign and every synthetic set of its tables and figures."""
    resolver = load_campaign(ROOT / "config" / "paper.yaml")
    exhibits = (*resolver.campaign.tables.values(), *resolver.campaign.figures.values())
    return resolver, {found.cell: found for exhibit in exhibits for found in explain_exhibit(resolver, exhibit)}


def row_of(resolver: Resolver, cell: Cell) -> "pandas.Series[Any] | None":
    """Return the printed settings of a set; None: there are none."""
    base, name = resolver.method(cell)["method"], resolver.dataset(cell.dataset).variant_of or cell.dataset
    source, dataset = SOURCES.get(base), name
    if name in ("imagenette", "imagewoof", "imagefruit", "imagemeow"):
        source, dataset = SUBSETS.get(base), "imagenet-subset"
    rows = PRINTED[(PRINTED["source"] == source) & (PRINTED["dataset"] == dataset) & (PRINTED["ipc"] == cell.ipc)]
    assert len(rows) < 2
    return None if rows.empty else rows.iloc[0]


def differing(row: "pandas.Series[Any]", options: Any, images: int) -> Iterator[str]:
    """Yield the names of the options that differ from the printed ones, for a set of `images` images."""
    held: dict[str, tuple[str, Any]] = {
        "lr_pixels": ("lr_images", options.lr_images),
        "lr_label": ("lr_labels", options.lr_labels),
        "lr_step_size": ("lr_step_size", options.lr_step_size),
        "lr_teacher": ("step_size", options.step_size),
        "ema_decay": ("ema", options.ema),
        "iterations": ("iterations", options.iterations),
    }
    if isinstance(options, MatchingOptions):
        held |= {name: (name, getattr(options, name)) for name in ("expert_epochs", "min_start_epoch", "beta")}
        held |= {"syn_steps": ("inner_steps", options.inner_steps), "segments_K": ("concurrent", options.concurrent)}
        held |= {"segment_distance_R": ("distance", options.spacing)}
        held |= {"max_start_epoch": ("max_start_epoch", options.max_start_epoch)}
        held |= {"syn_batch_size": ("batch_size", min(options.batch_size or images, images))}
    else:
        held |= {"unroll_N": ("inner_steps", options.inner_steps), "window": ("window", options.window)}
    for column, (option, value) in held.items():
        if isinstance(printed := row[column], float) and math.isnan(printed):
            continue
        expected = float(str(printed).split("/")[0])  # FTD gives two for one option
        if value != (min(expected, images) if option == "batch_size" else expected):
            yield option
    outer = str(row["outer_optimizer"])
    if "momentum" in outer and (options.outer, options.momentum) != ("sgd", 0.5):
        yield "momentum"
    if outer.startswith("Adam") and options.outer != "adam":
        yield "outer"
    if str(row["inner_optimizer"]).startswith("Adam") and options.inner != "adam":
        yield "inner"


def test_every_set_has_the_published_settings_unless_its_entry_changes_them() -> None:
    resolver, found = paper()
    compared = Counter[str]()
    for cell, explained in found.items():
        if (row := row_of(resolver, cell)) is None:
            continue
        part = next(part for part in explained.parts if part.name == "distillation")
        classes = CLASSES.get(str(row["dataset"]), 10)
        for option in differing(row, part.options, classes * cell.ipc):
            # Not from a row of the presets that claims to be published.
            source = part.sources.get(option, "")
            assert "config/paper.yaml" in source or OURS.search(source), (cell, option, source)
        compared[str(row["source"])] += 1
    assert sum(compared.values()) > 400 and set(compared) == {*SOURCES.values(), *SUBSETS.values()}


def test_every_set_is_whitened_as_published_or_it_is_said_why_not() -> None:
    resolver, found = paper()
    reasons = set()
    for cell in found:
        row = row_of(resolver, cell)
        if row is None or row["zca"] not in ("Y", "N"):
            continue
        if resolver.dataset(cell.dataset).zca != (row["zca"] == "Y"):
            assert row["zca"] == "N", cell
            reasons.add(resolver.method(cell)["method"])
    assert reasons == set(WHITENED)


def test_flat_experts_are_as_published() -> None:
    resolver, found = paper()
    compared = 0
    for cell, explained in found.items():
        row = row_of(resolver, cell)
        if row is None or "alpha" not in str(row["rho_or_alpha"]):
            continue
        rho, alpha = map(float, re.findall(r"(?:rho|alpha)=([\d.]+)", row["rho_or_alpha"]))
        options: Any = next(part for part in explained.parts if part.name.startswith("experts ")).options
        if not cell.method.startswith("ftd-rho-"):  # FTD Figure 5
            assert (options.optimiser, options.rho, options.alpha) == ("flat", rho, alpha), cell
            compared += 1
    assert compared > 30


def test_every_set_says_where_its_settings_are_from() -> None:
    for cell, explained in paper()[1].items():
        part = next(part for part in explained.parts if part.name == "distillation")
        if isinstance(part.options, IterativeOptions):
            looping = isinstance(part.options, MatchingOptions | UnrolledOptions)
            assert ("inner_steps" if looping else "lr_images") in part.sources, cell
        for each in explained.parts:
            assert not [source for source in each.sources.values() if re.fullmatch(r"settings\.\d+ of \S+|", source)], (
                cell
            )


def test_the_documents_count_the_sets_whose_settings_are_not_published() -> None:
    _, found = paper()
    ours = sum(bool(explained.ours) for explained in found.values())
    text = (ROOT / "config" / "README.md").read_text().replace("\n", " ")
    print(f"{len(found)} synthetic sets, {ours} with options that are not published")
    assert f"Of the {len(found)} synthetic sets of `paper.yaml`, {ours} have options that are not published" in text


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "expected"),
    [
        ("satm", "cifar10", 10, {"iterations": 10000}),
        ("satm-5000", "cifar10", 10, {"iterations": 5000, "lr_images": 50}),
        ("satm-second", "cifar100", 10, {"keep_divisor": 1, "step_size_gradient": "exact"}),
        ("satm-rho-0", "cifar10", 1, {"rho": 0.0, "lr_images": 1000}),
        ("satm-gamma-0", "cifar10", 1, {"gamma": 0.0}),
        ("mtt-table6", "cifar10", 1, {"lr_images": 1000, "lr_step_size": 1e-6, "keep_divisor": 1, "ema": None}),
        ("mtt-table6", "cifar100", 10, {"batch_size": 500, "step_size_gradient": "exact", "iterations": 10000}),
        *[
            (name, "imagenet1k", ipc, {"inner_steps": 10, "expert_epochs": 3, "max_start_epoch": 10})
            for name, ipcs in {"tesla": (1, 2, 10, 50), "satm": (1, 50), "contra-tesla": (10,)}.items()
            for ipc in ipcs
        ],
        ("satm", "imagenet1k", 1, {"labels": "teacher", "batch_size": 100, "lr_images": 1e4, "lr_step_size": 1e-4}),
        ("contra-tesla", "imagenet1k", 10, {"iterations": 10000, "engine": "tesla", "batch_size": 100}),
        ("tesla", "cifar10", 10, {"labels": "hard", "tesla_scale": "code", "inner_steps": 30, "step_size": 0.001}),
        ("tesla", "tiny-imagenet", 1, {"labels": "hard", "tesla_scale": "code", "inner_steps": 10}),
        ("dm", "cifar10", 500, {"lr_images": 10}),
        ("dm", "cifar10-plain", 50, {"lr_images": 1}),
        ("dsa", "cifar10", 1000, {"iterations": 50000, "outer_loop": 50}),  # 1,000 episodes
        ("dc", "cifar100-dc", 100, {"iterations": 50000, "outer_loop": 50, "inner_loop": 10}),
        ("ftd-code", "cifar10", 10, {"experts": "flat-code-03"}),
        ("ftd-code", "cifar10", 50, {"experts": "flat-code-1"}),
        ("datm", "cifar100", 50, {"init": "real", "label_experts": 1}),
        ("ratbptt-sgd", "cifar10-standardised", 10, {"inner_momentum": 0.9, "inner_weight_decay": 5e-4}),
        ("ratbptt-120-pass", "cifar10-standardised", 10, {"redraw": "pass"}),
        ("contra-watched", "cifar10", 1, {"beta": 0.2, "distance": None, "max_start_epoch": 20}),
        ("contra-watched", "cifar10", 10, {"beta": 0.2, "distance": None, "max_start_epoch": 40}),
        ("mtt", "cifar10", 50, {"watch": "test"}),
        ("mtt-cost", "cifar100", 10, {"watch": None}),
    ],
)
def test_settings_that_were_others(method: str, dataset: str, ipc: int, expected: dict[str, Any]) -> None:
    resolver, _ = paper()
    _, options = resolve(resolver.method(Cell(dataset, ipc, method)))
    assert {name: getattr(options, name) for name in expected} == expected


def test_images_experts_networks_and_tests_that_were_others() -> None:
    resolver, _ = paper()
    for name in ("imagenette", "imagewoof", "imagefruit", "imagemeow", "imagenet1k"):
        options = resolver.dataset(name)
        assert (options.resize, options.mean, options.std) == ("squash", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert not options.zca
    assert resolver.experts("sgd", "imagenet1k").count == 50
    for name, alpha in (("flat-code-1", 1.0), ("flat-code-03", 0.3)):
        options = resolver.experts(name, "cifar10")
        assert (options.flat_rule, options.adaptive, options.rho, options.alpha) == ("code", True, 0.01, alpha)
    for network in ("vit-tiny", "vit-small", "vit-base"):
        assert resolver.evaluation(Cell("cifar10", 1000, "contra"), network).lr == "searched"
    assert resolver.evaluation(Cell("cifar10", 1000, "contra"), "convnet").lr == "learned"
    for dataset, batch in (("cifar10-standardised", 100), ("cub200", 50)):
        options = resolver.evaluation(Cell(dataset, 10, "ratbptt"))
        assert options.train_steps == (300, 600, 1000, 3000) and options.batch_size == batch
        assert options.chooses and options.lr_images == "train" and options.decay_epoch is None
    network = resolver.network("alexnet", "cifar10-standardised")
    assert (network["norm"], network["pooling"]) == ("instance", "average")
    assert "norm" not in resolver.network("alexnet", "cifar10")
    tables: Any = resolver.campaign.tables
    for table, ipc, method, dataset, expected in (
        ("ftd-table1", 10, "dc", "cifar10", "cifar10-plain"),
        ("ftd-table1", 10, "dm", "cifar100", "cifar100-dc"),
        ("ftd-table1", 10, "ftd", "cifar10", "cifar10"),
        ("contra-table1", 50, "dsa", "tiny-imagenet", "tiny-imagenet-plain"),
        ("table2", 50, "mtt", "cifar10", "cifar10-plain"),
        ("table2", 10, "mtt", "cifar10", "cifar10"),
        ("table2", 10, "satm", "cifar100", "cifar100"),
    ):
        assert {cell.dataset for cell in tables[table].cells_of(dataset, ipc, method)} == {expected}
    for table in ("table3", "ftd-table1", "ftd-table2", "contra-table1"):
        assert tables[table].full == ("strong", "experts")
    assert "ftd-code" in tables["ftd-table1"].methods and "ftd-code" in tables["table10"].methods
    assert tables["satm-arms"].seeds == (0, 1, 2) and json.dumps(tables["satm-arms"].compare).count("satm-rho-0") == 1

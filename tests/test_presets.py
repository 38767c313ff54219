"""Every published setting can be used: its options are known, fit together, and fit the experts that it names."""

from pathlib import Path
from typing import Any

import pytest

from satm.config import Cell, Resolver, load_campaign
from satm.config.methods import MatchingOptions
from satm.methods import METHODS, resolve
from satm.methods.checks import segments

CONFIG = Path(__file__).parent.parent / "config"


def cells(resolver: Resolver) -> list[tuple[str, str, int]]:
    """Every method, dataset and number of images per class that a row names all of."""
    rows = [row for row in resolver.settings if row.stage == "distill"]
    return [
        (method, dataset, ipc) for row in rows for method in row.method for dataset in row.dataset for ipc in row.ipc
    ]


def usable(resolver: Resolver, found: list[tuple[str, str, int]]) -> None:
    for method, dataset, ipc in dict.fromkeys(found):
        _, options = resolve(resolver.method(Cell(dataset, ipc, method)))
        if isinstance(options, MatchingOptions):
            assert not [*segments(options, resolver.experts(options.experts, dataset).epochs)]


def test_every_published_setting_can_be_used() -> None:
    found = cells(load_campaign(None))
    assert len(found) > 100
    usable(load_campaign(None), found)


@pytest.mark.parametrize(
    ("methods", "datasets", "ipcs"),
    [
        (("mtt-ct", "datm-ct", "contra-no-cl", "ftd-code"), ("cifar10", "cifar100"), (1, 10)),
        (("contra-k2", "contra-k3", "contra-k4", "contra-k5"), ("cifar10", "cifar100"), (10,)),
        (("satm-n2", "satm-n6"), ("cifar10", "cifar100"), (1, 50)),
    ],
)
def test_the_papers_variants_can_be_used(
    methods: tuple[str, ...], datasets: tuple[str, ...], ipcs: tuple[int, ...]
) -> None:
    resolver = load_campaign(CONFIG / "paper.yaml")
    usable(resolver, [(method, dataset, ipc) for method in methods for dataset in datasets for ipc in ipcs])


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cell_of_a_table_can_be_used(path: Path) -> None:
    resolver = load_campaign(path)
    found = [cell for table in resolver.campaign.tables.values() for cell in table.cells()]
    assert found
    usable(resolver, [(method, dataset, ipc) for dataset, ipc, method, _ in found])


def test_a_preset_row_names_registered_methods_only() -> None:
    for row in load_campaign(None).settings:
        assert set(row.method) <= set(METHODS), row


def test_every_published_row_says_where_it_is_from() -> None:
    assert all(row.source for row in load_campaign(None).settings)


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "expected"),
    [
        ("ftd", "cifar10", 10, {"ema": 0.9995, "experts": "flat-03", "step_size": 0.001, "lr_images": 100}),
        ("ftd", "tiny-imagenet", 10, {"ema": 0.999, "experts": "flat", "batch_size": 500, "max_start_epoch": 40}),
        ("tesla", "cifar100", 50, {"engine": "tesla", "labels": "hard", "batch_size": 125, "iterations": 10000}),
        ("tesla", "imagenet1k", 1, {"labels": "teacher", "inner_steps": 10, "lr_step_size": 1e-4}),
        ("datm", "cifar10", 1, {"segments": "uniform", "skip_above": 1.1, "lr_labels": 5, "experts": "flat-datm"}),
        ("datm", "cifar100", 10, {"expand_from": 30, "expand_iterations": 2000, "skip_above": 1, "init": "correct"}),
        ("datm", "cifar100", 50, {"init": "real", "label_experts": 1, "min_start_epoch": 20}),
        ("satm-da", "cifar100", 10, {"expand_from": 30, "keep_divisor": 3, "step_size_gradient": "first-order"}),
        ("contra", "cifar10", 1, {"concurrent": 3, "distance": 2, "beta": 0, "experts": "curriculum"}),
        ("contra", "cifar100", 50, {"concurrent": 4, "distance": 12, "min_start_epoch": 20, "experts": "sgd-long"}),
        ("satm-fi", "cifar10", 10, {"experts": "flat-03", "lr_images": 50, "keep_divisor": 3}),
        ("mtt-robust", "cifar10", 1, {"lr_step_size": 1e-7, "inner_steps": 50}),
        ("mtt-vasso", "tiny-imagenet", 3, {"lr_images": 1000, "max_start_epoch": 15}),
    ],
)
def test_published_values(method: str, dataset: str, ipc: int, expected: dict[str, Any]) -> None:
    _, options = resolve(load_campaign(None).method(Cell(dataset, ipc, method)))
    assert {name: getattr(options, name) for name in expected} == expected

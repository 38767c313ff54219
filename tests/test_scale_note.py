"""What a smaller campaign says below its tables and figures."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from satm.config import Resolver, load_campaign
from satm.tables.scale_note import paper_path, reductions

SMALL = {
    "experts": {"sgd": {"count": 4, "epochs": 8}},
    "networks": {"convnet": {"width": 16}},
    "settings": [
        {"options": {"iterations": 30, "inner_steps": 5}, "method": ["mtt", "satm"]},
        {"stage": "evaluate", "options": {"epochs": 20, "repeats": 2}},
    ],
}


def campaign(folder: Path, **sections: Any) -> Resolver:
    path = folder / "small.yaml"
    YAML(typ="safe", pure=True).dump({**SMALL, **sections}, path)
    return load_campaign(path)


def test_a_smaller_table_says_by_how_much(tmp_path: Path) -> None:
    table = {"datasets": {"digits": [1, 10]}, "methods": ["mtt", "satm"]}
    resolver = campaign(tmp_path, tables={"table2": table, "mine": table})
    (text,) = reductions(resolver, "tables", "table2")
    assert text.startswith("Reduced; in parentheses the values of config/paper.yaml: ")
    for part in (
        *("dataset digits (cifar10, cifar100, tiny-imagenet)", "images per class 1, 10 (1 to 50)"),
        *("iterations 30 (5000, 10000)", "experts 4 (100)", "epochs of an expert 8 (50)"),
        *("networks tested 2 (5)", "epochs of a test 20 (1000)", "convnet width 16 (128)"),
    ):
        assert part in text
    assert reductions(resolver, "tables", "mine") == []


def test_a_smaller_figure_says_by_how_much(tmp_path: Path) -> None:
    figures: dict[str, Any] = {
        "contra-figure1": {"kind": "correlation", "datasets": {"digits": [1]}, "methods": ["mtt"], "epochs": 5},
        "figure2": {"kind": "continual", "protocols": ["two"]},
    }
    tables = {"two": {"kind": "continual", "datasets": {"digits": [1]}, "methods": ["mtt"], "steps": 2, "orders": 2}}
    resolver = campaign(tmp_path, figures=figures, tables=tables)
    (text,) = reductions(resolver, "figures", "contra-figure1")
    assert all(part in text for part in ("epochs on the path 5 (40)", "iterations 30 (", "convnet width 16 (128)"))
    (text,) = reductions(resolver, "figures", "figure2")
    assert "steps 2 (" in text and "class orders 2 (5)" in text


def test_the_papers_own_campaign_is_not_reduced() -> None:
    paper = load_campaign(paper_path())
    assert reductions(paper, "tables", "table2") == []
    assert paper_path().is_file()

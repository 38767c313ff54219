"""The command that says what a table or figure is made with."""

from pathlib import Path

import pytest
from rich.console import Console

from satm.cli import main
from satm.config import load_campaign
from satm.errors import UsageError
from satm.workflow.explain import Explained, explain_exhibit, find

CAMPAIGN = """
datasets:
  small: {source: digits, validation: 20, augment: flip}
networks:
  narrow: {network: convnet, width: 8}
experts:
  few: {count: 3, network: narrow}
methods:
  mine: {method: mtt, experts: few, inner_steps: 7}
settings:
  - {method: mine, options: {iterations: 5, inner_steps: 9}, source: ours}
  - {stage: evaluate, network: narrow, options: {epochs: 2}, source: a paper}
  - {stage: network, network: narrow, options: {depth: 1}, source: none published}
tables:
  t: {datasets: {small: [1, 3]}, methods: [random, mine], networks: [narrow], seeds: [0, 1]}
  search: {kind: search, datasets: {digits: [1]}, methods: [random]}
figures:
  f: {kind: iterations, datasets: {small: [1]}, methods: [mine-at-epoch-3], quantities: [loss]}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("config").mkdir()
    Path("config/c.yaml").write_text(CAMPAIGN)
    return tmp_path


def told(explained: Explained) -> dict[str, dict[str, tuple[object, object, str]]]:
    return {part.name: part.changed for part in explained.parts}


def test_each_option_has_its_value_its_default_and_its_source(here: Path) -> None:
    resolver = load_campaign(Path("config/c.yaml"))
    found = list(explain_exhibit(resolver, resolver.table("t")))
    assert [(each.cell.method, each.cell.ipc, each.cell.seed) for each in found] == [
        ("random", 1, 0),
        ("mine", 1, 0),
        ("random", 3, 0),
        ("mine", 3, 0),
    ]
    assert told(found[1]) == {
        "images of small": {
            "validation": (20, 0, "datasets.small of config/c.yaml"),
            "augment": ("flip", "crop_scale_rotate", "datasets.small of config/c.yaml"),
        },
        "distillation": {
            "iterations": (5, 5000, "settings.0 of config/c.yaml: ours"),
            "experts": ("few", "sgd", "methods.mine of config/c.yaml"),
            "inner_steps": (7, 50, "methods.mine of config/c.yaml"),
        },
        "experts few": {
            "network": ("narrow", "convnet", "experts.few of config/c.yaml"),
            "count": (3, 100, "experts.few of config/c.yaml"),
        },
        "network narrow": {
            "width": (8, 128, "networks.narrow of config/c.yaml"),
            "depth": (1, None, "settings.2 of config/c.yaml: none published"),
        },
        "evaluation on narrow": {"epochs": (2, 1000, "settings.1 of config/c.yaml: a paper")},
    }
    assert found[1].ours == ["iterations", "depth"] and found[0].ours == ["depth"]
    assert found[1].title == "mine on small, 1 per class; not published: iterations, depth"


def test_a_derived_method_says_where_it_starts(here: Path) -> None:
    resolver, exhibit = find("results/c/figures/f.png", None)
    (found,) = explain_exhibit(resolver, exhibit)
    assert told(found)["distillation"]["start_epoch"] == (3, None, "the name mine-at-epoch-3")


def test_rows_of_presets_have_their_sources(here: Path) -> None:
    resolver, exhibit = find("search", Path("config/c.yaml"))
    (found,) = explain_exhibit(resolver, exhibit)
    assert told(found)["network convnet"]["width"] == (32, 128, "ours; three blocks would leave one pixel")


def test_sources_are_numbered_and_everything_fits_80_columns(here: Path) -> None:
    resolver, exhibit = find("results/c/t.csv", None)
    console = Console(width=80, record=True, color_system=None)
    for explained in explain_exhibit(resolver, exhibit):
        explained.show(console)
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    assert ["inner_steps", "7", "50", "3"] in lines and "  3: methods.mine of config/c.yaml" in map(
        str.rstrip, text.splitlines()
    )
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "explain needs a table or figure first, got nothing"),
        (["--ipc", "1"], "explain needs a table or figure first, got --ipc"),
        (["results/c/tt.csv"], "unknown table 'tt' in config/c.yaml; known: search, t. Did you mean 't'?"),
        (["results/c/figures/g.png"], "unknown figure 'g'"),
        (["results/d/t.csv"], "results/d/t.csv would belong to the campaign config/d.yaml, which is not here"),
        (["results/t.csv"], "would belong to the campaign config/paper.yaml, which is not here; name it in --config"),
        (
            ["results/c/t.csv", "--method", "mtt"],
            "results/c/t.csv has no synthetic set of method mtt; leave something out",
        ),
        (["results/c/t.csv", "--ipc", "x"], "--ipc"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert main(["explain", *arguments]) == 2
    told = capsys.readouterr()
    assert text in told.err.replace("\n", " ") and not told.out


def test_the_command_restricts_and_counts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "results/c/t.csv", "--method", "mine", "--ipc", "3"]) == 0
    text = capsys.readouterr().out
    assert "mine on small, 3 per class" in text and "random" not in text
    assert "synthetic sets: 1; with options that are not published: 1" in text


def test_an_unknown_name_is_refused_by_the_campaign(here: Path) -> None:
    with pytest.raises(UsageError, match="unknown figure 'z'"):
        find("results/c/figures/z.png", None)

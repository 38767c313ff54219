"""The campaign that makes every table and figure of the papers small."""

from pathlib import Path

import satm
from satm.config import load_campaign
from satm.methods import resolve
from satm.methods.matching_options import MatchingOptions, check

ROOT = Path(satm.__file__).parent.parent


def test_it_has_every_table_and_figure_of_the_papers_by_the_same_name() -> None:
    small, paper = (load_campaign(ROOT / "config" / f"{name}.yaml") for name in ("figures-cpu", "paper"))
    assert set(small.campaign.all_tables) == set(paper.campaign.all_tables)
    assert set(small.campaign.figures) == set(paper.campaign.figures)
    assert {figure.kind for figure in small.campaign.figures.values()} == {
        *("iterations", "sweep", "costs", "correlation", "trajectory", "variance", "bounds", "continual"),
        *("images", "animation"),
    }


def test_its_options_fit_its_experts() -> None:
    small = load_campaign(ROOT / "config" / "figures-cpu.yaml")
    needed: set[str] = set()
    for name, table in small.campaign.all_tables.items():
        needed |= set(table.files(small.layout, name))
    for figure in small.campaign.figures.values():
        needed |= set(figure.files(small.layout, small.campaign.continual))
    runs = {tuple(path.split("/")[3:6]) for path in needed if path.endswith("metrics.parquet")}
    assert len(runs) > 100
    for dataset, ipc, method in sorted(runs):
        _, options = resolve(small.method(method, dataset, int(ipc.removeprefix("ipc-"))))
        if isinstance(options, MatchingOptions):
            check(options, small.experts(options.experts, dataset).epochs)

"""The campaign that makes every table and figure of the papers small; all are made again from its stored files."""

from pathlib import Path

import pandas
import pytest

import satm
from satm.cli import main
from satm.config import ACCOUNTING, Cell, load_campaign
from satm.methods import resolve
from satm.methods.options import MatchingOptions, UnrolledOptions
from satm.methods.parts.boosting import check_blocks
from satm.methods.parts.segments import check

ROOT = Path(satm.__file__).parent.parent
CONFIG = ROOT / "config" / "figures-cpu.yaml"
STORED = ROOT / "results" / "reference" / "figures-cpu"
RESOLVER = load_campaign(CONFIG)
MADE = Path("results/figures-cpu")


def test_it_has_every_table_and_figure_of_the_papers_by_the_same_name() -> None:
    small, paper = (load_campaign(ROOT / "config" / f"{name}.yaml") for name in ("figures-cpu", "paper"))
    assert set(small.campaign.all_tables) == set(paper.campaign.all_tables)
    assert set(small.campaign.figures) == set(paper.campaign.figures)
    assert {figure.kind for figure in small.campaign.figures.values()} == {
        *("iterations", "sweep", "costs", "correlation", "trajectory", "variance", "bounds", "continual"),
        *("images", "animation"),
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "config").glob("*.yaml")))
def test_the_options_of_every_campaign_fit(name: str) -> None:
    campaign = load_campaign(ROOT / "config" / f"{name}.yaml")
    needed: set[str] = set()
    for entry, table in campaign.campaign.all_tables.items():
        needed |= set(table.files(campaign.layout, entry))
    for figure in campaign.campaign.figures.values():
        needed |= set(figure.files(campaign.layout, campaign.campaign.continual))
    parts = [Path(path).relative_to(campaign.layout.root).parts for path in needed]
    runs = {found[1:4] for found in parts if found[0] in ("distilled", "evaluation")}
    assert runs
    for dataset, folder, method in sorted(runs):
        ipc = int(folder.removeprefix("ipc-"))
        _, options = resolve(campaign.method(Cell(dataset, ipc, method)))
        if isinstance(options, MatchingOptions):
            check(options, campaign.experts(options.experts, dataset).epochs)
        elif isinstance(options, UnrolledOptions) and options.blocks > 1:
            check_blocks(options.blocks, ipc, options.iterations)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder in which everything of the campaign was run but its tables and figures."""
    monkeypatch.chdir(tmp_path)
    MADE.mkdir(parents=True)
    for part in ("distilled", "evaluation", "full", "variants", "continual", "nas", "analysis"):
        (MADE / part).symlink_to(STORED / part, target_is_directory=True)


def assert_same(made: Path, stored: Path) -> None:
    """Check that two tables hold the same, numbers up to the last digits that are written."""
    pandas.testing.assert_frame_equal(pandas.read_csv(made), pandas.read_csv(stored), rtol=1e-4, atol=1e-9)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", RESOLVER.campaign.all_tables)
def test_every_table_is_made_again_from_stored_files(name: str) -> None:
    assert main(["table", "--config", str(CONFIG), "--name", name]) == 0
    assert_same(MADE / f"{name}.csv", STORED / f"{name}.csv")
    assert all((MADE / f"{name}.{form}").stat().st_size for form in ("md", "tex", "html"))


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", [name for name in RESOLVER.figures if name != ACCOUNTING])
def test_every_figure_is_drawn_again_from_stored_files(name: str) -> None:
    assert main(["figure", "--config", str(CONFIG), "--name", name]) == 0
    assert_same(MADE / "figures" / f"{name}.csv", STORED / "figures" / f"{name}.csv")
    assert all((MADE / "figures" / f"{name}.{form}").stat().st_size for form in ("pdf", "png"))

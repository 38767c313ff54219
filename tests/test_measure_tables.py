"""Tables of numbers about distillations and of accuracies by the epoch of the start, beside the published ones."""

import io
from pathlib import Path
from typing import Any

import pandas
import pytest
from rich.console import Console

from satm.config import Campaign, Cell, Resolver
from satm.errors import MissingRun, UsageError
from satm.results import METRICS, TRAJECTORY, write_rows
from satm.tables.late_start import starts_table, write_starts
from satm.tables.reader import Reader
from satm.tables.run_metrics import measure_table, write_measures


def campaign(root: Path, **sections: Any) -> Resolver:
    return Resolver(Campaign.model_validate(sections), (), str(root / "results"), Path("it.yaml"))


def metrics(resolver: Resolver, method: str, seconds: list[float], dataset: str = "cifar100", ipc: int = 10) -> None:
    rows = [
        {"iteration": index + 1, "attempt": 0, "event": "", "seconds": value, "peak_memory_bytes": 4 * 10**9}
        for index, value in enumerate(seconds)
    ]
    write_rows(Path(resolver.layout.metrics(Cell(dataset, ipc, method, 0))), rows, METRICS, {})


def test_costs_stand_beside_the_published_ones(tmp_path: Path) -> None:
    table = {
        **{"datasets": {"cifar100": [10]}, "methods": ["mtt-cost", "satm-cost"], "measures": ["seconds"]},
        "published_as": {"mtt-cost": "mtt", "satm-cost": "satm-n3"},
    }
    resolver = campaign(tmp_path, measures={"table8": table})
    metrics(resolver, "mtt-cost", [9.0, 1.0, 3.0])
    with pytest.raises(MissingRun, match=r"python -m satm distill --config it.yaml .*--method satm-cost"):
        measure_table(Reader(resolver), "table8")
    reader = Reader(resolver, partial=True)
    frame = write_measures(reader, "table8", Console(file=io.StringIO())).set_index("method")
    assert list(frame.index) == ["tesla", "satm-n2", "mtt-cost", "satm-cost"]  # printed alone first
    assert frame.loc["mtt-cost", ["mean", "n", "published"]].tolist() == [2.0, 2, 12.1]
    assert pandas.isna(frame.loc["satm-cost", "mean"]) and frame.loc["satm-cost", "published"] == 12.0
    assert pandas.isna(frame.loc["tesla", "mean"]) and frame.loc["tesla", "published_std"] == 0.5
    text = (tmp_path / "results" / "table8.md").read_text()
    assert "| seconds | cifar100 | 10 | mtt-cost | 12.1 ± 0.6 | 2 ± 1.4 | 2 |" in text
    assert "Published: satm Table 8" in text and "Not run yet" in text
    assert (tmp_path / "results" / "table8.csv").read_text().startswith("dataset,ipc,method,measure,mean,std,n,")


def test_a_table_that_no_paper_has_shows_what_is_measured(tmp_path: Path) -> None:
    table = {"datasets": {"digits": [1]}, "methods": ["mtt"], "measures": ["memory_gb", "training_hours"]}
    resolver = campaign(tmp_path, measures={"mine": table})
    metrics(resolver, "mtt", [1800.0, 1800.0], "digits", 1)
    frame = measure_table(Reader(resolver), "mine").set_index("measure")
    assert frame["mean"].to_dict() == {"memory_gb": 4.0, "training_hours": 1.0} and frame["published"].isna().all()


def test_the_first_iterations_can_be_left_out(tmp_path: Path) -> None:
    table = {"datasets": {"digits": [1]}, "methods": ["mtt"], "measures": ["training_hours"], "after": 2}
    resolver = campaign(tmp_path, measures={"late": table, "none": {**table, "after": 3}})
    metrics(resolver, "mtt", [7200.0, 7200.0, 3600.0], "digits", 1)
    frame = write_measures(Reader(resolver), "late", Console(file=io.StringIO()))
    assert frame["mean"].tolist() == [1.0]
    assert "The first 2 iterations of each run are left out." in (tmp_path / "results" / "late.md").read_text()
    with pytest.raises(UsageError, match=r"mtt on digits at ipc 1, seed 0, has 3 iterations and `after: 3`"):
        measure_table(Reader(resolver), "none")


def test_accuracies_by_the_epoch_of_the_start(tmp_path: Path) -> None:
    resolver = campaign(tmp_path, starts={"ftd-table6": {"datasets": {"cifar100": [10]}, "methods": ["mtt", "ftd"]}})
    row = {"dataset": "cifar100", "ipc": 10, "method": "mtt", "seed": 0, "kind": "restart", "evaluation_loss": 1.0}
    rows = [
        {**row, "expert": expert, "start": start, "epoch": 30, "steps": 40, "evaluation_accuracy": 0.2 + 0.1 * expert}
        for expert in (0, 1)
        for start in (10, 25)
    ]
    path = Path(resolver.layout.analysis("trajectory", Cell("cifar100", 10, "mtt", 0)))
    write_rows(path, rows, TRAJECTORY, {})
    frame = write_starts(Reader(resolver, partial=True), "ftd-table6", Console(file=io.StringIO()))
    cells = frame.set_index(["method", "start"])
    assert [start for method, start in cells.index if method == "mtt"] == [0, 10, 20, 25, 30, 40, 45]
    measured = cells.loc[("mtt", 10)]
    assert measured[["accuracy_mean", "n", "epochs_left", "published_mean"]].tolist() == pytest.approx(
        [0.25, 2, 20, 0.37]
    )
    assert pandas.isna(cells.loc[("mtt", 25), "published_mean"]) and pandas.isna(cells.loc[("mtt", 0), "accuracy_mean"])
    assert cells.loc[("ftd", 45), "published_mean"] == pytest.approx(0.462)
    assert (
        "| cifar100 | 10 | mtt | 10 | 20 | 37.0 | 25.0 ± 7.1 | 2 |"
        in (tmp_path / "results" / "ftd-table6.md").read_text()
    )
    with pytest.raises(MissingRun, match=r"analyse --what trajectory --config it.yaml .*--method ftd"):
        starts_table(Reader(resolver), "ftd-table6")

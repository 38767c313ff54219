"""Tables of numbers about distillations and of accuracies by the epoch of the start, beside the published ones."""

from pathlib import Path
from typing import Any, get_args

import numpy
import pandas
import pytest
from tabulating import frame_of, made

from satm.config import Campaign, Cell, Resolver
from satm.errors import MissingRun, UsageError
from satm.results.columns import METRICS, TRAJECTORY
from satm.results.rows import write_rows
from satm.tables.run_metrics import RunMetric, converged, measure


def campaign(root: Path, **tables: Any) -> Resolver:
    methods = {"mtt-cost": {"method": "mtt"}, "satm-cost": {"method": "satm"}}
    content = Campaign.model_validate({"methods": methods, "tables": tables})
    return Resolver(content, (), str(root / "results"), Path("it.yaml"))


def metrics(resolver: Resolver, method: str, seconds: list[float], dataset: str = "cifar100", ipc: int = 10) -> None:
    rows = [
        {"iteration": index + 1, "attempt": 0, "event": "", "seconds": value, "peak_memory_bytes": 4 * 10**9}
        for index, value in enumerate(seconds)
    ]
    write_rows(Path(resolver.layout.metrics(Cell(dataset, ipc, method, 0))), rows, METRICS, {})


def test_costs_stand_beside_the_published_ones(tmp_path: Path) -> None:
    table = {
        **{"datasets": {"cifar100": [10]}, "methods": ["mtt-cost", "satm-cost"], "measures": ["seconds"]},
        "kind": "run-metrics",
        "published_as": {"mtt-cost": "mtt", "satm-cost": "satm-n3"},
    }
    resolver = campaign(tmp_path, table8=table)
    metrics(resolver, "mtt-cost", [9.0, 1.0, 3.0])
    with pytest.raises(MissingRun, match=r"python -m satm distill --config it.yaml .*--method satm-cost"):
        frame_of(resolver, "table8")
    frame = made(resolver, "table8", partial=True).frame.set_index("method")
    assert list(frame.index) == ["tesla", "satm-n2", "mtt-cost", "satm-cost"]  # printed alone first
    assert frame.loc["mtt-cost", ["mean", "n", "published"]].tolist() == [2.0, 2, 12.1]
    assert pandas.isna(frame.loc["satm-cost", "mean"]) and frame.loc["satm-cost", "published"] == 12.0
    assert pandas.isna(frame.loc["tesla", "mean"]) and frame.loc["tesla", "published_std"] == 0.5
    text = (tmp_path / "results" / "table8.md").read_text()
    assert "| seconds | cifar100 | 10 | mtt-cost | 12.1 ± 0.6 | 2 ± 1.4 | 2 |" in text
    assert "Published: satm Table 8" in text and "Left out:" in text
    assert (tmp_path / "results" / "table8.csv").read_text().startswith("dataset,ipc,method,measure,mean,std,n,")


def test_a_table_that_no_paper_has_shows_what_is_measured(tmp_path: Path) -> None:
    table = {
        "kind": "run-metrics",
        "datasets": {"digits": [1]},
        "methods": ["mtt"],
        "measures": ["memory_gb", "training_hours"],
    }
    resolver = campaign(tmp_path, mine=table)
    metrics(resolver, "mtt", [1800.0, 1800.0], "digits", 1)
    frame = frame_of(resolver, "mine").set_index("measure")
    assert frame["mean"].to_dict() == {"memory_gb": 4.0, "training_hours": 1.0} and frame["published"].isna().all()


def test_the_first_iterations_can_be_left_out(tmp_path: Path) -> None:
    table = {
        "kind": "run-metrics",
        "datasets": {"digits": [1]},
        "methods": ["mtt"],
        "measures": ["training_hours"],
        "after": 2,
    }
    resolver = campaign(tmp_path, late=table, none={**table, "after": 3})
    metrics(resolver, "mtt", [7200.0, 7200.0, 3600.0], "digits", 1)
    frame = made(resolver, "late").frame
    assert frame["mean"].tolist() == [1.0]
    assert "The first 2 iterations of each run are left out." in (tmp_path / "results" / "late.md").read_text()
    with pytest.raises(UsageError, match=r"mtt on digits at ipc 1, seed 0, has 3 iterations and `after: 3`"):
        frame_of(resolver, "none")


def test_accuracies_by_the_epoch_of_the_start(tmp_path: Path) -> None:
    resolver = campaign(
        tmp_path, **{"ftd-table6": {"kind": "late-start", "datasets": {"cifar100": [10]}, "methods": ["mtt", "ftd"]}}
    )
    row = {"dataset": "cifar100", "ipc": 10, "method": "mtt", "seed": 0, "kind": "restart", "evaluation_loss": 1.0}
    rows = [
        {**row, "expert": expert, "start": start, "epoch": 30, "steps": 40, "evaluation_accuracy": 0.2 + 0.1 * expert}
        for expert in (0, 1)
        for start in (10, 25)
    ]
    path = Path(resolver.layout.analysis("trajectory", Cell("cifar100", 10, "mtt", 0)))
    write_rows(path, rows, TRAJECTORY, {})
    frame = made(resolver, "ftd-table6", partial=True).frame
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
    with pytest.raises(MissingRun, match=r"analyse --config it.yaml --what trajectory .*--method ftd"):
        frame_of(resolver, "ftd-table6")


def run(**columns: list[float]) -> pandas.DataFrame:
    count = len(next(iter(columns.values())))
    frame = {"iteration": range(1, count + 1), "seconds": [1.0] * count, "peak_memory_bytes": [0] * count}
    return pandas.DataFrame({**frame, "loss": [1.0] * count, "sharpness": [0.0] * count, **columns})


def test_measures_by_hand() -> None:
    one = run(
        seconds=[9.0, 1.0, 2.0, 3.0],
        peak_memory_bytes=[10**9, 3 * 10**9, 2 * 10**9, 10**9],
        hypergradient_norm=[1.0, 1.0, 5.0, 1.0],
        sharpness=[4.0, 3.0, 2.0, 1.0],
    )
    two = one.assign(seconds=[9.0, 5.0, 5.0, 5.0], peak_memory_bytes=[10**9] * 4)
    seconds = measure("seconds", [one, two])  # without the first iteration: 1, 2, 3, 5, 5, 5
    assert (seconds.mean, seconds.n) == (pytest.approx(3.5), 6)
    assert measure("hours_per_1000_iterations", [one]).mean == pytest.approx(2 * 1000 / 3600)
    assert measure("training_hours", [one, two]).mean == pytest.approx((15 + 24) / 2 / 3600)
    memory = measure("memory_gb", [one, two])
    assert (memory.mean, memory.std, memory.n) == (2.0, pytest.approx(2**0.5), 2)
    norm = measure("hypergradient_norm_mean", [one])
    assert (norm.mean, norm.std, norm.n) == (2.0, 2.0, 4)
    assert measure("hypergradient_norm_spikes", [one]).mean == 0.25  # 5 is above three times the median of 1
    assert measure("sharpness_first_tenth", [one]).mean == 4 and measure("sharpness_last_tenth", [one]).mean == 1
    with pytest.raises(UsageError, match=r"unknown measure 'second'.*Did you mean 'seconds'"):
        measure("second", [one])
    assert all(measure(name, [one, two]).n >= 1 for name in get_args(RunMetric) if name != "iterations_to_converge")


def test_a_loss_has_converged_when_almost_all_of_its_fall_is_done() -> None:
    falling = pandas.Series([max(0.0, 1 - step / 50) for step in range(100)])
    # Windows of 5: the running mean at step s is 1 - (s - 2) / 50, at first 0.96; 5 % of 0.96 are left at s = 49.6.
    assert converged(falling) == pytest.approx(51, abs=1)
    assert numpy.isnan(converged(pandas.Series([1.0, 2.0, 3.0])))

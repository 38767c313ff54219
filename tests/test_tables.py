"""Results tables against means, deviations and intervals computed here by hand from the same rows."""

import math
from pathlib import Path

import numpy
import pandas
import pytest
from rich.console import Console
from scipy import stats

from satm.config import Campaign, Resolver
from satm.errors import UsageError
from satm.results import EVALUATION, METRICS, SHARPNESS, write_rows
from satm.tables import COLUMNS, latex, load_published, markdown, paired_table, results_table, show_table, write_table

ACCURACY = {
    ("random", 0): [0.15, 0.16],
    ("random", 1): [0.14, 0.17],
    ("mtt", 0): [0.30, 0.32],
    ("mtt", 1): [0.33, 0.35],
    ("satm", 0): [0.34, 0.35],
    ("satm", 1): [0.35, 0.36],
}


def make(
    root: Path,
    seeds: tuple[int, ...] = (0, 1),
    sharpness: bool = True,
    dataset: str = "cifar10",
    accuracies: dict[tuple[str, int], list[float]] = ACCURACY,
) -> Resolver:
    """Return a campaign of one cell whose files exist."""
    table = {"datasets": {dataset: [1]}, "methods": ["random", "mtt", "satm"], "seeds": seeds}
    campaign = Campaign.model_validate(
        {"tables": {"table2": {**table, "sharpness": ["satm", "mtt"] if sharpness else []}}}
    )
    resolver = Resolver(campaign, (), str(root / "results"), Path("config/small.yaml"))
    layout = resolver.layout
    for (method, seed), measured in accuracies.items():
        axes = {"dataset": dataset, "ipc": 1, "method": method, "seed": seed}
        row = {**axes, "network": "convnet", "labels": "hard", "selection": "last", "loss": 1.0, "epochs": 5}
        cost = {"seconds": 1.0, "peak_memory_bytes": 7}
        rows = [
            {**row, **cost, "repeat": repeat, "split": split, "accuracy": accuracy - (split != "test")}
            for repeat, accuracy in enumerate(measured)
            for split in ("test", "validation")
        ]
        write_rows(Path(layout.evaluation(*axes.values(), "convnet")), rows, EVALUATION, {})  # type: ignore[arg-type]
        steps = [
            {"iteration": i, "attempt": 0, "event": "", "seconds": 2.0 + seed, "peak_memory_bytes": 100 * i + seed}
            for i in range(0 if method == "random" else 3)
        ]
        write_rows(Path(layout.metrics(*axes.values())), steps, METRICS, {})  # type: ignore[arg-type]
        flat = 0.01 if method == "satm" else 0.02
        segments = [
            {
                **axes,
                "segment": i,
                "rho": 0.1,
                "loss": 0.5,
                "perturbed_loss": 0.5 + flat,
                "sharpness": flat + 0.001 * i * seed,
            }
            for i in range(2)
        ]
        write_rows(Path(layout.sharpness(*axes.values())), segments, SHARPNESS, {})  # type: ignore[arg-type]
    return resolver


def test_a_row_is_the_mean_over_all_networks(tmp_path: Path) -> None:
    frame = results_table(make(tmp_path), "table2")
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame["method"]) == ["dc", "dsa", "dm", "ftd", "tesla", "mdc", "random", "mtt", "satm"]
    mtt = frame.set_index("method").loc["mtt"]
    values = [0.30, 0.32, 0.33, 0.35]
    assert mtt["accuracy_mean"] == pytest.approx(numpy.mean(values))
    assert mtt["accuracy_std"] == pytest.approx(numpy.std(values, ddof=1))
    assert (mtt["n"], mtt["selection"]) == (4, "last")
    assert (mtt["published_mean"], mtt["published_std"]) == (pytest.approx(0.462), pytest.approx(0.008))
    assert mtt["difference"] == pytest.approx(0.325 - 0.462)
    assert mtt["seconds"] == pytest.approx((3 * 2.0 + 3 * 3.0) / 2)
    assert mtt["peak_memory_bytes"] == 201


def test_what_is_only_published_or_only_measured_is_empty_elsewhere(tmp_path: Path) -> None:
    frame = results_table(make(tmp_path), "table2").set_index("method")
    assert frame.loc["dsa", "published_mean"] == pytest.approx(0.288)
    measured = ["accuracy_mean", "accuracy_std", "n", "selection", "split", "difference", "seconds"]
    assert frame.loc["dsa", [*measured, "peak_memory_bytes"]].isna().all()
    assert frame.loc["random", "seconds"] == 0 and pandas.isna(frame.loc["random", "peak_memory_bytes"])
    assert frame.loc["random", "published_mean"] == pytest.approx(0.144)  # not in SATM's table, taken from ConTra's
    other = results_table(make(tmp_path, dataset="digits"), "table2")
    assert list(other["method"]) == ["random", "mtt", "satm"] and other["published_mean"].isna().all()


def test_one_network_has_no_deviation(tmp_path: Path) -> None:
    one = {("random", 0): [0.1], ("mtt", 0): [0.2], ("satm", 0): [0.3]}
    resolver = make(tmp_path, seeds=(0,), sharpness=False, accuracies=one)
    frame = results_table(resolver, "table2").set_index("method")
    assert frame.loc["mtt", "n"] == 1 and math.isnan(frame.loc["mtt", "accuracy_std"])
    paired = paired_table(resolver, "table2")
    assert paired["n"].tolist() == [1] and paired["low"].isna().all()


def test_pairs_are_seeds_with_students_interval(tmp_path: Path) -> None:
    frame = paired_table(make(tmp_path), "table2").set_index("quantity")
    row = frame.loc["accuracy"]
    differences = numpy.array([0.345 - 0.31, 0.355 - 0.34])
    low, high = stats.t.interval(0.95, 1, differences.mean(), stats.sem(differences))
    assert (row["method"], row["reference"], row["n"], row["over"]) == ("satm", "mtt", 2, "seeds")
    assert row["difference"] == pytest.approx(differences.mean())
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))
    assert (row["method_mean"], row["reference_mean"]) == (pytest.approx(0.35), pytest.approx(0.325))
    flat = frame.loc["sharpness"]
    assert flat["difference"] == pytest.approx(-0.01)
    assert flat["reference_mean"] == pytest.approx(numpy.mean([0.02, 0.02, 0.02, 0.021]))


def test_with_one_seed_the_pairs_are_networks(tmp_path: Path) -> None:
    row = paired_table(make(tmp_path, seeds=(1,), sharpness=False), "table2").iloc[0]
    differences = numpy.array([0.35 - 0.33, 0.36 - 0.35])
    low, high = stats.t.interval(0.95, 1, differences.mean(), stats.sem(differences))
    assert row["over"] == "repeats of one seed" and row["n"] == 2
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))


def test_the_files_hold_the_paper_layout(tmp_path: Path) -> None:
    resolver = make(tmp_path)
    frame, paired = write_table(resolver, "table2")
    folder = tmp_path / "results"
    text = (folder / "table2.csv").read_text()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert "cifar10,1,mtt,0.325,0.0208167,4,last,test,0.462,0.008,-0.137,7.5,201" in text.splitlines()
    again = pandas.read_csv(folder / "table2-paired.csv")
    pandas.testing.assert_frame_equal(again, paired, rtol=1e-4, check_dtype=False)
    lines = (folder / "table2.md").read_text().splitlines()
    assert lines[0].startswith("| dataset | IPC | dc (published) |") and lines[0].endswith("| random | mtt | satm |")
    assert "**49.0 ± 0.3**" in lines[2] and lines[2].endswith("| 15.5 ± 1.3 | 32.5 ± 2.1 | **35.0 ± 0.8** |")
    assert "over 4 networks" in lines[4]
    tex = (folder / "table2.tex").read_text()
    assert (
        r"\textbf{35.0 $\pm$ 0.8} \\" in tex and r"\multicolumn{9}{c}{published} & \multicolumn{3}{c}{measured}" in tex
    )
    console = Console(record=True, width=140, file=(tmp_path / "shown").open("w"))
    show_table(console, frame, paired)
    shown = console.export_text()
    assert "32.5 ± 2.1" in shown and "satm - mtt: 2.50" in shown


def test_selections_are_named_and_not_compared() -> None:
    row = {"dataset": "d", "ipc": 1, "accuracy_std": 0.0, "n": 2, "published_mean": math.nan}
    frame = pandas.DataFrame(
        [
            {**row, "method": "a", "accuracy_mean": 0.5, "selection": "last"},
            {**row, "method": "b", "accuracy_mean": 0.6, "selection": "last"},
            {**row, "method": "c", "accuracy_mean": 0.9, "selection": "test"},
        ]
    )
    assert markdown(frame).splitlines()[2] == "| d | 1 | 50.0 ± 0.0 | **60.0 ± 0.0** | 90.0 ± 0.0 [test] |"
    assert r"90.0 $\pm$ 0.0 [test] \\" in latex(frame) and "published" not in latex(frame)


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    resolver = make(tmp_path)
    Path(resolver.layout.metrics("cifar10", 1, "satm", 1)).unlink()
    with pytest.raises(UsageError) as caught:
        results_table(resolver, "table2")
    command = "python -m satm distill --config config/small.yaml --dataset cifar10 --ipc 1 --method satm --seed 1"
    assert str(caught.value).endswith(command) and "\n" not in str(caught.value)
    Path(resolver.layout.evaluation("cifar10", 1, "mtt", 0, "convnet")).unlink()
    with pytest.raises(UsageError, match=r"satm evaluate .* --method mtt --seed 0 --network convnet$"):
        results_table(resolver, "table2")
    Path(resolver.layout.sharpness("cifar10", 1, "mtt", 0)).unlink()
    with pytest.raises(UsageError, match="is missing; make it with"):
        paired_table(resolver, "table2")


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    resolver = make(tmp_path)
    one, two = (Path(resolver.layout.evaluation("cifar10", 1, "mtt", seed, "convnet")) for seed in (0, 1))
    two.write_bytes(one.read_bytes())
    with pytest.raises(UsageError, match="is of seed 0, expected 1; make it again"):
        results_table(resolver, "table2")


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown table .*'table3'; known: table2\. Did you mean 'table2'"):
        results_table(make(tmp_path), "table3")


def test_the_published_table_is_whole() -> None:
    frame = load_published()
    own = frame[(frame["source"] == "satm") & (frame["table"] == "Table 2")]
    assert len(own) == 69 and own["value"].between(1, 100).all()
    assert not frame.duplicated(["source", "table", "dataset", "ipc", "method", "eval_arch", "metric", "note"]).any()

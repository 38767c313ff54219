"""Results tables against means, deviations and intervals computed here by hand from the same rows."""

import math
from pathlib import Path

import numpy
import pandas
import pytest
from scipy import stats
from tabulating import frame_of, made, shown
from tolerances import WRITTEN

from satm.config import Campaign, Cell, Resolver, parse
from satm.errors import UsageError
from satm.methods import METHODS
from satm.results.columns import EVALUATION, METRICS, SHARPNESS
from satm.results.rows import write_rows
from satm.tables.accuracy import AccuracyTable
from satm.tables.accuracy_grid import results_grid
from satm.tables.published import load_published

TABLE = {"datasets": {"cifar10": [1]}, "methods": ["random", "mtt", "satm"], "seeds": (0, 1)}

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
    averaged: frozenset[tuple[str, int]] = frozenset(),
) -> Resolver:
    """Return a campaign of one cell whose files exist; raw sets beside `averaged` ones are 0.05 worse."""
    table = {**TABLE, "datasets": {dataset: [1]}, "seeds": seeds}
    campaign = Campaign.model_validate(
        {"tables": {"table2": {**table, "sharpness": ["satm", "mtt"] if sharpness else []}}}
    )
    resolver = Resolver(campaign, (), str(root / "results"), Path("config/small.yaml"))
    layout = resolver.layout
    for (method, seed), measured in accuracies.items():
        axes = {"dataset": dataset, "ipc": 1, "method": method, "seed": seed}
        row = {**axes, "network": "convnet", "labels": "hard", "selection": "last", "loss": 1.0, "epochs": 5}
        cost = {"seconds": 1.0, "peak_memory_bytes": 7}
        cost |= {"labelled": "own", "augmented": "yes", "step_size": "learned", "rate": 0.1}
        rows = [
            {
                **row,
                **cost,
                "repeat": repeat,
                "split": split,
                "accuracy": accuracy - (split != "test"),
                "average": "raw",
            }
            for repeat, accuracy in enumerate(measured)
            for split in ("test", "validation")
        ]
        if (method, seed) in averaged:
            raw = [{**each, "accuracy": each["accuracy"] - 0.05} for each in rows]
            rows = [{**each, "average": "ema"} for each in rows] + raw
        write_rows(Path(layout.evaluation(Cell(**axes), "convnet")), rows, EVALUATION, {})  # type: ignore[arg-type]
        steps = [
            {"iteration": i, "attempt": 0, "event": "", "seconds": 2.0 + seed, "peak_memory_bytes": 100 * i + seed}
            for i in range(0 if method == "random" else 3)
        ]
        write_rows(Path(layout.metrics(Cell(**axes))), steps, METRICS, {})  # type: ignore[arg-type]
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
        write_rows(Path(layout.analysis("sharpness", Cell(**axes))), segments, SHARPNESS, {})  # type: ignore[arg-type]
    return resolver


def test_a_row_is_the_mean_over_all_networks(tmp_path: Path) -> None:
    frame = frame_of(make(tmp_path), "table2")
    assert list(frame.columns) == list(AccuracyTable.columns)
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
    frame = frame_of(make(tmp_path), "table2").set_index("method")
    assert frame.loc["dsa", "published_mean"] == pytest.approx(0.288)
    measured = ["accuracy_mean", "accuracy_std", "n", "selection", "split", "difference", "seconds"]
    assert frame.loc["dsa", [*measured, "peak_memory_bytes"]].isna().all()
    assert frame.loc["random", "seconds"] == 0 and pandas.isna(frame.loc["random", "peak_memory_bytes"])
    assert frame.loc["random", "published_mean"] == pytest.approx(0.144)  # not in SATM's table, taken from ConTra's
    other = frame_of(make(tmp_path, dataset="digits"), "table2")
    assert list(other["method"]) == ["random", "mtt", "satm"] and other["published_mean"].isna().all()


def test_one_network_has_no_deviation(tmp_path: Path) -> None:
    one = {("random", 0): [0.1], ("mtt", 0): [0.2], ("satm", 0): [0.3]}
    resolver = make(tmp_path, seeds=(0,), sharpness=False, accuracies=one)
    frame = frame_of(resolver, "table2").set_index("method")
    assert frame.loc["mtt", "n"] == 1 and math.isnan(frame.loc["mtt", "accuracy_std"])
    paired = made(resolver, "table2").beside["-paired"]
    assert paired["n"].tolist() == [1] and paired["low"].isna().all()


def test_pairs_are_seeds_with_students_interval(tmp_path: Path) -> None:
    frame = made(make(tmp_path), "table2").beside["-paired"].set_index("quantity")
    row = frame.loc["accuracy"]
    differences = numpy.array([0.345 - 0.31, 0.355 - 0.34])
    low, high = stats.t.interval(0.95, 1, differences.mean(), stats.sem(differences))
    assert (row["method"], row["reference"], row["n"], row["over"]) == ("satm", "mtt", 2, "seeds")
    assert row["difference"] == pytest.approx(differences.mean())
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))
    assert (row["method_mean"], row["reference_mean"]) == (pytest.approx(0.35), pytest.approx(0.325))
    spread = numpy.sqrt((numpy.var([0.34, 0.35, 0.35, 0.36], ddof=1) + numpy.var([0.3, 0.32, 0.33, 0.35], ddof=1)) / 2)
    assert row["pooled_deviations"] == pytest.approx(0.025 / spread)
    flat = frame.loc["sharpness"]
    assert flat["difference"] == pytest.approx(-0.01)
    assert flat["reference_mean"] == pytest.approx(numpy.mean([0.02, 0.02, 0.02, 0.021]))


def test_with_one_seed_the_pairs_are_networks(tmp_path: Path) -> None:
    row = made(make(tmp_path, seeds=(1,), sharpness=False), "table2").beside["-paired"].iloc[0]
    differences = numpy.array([0.35 - 0.33, 0.36 - 0.35])
    low, high = stats.t.interval(0.95, 1, differences.mean(), stats.sem(differences))
    assert row["over"] == "repeats of one seed" and row["n"] == 2
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))


def test_the_files_hold_the_paper_layout(tmp_path: Path) -> None:
    resolver = make(tmp_path)
    contents = made(resolver, "table2")
    paired = contents.beside["-paired"]
    folder = tmp_path / "results"
    text = (folder / "table2.csv").read_text()
    assert text.splitlines()[0] == ",".join(AccuracyTable.columns)
    measured, printed = "0.325,0.0208167,4,0,last,raw,test,learned", "0.462,0.008,convnet,satm Table 2"
    assert f"cifar10,1,convnet,mtt,{measured},{printed},-0.137,,7.5,201" in text.splitlines()
    again = pandas.read_csv(folder / "table2-paired.csv")
    pandas.testing.assert_frame_equal(again, paired, rtol=WRITTEN, check_dtype=False)
    lines = (folder / "table2.md").read_text().splitlines()
    assert lines[0].startswith("| dataset | IPC | dc (published) |") and lines[0].endswith("| random | mtt | satm |")
    assert "**49.0 ± 0.3**" in lines[2] and lines[2].endswith("| 15.5 ± 1.3 | 32.5 ± 2.1 | **35.0 ± 0.8** |")
    assert "over 4 networks" in lines[4]
    tex = (folder / "table2.tex").read_text()
    assert r"\textbf{35.0 $\pm$ 0.8} \\" in tex and "& dc (published) &" in tex and r"& mtt & satm \\" in tex
    assert tex.count("(published)") == 9 and r"\begin{tabular}{ll" + "r" * 12 + "}" in tex
    text = shown(contents)
    assert "32.5 ± 2.1" in text and "satm - mtt: 2.50" in text


def test_selections_are_named_and_not_compared() -> None:
    row = {
        "dataset": "d",
        "ipc": 1,
        "network": "n",
        "accuracy_std": 0.0,
        "n": 2,
        "diverged": 0,
        "published_mean": math.nan,
        "average": "raw",
    }
    row["watched_mean"] = math.nan
    frame = pandas.DataFrame(
        [
            {**row, "method": "a", "accuracy_mean": 0.5, "selection": "last"},
            {**row, "method": "b", "accuracy_mean": 0.6, "selection": "last"},
            {**row, "method": "c", "accuracy_mean": 0.9, "selection": "test"},
        ]
    )
    assert (
        results_grid(frame).markdown().splitlines()[2] == "| d | 1 | 50.0 ± 0.0 | **60.0 ± 0.0** | 90.0 ± 0.0 [test] |"
    )
    tex = results_grid(frame).latex()
    assert r"90.0 $\pm$ 0.0 [test] \\" in tex and "published" not in tex


def test_the_best_accuracy_during_the_distillation_has_a_column_of_its_own(tmp_path: Path) -> None:
    resolver = make(tmp_path, sharpness=False)
    assert frame_of(resolver, "table2")["watched_mean"].isna().all()
    for seed, accuracies in ((0, [0.2, 0.6, 0.5]), (1, [0.3, math.nan, 0.4])):
        path = Path(resolver.layout.metrics(Cell("cifar10", 1, "mtt", seed)))
        common = {"attempt": 0, "event": "", "seconds": 1.0, "peak_memory_bytes": 1}
        steps = [{"iteration": i, "test_accuracy": each, **common} for i, each in enumerate(accuracies)]
        write_rows(path, steps, METRICS, {})
    contents = made(resolver, "table2")
    frame = contents.frame.set_index("method")
    assert frame.loc["mtt", "watched_mean"] == pytest.approx((0.6 + 0.4) / 2)
    assert frame.loc["mtt", "accuracy_mean"] == pytest.approx(sum([0.30, 0.32, 0.33, 0.35]) / 4)  # as without
    assert frame["watched_mean"].drop("mtt").isna().all()
    text = contents.grids[0].markdown()
    assert (
        "| mtt (best watched) |" in text and "| 50.0 |" in text and "which is optimistic; it is not the result" in text
    )
    other = Campaign.model_validate({"tables": {"table2": {**TABLE, "networks": ["convnet", "alexnet"]}}})
    both = frame_of(Resolver(other, (), resolver.layout.root, Path("config/small.yaml")), "table2", partial=True)
    assert both.loc[both["network"] == "alexnet", "watched_mean"].isna().all()  # recorded with a ConvNet


def test_averaged_sets_stand_for_the_method_and_the_raw_ones_beside_them(tmp_path: Path) -> None:
    resolver = make(tmp_path, averaged=frozenset({("mtt", 0), ("mtt", 1)}))
    plain = frame_of(make(tmp_path / "plain"), "table2")
    contents = made(resolver, "table2")
    frame, paired = contents.frame, contents.beside["-paired"]
    assert list(frame["method"]) == [*plain["method"][:-1], "mtt", "satm"]
    raw = (frame["method"] == "mtt") & (frame["average"] == "raw")
    held = frame[~raw].reset_index(drop=True)
    assert held.loc[held["method"] == "mtt", "average"].item() == "ema" and plain["average"].dropna().eq("raw").all()
    pandas.testing.assert_frame_equal(held.drop(columns="average"), plain.drop(columns="average"))
    own = frame[raw].iloc[0]
    values = numpy.array([0.30, 0.32, 0.33, 0.35]) - 0.05
    assert (own["accuracy_mean"], own["n"]) == (pytest.approx(values.mean()), 4)
    assert own["accuracy_std"] == pytest.approx(values.std(ddof=1)) and own["seconds"] == pytest.approx(7.5)
    assert pandas.isna(own["published_mean"]) and pandas.isna(own["difference"])
    pandas.testing.assert_frame_equal(paired, made(make(tmp_path / "plain"), "table2").beside["-paired"])
    folder = tmp_path / "results"
    lines = (folder / "table2.md").read_text().splitlines()
    assert lines[0].endswith("| random | mtt | mtt, raw | satm |")
    assert lines[2].endswith("| 15.5 ± 1.3 | 32.5 ± 2.1 | 27.5 ± 2.1 | **35.0 ± 0.8** |")
    assert any("mtt: exponential moving averages over the iterations; beside them, as `raw`," in line for line in lines)
    tex = (folder / "table2.tex").read_text()
    assert r"random & mtt & mtt, raw & satm \\" in tex and "{ll" + "r" * (9 + 4) + "}" in tex
    assert "mtt, raw" in shown(contents)
    made(make(tmp_path / "plain"), "table2")
    assert "moving averages" not in (tmp_path / "plain/results/table2.md").read_text()


def test_averaged_and_raw_seeds_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="of mtt on cifar10, ipc 1, are of averaged sets at some seeds and only of raw"
    ):
        frame_of(make(tmp_path, averaged=frozenset({("mtt", 1)})), "table2")


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    resolver = make(tmp_path)
    Path(resolver.layout.metrics(Cell("cifar10", 1, "satm", 1))).unlink()
    with pytest.raises(UsageError) as caught:
        frame_of(resolver, "table2")
    command = "python -m satm distill --config config/small.yaml --dataset cifar10 --ipc 1 --method satm --seed 1"
    assert str(caught.value).endswith(command) and "\n" not in str(caught.value)
    Path(resolver.layout.evaluation(Cell("cifar10", 1, "mtt", 0), "convnet")).unlink()
    with pytest.raises(UsageError, match=r"satm evaluate .* --method mtt --seed 0 --network convnet$"):
        frame_of(resolver, "table2")
    Path(resolver.layout.analysis("sharpness", Cell("cifar10", 1, "mtt", 0))).unlink()
    with pytest.raises(UsageError, match=r"is missing; begin with: .*; then make it with: "):
        made(resolver, "table2").beside["-paired"]


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    resolver = make(tmp_path)
    one, two = (Path(resolver.layout.evaluation(Cell("cifar10", 1, "mtt", seed), "convnet")) for seed in (0, 1))
    two.write_bytes(one.read_bytes())
    with pytest.raises(UsageError, match="is of seed 0, expected 1; make it again"):
        frame_of(resolver, "table2")


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown table 'table3' in .*; known: table2\. Did you mean 'table2'"):
        frame_of(make(tmp_path), "table3")


def test_the_published_table_is_whole() -> None:
    frame = load_published()
    own = frame[(frame["source"] == "satm") & (frame["table"] == "Table 2")]
    assert len(own) == 69 and own["value"].between(1, 100).all()
    assert not frame.duplicated(["source", "table", "dataset", "ipc", "method", "eval_arch", "metric", "note"]).any()


def make_published(root: Path, published: list[str]) -> Resolver:
    """Return the campaign of `make` whose table asks for published rows."""
    table = make(root).table("table2").model_dump() | {"published": published}
    campaign = Campaign.model_validate({"tables": {"table2": table}})
    return Resolver(campaign, (), str(root / "results"), Path("config/small.yaml"))


def test_rows_of_published_numbers_only(tmp_path: Path) -> None:
    plain = frame_of(make(tmp_path), "table2")
    assert set(plain["published_source"].dropna()) == {"satm Table 2", "contra Table 1"}
    resolver = make_published(tmp_path, ["kip", "frepo", "dc", "linba", "mtt-ema"])
    frame = made(resolver, "table2").frame
    extra = ["kip", "frepo", "linba"]  # dc is in the table anyway, mtt-ema was not published for this cell
    assert list(frame["method"]) == ["dc", "dsa", "dm", "ftd", "tesla", "mdc", *extra, "random", "mtt", "satm"]
    rest = frame[~frame["method"].isin(extra)].reset_index(drop=True)
    pandas.testing.assert_frame_equal(rest, plain)
    rows = frame.set_index("method")
    assert rows.loc["kip", "published_mean"] == pytest.approx(0.499)
    assert rows.loc[extra, "published_network"].tolist() == ["convnet-wide", "convnet", "convnet"]
    assert rows.loc["frepo", "published_mean"] == pytest.approx(0.456)  # re-evaluated with the width of the others
    assert rows.loc["linba", "published_mean"] == pytest.approx(0.664)
    assert rows.loc[extra, ["accuracy_mean", "n", "selection", "difference", "seconds"]].isna().all(axis=None)
    csv = (tmp_path / "results" / "table2.csv").read_text().splitlines()
    assert "cifar10,1,convnet,kip,,,,,,,,,0.499,0.002,convnet-wide,contra Table 1,,,," in csv
    text = (tmp_path / "results" / "table2.md").read_text()
    assert "| 49.9 ± 0.2 [wide] | 45.6 ± 0.1 | **66.4 ± 0.4** |" in text
    assert "kip: published in contra Table 1, not measured here." in text
    assert "frepo: published in ratbptt Table 1, not measured here." in text
    assert "[wide]: published for a wider ConvNet" in text
    tex = (tmp_path / "results" / "table2.tex").read_text()
    assert r"49.9 $\pm$ 0.2 [wide]" in tex and tex.count("(published)") == 12
    assert "[wide]" not in results_grid(plain).markdown()


def test_wide_networks_do_not_compete_with_others(tmp_path: Path) -> None:
    frame = frame_of(make_published(tmp_path, ["kip", "rcig"]), "table2")
    assert frame.set_index("method").loc["rcig", "published_mean"] == pytest.approx(0.496)
    frame.loc[frame["method"] == "kip", "published_mean"] = 0.9
    assert (
        "| 90.0 ± 0.2 [wide] |" in results_grid(frame).markdown() and "**49.6 ± 1.2**" in results_grid(frame).markdown()
    )


def test_published_rows_of_a_table_that_no_paper_has(tmp_path: Path) -> None:
    campaign = {"tables": {"mine": {"datasets": {"cifar10": [1]}, "methods": [], "published": ["rfad"]}}}
    resolver = Resolver(Campaign.model_validate(campaign), (), str(tmp_path / "results"))
    contents = made(resolver, "mine")
    frame, paired = contents.frame, contents.beside["-paired"]
    assert frame["method"].tolist() == ["rfad"] and paired.empty
    assert "rfad: published in ratbptt Table 1" in (tmp_path / "results" / "mine.md").read_text()


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ({"published": ["mtt"]}, "methods names 'mtt' too, .* leave it out of published"),
        ({"published": ["kip"], "split": "validation"}, "are of test images, split is 'validation'; leave one of them"),
    ],
)
def test_published_options_that_exclude_each_other(cell: dict[str, object], text: str) -> None:
    table = {"datasets": {"cifar10": [1]}, "methods": ["mtt"], **cell}
    with pytest.raises(UsageError, match=f"published: .*{text}") as caught:
        parse(Campaign, {"tables": {"table2": table}}, "small.yaml")
    assert "\n" not in str(caught.value)


def test_an_unknown_published_method_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown method with published numbers 'kipp' in table table2.*'kip'\?"):
        frame_of(make_published(tmp_path, ["kipp"]), "table2")


def test_the_published_rows_of_other_outer_steps_have_the_methods_names() -> None:
    frame = load_published()
    own = frame[(frame["source"] == "satm") & (frame["table"] == "Table 4")]
    assert set(own["method"]) <= set(METHODS) and len(own) == 14


def make_networks(root: Path, **options: object) -> Resolver:
    """Return the campaign of `make` with a second network, 0.1 worse, and full data at 0.8 and 0.9."""
    table = {"datasets": {"cifar10": [10]}, "methods": ["mtt", "satm"], "networks": ["convnet", "resnet18"], **options}
    campaign = Campaign.model_validate({"tables": {"table5": table}})
    resolver = Resolver(campaign, (), str(root / "results"), Path("config/small.yaml"))
    common = {"dataset": "cifar10", "labels": "hard", "selection": "last", "average": "raw", "labelled": "own"}
    common |= {"augmented": "yes", "rate": 0.1, "loss": 1.0, "epochs": 5, "seconds": 1.0, "peak_memory_bytes": 7}
    for method, network in [(one, two) for one in ("mtt", "satm", "full-strong") for two in ("convnet", "resnet18")]:
        best = {"mtt": 0.5, "satm": 0.6, "full-strong": 0.9}[method] - 0.1 * (network == "resnet18")
        row = {**common, "method": method, "network": network, "split": "test", "seed": 0}
        row["step_size"] = "searched" if network == "resnet18" and method == "satm" else "learned"
        full = method == "full-strong"
        rows = [{**row, "ipc": 0 if full else 10, "repeat": index, "accuracy": best + 0.02 * index} for index in (0, 1)]
        path = resolver.layout.evaluation(Cell("cifar10", 10, method, 0), network)
        write_rows(Path(resolver.layout.full("cifar10", "strong", network) if full else path), rows, EVALUATION, {})
        write_rows(Path(resolver.layout.metrics(Cell("cifar10", 10, method, 0))), [], METRICS, {})
    return resolver


def test_several_networks_have_a_row_each_with_their_published_numbers(tmp_path: Path) -> None:
    resolver = make_networks(tmp_path, compare=[["satm", "mtt"], ["mtt", "satm"]], full=["strong"])
    contents = made(resolver, "table5")
    frame, paired = contents.frame, contents.beside["-paired"]
    cells = frame.set_index(["network", "method"])
    assert cells.loc[("convnet", "mtt"), "published_mean"] == pytest.approx(0.643)
    assert cells.loc[("resnet18", "mtt"), "published_mean"] == pytest.approx(0.464)
    assert cells.loc[("resnet18", "satm"), "accuracy_mean"] == pytest.approx(0.51)
    assert cells.loc[("resnet18", "full-strong"), "accuracy_mean"] == pytest.approx(0.81)
    assert pandas.isna(cells.loc[("resnet18", "ftd"), "accuracy_mean"])  # published only
    assert paired[["network", "method", "reference"]].values.tolist() == [
        [network, *pair] for network in ("convnet", "resnet18") for pair in (("satm", "mtt"), ("mtt", "satm"))
    ]
    assert paired["difference"].tolist() == pytest.approx([0.1, -0.1] * 2)
    lines = (tmp_path / "results" / "table5.md").read_text().splitlines()
    assert lines[0].startswith("| dataset | IPC | network | ftd (published) |")
    assert lines[2].startswith("| cifar10 | 10 | convnet | 66.6 ± 0.4 |")
    assert lines[3].startswith("|  | 10 | resnet18") and lines[3].endswith("| 41.0 ± 1.4 | **51.0 ± 1.4** | - |")
    assert [line.split(" | ")[:3] for line in lines[4:6]] == [["| ", "all", "convnet"], ["| ", "all", "resnet18"]]
    assert [line.split(" | ")[-1] for line in lines[4:6]] == ["91.0 ± 1.4 |", "81.0 ± 1.4 |"]
    text = "\n".join(lines)
    assert "learned - convnet: mtt, satm; resnet18: mtt. searched - resnet18: satm." in text
    assert "full-strong: SGD with momentum 0.9" in text
    tex = (tmp_path / "results" / "table5.tex").read_text()
    assert r"\begin{tabular}{lll" in tex and r"dataset & IPC & network & ftd" in tex


def test_full_data_is_a_file_of_its_own_that_is_asked_for(tmp_path: Path) -> None:
    resolver = make_networks(tmp_path, full=["experts"])
    files = resolver.table("table5").files(resolver.layout, "table5")
    assert resolver.layout.full("cifar10", "experts", "resnet18") in files
    with pytest.raises(
        UsageError, match=r"evaluate --what full .*--dataset cifar10 --recipe experts --network convnet$"
    ):
        frame_of(resolver, "table5")


def test_numbers_of_all_real_images_stand_in_one_row(tmp_path: Path) -> None:
    table = {"datasets": {"cifar10": [1, 10]}, "methods": ["mtt"], "full": ["experts", "strong"]}
    resolver = Resolver(Campaign.model_validate({"tables": {"ftd-table1": table}}), (), str(tmp_path / "results"))
    frame = frame_of(resolver, "ftd-table1", partial=True)
    rows = frame[frame["method"].str.startswith("full")]
    assert rows[["ipc", "method"]].values.tolist() == [[0, "full-experts"], [0, "full-strong"]]
    assert rows["published_mean"].tolist()[0] == pytest.approx(0.848) and rows["published_mean"].isna().tolist()[1]
    assert "| all |" in results_grid(frame).markdown()
    without = {**table, "full": []}
    resolver = Resolver(Campaign.model_validate({"tables": {"ftd-table1": without}}), (), str(tmp_path / "results"))
    last = frame_of(resolver, "ftd-table1", partial=True).iloc[-1]
    assert (last["method"], last["ipc"]) == ("full", 0) and last["published_mean"] == pytest.approx(0.848)


def test_raw_sets_stand_beside_what_is_published_without_averages(tmp_path: Path) -> None:
    table = {"datasets": {"cifar100": [10]}, "methods": ["ftd"]}
    resolver = Resolver(Campaign.model_validate({"tables": {"ftd-table4": table}}), (), str(tmp_path / "results"))
    before = frame_of(resolver, "ftd-table4", partial=True).set_index("method")
    assert list(before.index) == ["mtt", "ftd-no-ema", "ftd"] and before["accuracy_mean"].isna().all()
    row = {"dataset": "cifar100", "ipc": 10, "method": "ftd", "seed": 0, "network": "convnet", "labels": "hard"}
    row |= {"split": "test", "selection": "last", "labelled": "own", "augmented": "yes", "step_size": "learned"}
    row |= {"rate": 0.1, "loss": 1.0, "epochs": 5, "seconds": 1.0, "peak_memory_bytes": 7, "repeat": 0}
    rows = [{**row, "average": average, "accuracy": accuracy} for average, accuracy in (("ema", 0.3), ("raw", 0.2))]
    write_rows(Path(resolver.layout.evaluation(Cell("cifar100", 10, "ftd", 0), "convnet")), rows, EVALUATION, {})
    write_rows(Path(resolver.layout.metrics(Cell("cifar100", 10, "ftd", 0))), [], METRICS, {})
    after = frame_of(resolver, "ftd-table4").set_index(["method", "average"])
    assert after.loc[("ftd", "ema"), "published_mean"] == pytest.approx(before.loc["ftd", "published_mean"])
    assert after.loc[("ftd", "raw"), "published_mean"] == pytest.approx(before.loc["ftd-no-ema", "published_mean"])
    assert after.loc[("ftd", "raw"), "accuracy_mean"] == 0.2 and len(after) == 3


def test_some_methods_are_tested_with_some_networks_only(tmp_path: Path) -> None:
    table = {
        **{"datasets": {"cifar10-standardised": [10]}, "methods": ["ratbptt", "direct"]},
        **{"networks": ["vgg11", "alexnet"], "methods_on": {"alexnet": ["ratbptt"]}},
        "published_as": {"direct": "ratbptt-direct"},
    }
    methods = {"direct": {"method": "ratbptt", "blocks": 1}}
    campaign = Campaign.model_validate({"methods": methods, "tables": {"ratbptt-table2": table}})
    resolver = Resolver(campaign, (), str(tmp_path / "results"))
    files = resolver.table("ratbptt-table2").files(resolver.layout, "ratbptt-table2")
    assert sum("evaluation" in path for path in files) == 3
    frame = frame_of(resolver, "ratbptt-table2", partial=True).set_index(["network", "method"])
    assert frame.loc[("vgg11", "direct"), "published_mean"] == pytest.approx(0.477)
    assert frame.loc[("alexnet", "ratbptt-direct"), "published_mean"] == pytest.approx(
        0.637
    )  # printed, not tested here
    assert ("alexnet", "direct") not in frame.index
    for option, text in (({"methods_on": {"vgg": []}}, "not among networks"), ({"published_as": {"a": "b"}}, "'a'")):
        with pytest.raises(UsageError, match=text):
            parse(Campaign, {"tables": {"x": {**table, **option}}}, "it.yaml")


def test_a_method_may_be_tested_on_images_prepared_otherwise(tmp_path: Path) -> None:
    plain = make(tmp_path, sharpness=False, dataset="cifar10-plain", accuracies={("mtt", 0): [0.4, 0.5]})
    whitened = {("random", 0): [0.15, 0.16], ("mtt", 0): [0.1, 0.1], ("satm", 0): [0.34, 0.35]}
    resolver = make(tmp_path, seeds=(0,), sharpness=False, accuracies=whitened)
    table = resolver.campaign.tables["table2"].model_dump(exclude={"kind"})
    for ipc, expected in (([], 0.45), ([1], 0.45), ([10], 0.1)):
        prepared = [{"method": "mtt", "ipc": ipc, "dataset": {"cifar10": "cifar10-plain"}}]
        campaign = Campaign.model_validate({"tables": {"table2": {**table, "prepared": prepared}}})
        other = Resolver(campaign, (), resolver.layout.root, Path("config/small.yaml"))
        frame = frame_of(other, "table2").set_index("method")
        assert set(frame["dataset"]) == {"cifar10"} and frame["published_mean"].notna().any()
        assert frame.loc["mtt", "accuracy_mean"] == pytest.approx(expected)
        assert frame.loc["satm", "accuracy_mean"] == pytest.approx(0.345)
    both = [{**prepared[0], "ipc": []}, {**prepared[0], "ipc": 1, "dataset": {"cifar10": "cifar10-standardised"}}]
    later = AccuracyTable.model_validate({**table, "prepared": both})
    found = [later.cells_of("cifar10", ipc, "mtt")[0].dataset for ipc in (1, 10)]
    assert (
        found == ["cifar10-standardised", "cifar10-plain"]
        and later.cells_of("cifar10", 1, "satm")[0].dataset == "cifar10"
    )
    text = made(other, "table2").grids[0].markdown()
    assert "mtt at 10 images per class: images as in cifar10-plain." in text
    assert plain.dataset("cifar10-plain").variant_of == "cifar10" and not plain.dataset("cifar10-plain").zca


def test_networks_that_diverged_are_told_and_have_no_accuracy(tmp_path: Path) -> None:
    nan = float("nan")
    accuracies = {**ACCURACY, ("mtt", 0): [0.3, nan], ("satm", 0): [nan, nan], ("satm", 1): [nan, nan]}
    resolver = make(tmp_path, accuracies=accuracies, sharpness=False)
    frame = frame_of(resolver, "table2").set_index("method")
    assert frame.loc["mtt", ["n", "diverged"]].tolist() == [3, 1]
    assert frame.loc["mtt", "accuracy_mean"] == pytest.approx((0.3 + 0.33 + 0.35) / 3)
    assert frame.loc["satm", ["n", "diverged"]].tolist() == [0, 4] and pandas.isna(frame.loc["satm", "accuracy_mean"])
    text = results_grid(frame_of(resolver, "table2")).markdown()
    assert "| diverged |" in text and "[1 diverged]" in text

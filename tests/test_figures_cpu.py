"""The campaign of every table and figure of the papers, small: each is made from files whose numbers are known.

The expected numbers are worked out here from the rows that were written, in the plainest way.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import scipy.stats
import torch
from campaign_files import MEAN, STD, write_files
from PIL import Image
from tolerances import WRITTEN

import satm
from satm.cli import main
from satm.config import ACCOUNTING, OVERVIEW, Cell, load_campaign
from satm.config.methods import MatchingOptions, UnrolledOptions
from satm.methods import resolve
from satm.methods.checks import blocks, segments
from satm.results.distilled import DistilledDataset

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config" / "figures-cpu.yaml"
STORED = ROOT / "results" / "reference" / "figures-cpu"
RESOLVER = load_campaign(CONFIG)
MADE = Path("results/figures-cpu")
TABLES = RESOLVER.campaign.tables
FIGURES = {name: options for name, options in RESOLVER.figures.items() if name != ACCOUNTING}

Group = tuple[str, int, str]
"""Dataset, images per class, method."""


def test_it_has_every_table_and_figure_of_the_papers_by_the_same_name() -> None:
    paper = load_campaign(ROOT / "config" / "paper.yaml").campaign
    assert set(TABLES) == set(paper.tables)
    assert set(RESOLVER.campaign.figures) == set(paper.figures)
    assert {figure.kind for figure in RESOLVER.campaign.figures.values()} == {
        *("iterations", "sweep", "costs", "correlation", "trajectory", "variance", "bounds", "continual"),
        *("images", "animation"),
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "config").glob("*.yaml")))
def test_the_options_of_every_campaign_fit(name: str) -> None:
    campaign = load_campaign(ROOT / "config" / f"{name}.yaml")
    needed: set[str] = set()
    for entry, table in campaign.campaign.tables.items():
        needed |= set(table.files(campaign.layout, entry))
    for figure in campaign.campaign.figures.values():
        needed |= set(figure.files(campaign.layout, campaign.campaign.tables))
    parts = [Path(path).relative_to(campaign.layout.root).parts for path in needed]
    runs = {found[1:4] for found in parts if found[0] in ("distilled", "evaluation")}
    assert runs
    for dataset, folder, method in sorted(runs):
        ipc = int(folder.removeprefix("ipc-"))
        _, options = resolve(campaign.method(Cell(dataset, ipc, method)))
        if isinstance(options, MatchingOptions):
            assert not [*segments(options, campaign.experts(options.experts, dataset).epochs)]
        elif isinstance(options, UnrolledOptions) and options.blocks > 1:
            assert not [*blocks(options.blocks, ipc, options.iterations)]


# Files whose numbers are known


class Known:
    """What was written to the files of the campaign."""

    def __init__(self, written: Mapping[str, Any]) -> None:
        self.written = written

    def of(self, stage: str, cell: Group, file: str) -> Any:
        """Return what a file of one cell holds; all cells have seed 0."""
        dataset, ipc, method = cell
        return self.written[f"{stage}/{dataset}/ipc-{ipc}/{method}/seed-0/{file}"]

    def rows(self, stage: str, cell: Group, file: str) -> pandas.DataFrame:
        """Return the rows of a file of one cell."""
        return pandas.DataFrame(self.of(stage, cell, f"{file}.parquet"))

    def metrics(self, cell: Group) -> pandas.DataFrame:
        """Return the metrics of a distillation, of each iteration the last attempt."""
        rows = {row["iteration"]: row for row in self.rows("distilled", cell, "metrics").to_dict("records")}
        return pandas.DataFrame(rows.values())

    def evaluation(self, cell: Group, network: str) -> pandas.DataFrame:
        """Return the networks that were tested on a set, of an averaged one those on the average."""
        rows = self.rows("evaluation", cell, network)
        return rows[rows["average"] == rows["average"].min()]  # ema comes before raw

    def pixels(self, cell: Group) -> torch.Tensor:
        """Return the states of a set in [0, 1], but for what lies beyond; the set itself comes last."""
        data: DistilledDataset = self.of("distilled", cell, "distilled.safetensors")
        states = [*(data.history.images if data.history else ()), data.images]
        return torch.stack(states) * STD + MEAN


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Known]:
    """A folder in which every stage of the campaign has run but its tables and figures, and what its files hold."""
    paths = {path for name, table in TABLES.items() for path in table.files(RESOLVER.layout, name)}
    for figure in FIGURES.values():
        paths |= set(figure.files(RESOLVER.layout, RESOLVER.campaign.tables))
    place, before = tmp_path_factory.mktemp("figures-cpu"), Path.cwd()
    os.chdir(place)
    try:
        return place, Known(write_files(RESOLVER, paths))
    finally:
        os.chdir(before)


@pytest.fixture
def known(folder: tuple[Path, Known], monkeypatch: pytest.MonkeyPatch) -> Known:
    monkeypatch.chdir(folder[0])
    return folder[1]


def near(value: Any) -> Any:
    """Return a number as it is after it was written with six digits."""
    return pytest.approx(value, rel=WRITTEN, abs=WRITTEN / 100, nan_ok=True)


def cells(options: Any) -> list[Group]:
    return [
        (dataset, ipc, each) for dataset, ipcs in options.datasets.items() for ipc in ipcs for each in options.methods
    ]


def by(frame: pandas.DataFrame, *columns: str) -> dict[Any, dict[str, Any]]:
    """Return the rows of a table by the values of some columns, which must tell them apart."""
    keys = list(frame[list(columns)].itertuples(index=False, name=None))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, frame.to_dict("records"), strict=True))


# Tables


def accuracies(known: Known, options: Any, frame: pandas.DataFrame, name: str) -> None:
    told = by(frame, "dataset", "ipc", "method", "network", "average")
    expected = 0
    for network in options.networks:
        for cell in cells(options):
            if cell[2] not in options.methods_on.get(network, options.methods):
                continue
            metrics = known.metrics(cell)
            for average, rows in known.rows("evaluation", cell, network).groupby("average"):
                row, expected = told[(*cell, network, average)], expected + 1
                assert (row["n"], row["diverged"], row["split"]) == (len(rows), 0, "test")
                assert row["accuracy_mean"] == near(rows["accuracy"].mean())
                assert row["accuracy_std"] == near(rows["accuracy"].std())
                assert row["seconds"] == near(metrics["seconds"].sum())
                assert row["peak_memory_bytes"] == metrics["peak_memory_bytes"].max()
        for dataset in options.datasets:
            for recipe in options.full:
                rows = pandas.DataFrame(known.written[f"full/{dataset}/{recipe}/{network}.parquet"])
                row, expected = told[dataset, 0, f"full-{recipe}", network, "raw"], expected + 1
                assert row["accuracy_mean"] == near(rows["accuracy"].mean())
    assert len(frame) == expected
    for row in pandas.read_csv(MADE / f"{name}-paired.csv").to_dict("records"):
        cell, network = (row["dataset"], row["ipc"]), row["network"]
        one, two = (known.evaluation((*cell, row[column]), network)["accuracy"] for column in ("method", "reference"))
        assert row["difference"] == near(one.mean() - two.mean()) and row["n"] == len(one)


def measures(known: Known, options: Any, frame: pandas.DataFrame, name: str) -> None:
    told = by(frame, "dataset", "ipc", "method", "measure")
    for cell in cells(options):
        for measure in options.measures:
            assert told[(*cell, measure)]["mean"] == near(measured(measure, known.metrics(cell))), (cell, measure)
    assert len(frame) == len(cells(options)) * len(options.measures)


def measured(measure: str, run: pandas.DataFrame) -> float:
    tenth = len(run) // 10
    norm = run["hypergradient_norm"]
    if measure == "iterations_to_converge":
        running = [(run["loss"][at - 1] + run["loss"][at]) / 2 for at in range(1, len(run))]  # over a 20th of 40
        limit = min(running) + 0.05 * (running[0] - min(running))
        return next(at for at, value in enumerate(running, 2) if value <= limit)
    return {
        "memory_gb": lambda: run["peak_memory_bytes"].max() / 1e9,
        "seconds": lambda: run["seconds"][1:].mean(),
        "hours_per_1000_iterations": lambda: run["seconds"][1:].mean() * 1000 / 3600,
        "training_hours": lambda: run["seconds"].sum() / 3600,
        "hypergradient_norm_mean": norm.mean,
        "hypergradient_norm_spikes": lambda: (norm > 3 * norm.median()).sum() / len(norm),
        "sharpness_first_tenth": lambda: run["sharpness"][:tenth].mean(),
        "sharpness_last_tenth": lambda: run["sharpness"][-tenth:].mean(),
    }[measure]()


def late_starts(known: Known, options: Any, frame: pandas.DataFrame, name: str) -> None:
    told = by(frame, "dataset", "ipc", "method", "start")
    for cell in cells(options):
        rows = known.rows("analysis", cell, "trajectory")
        for start, late in rows[rows["kind"] == "restart"].groupby("start"):
            row = told[(*cell, start)]
            assert row["accuracy_mean"] == near(late["evaluation_accuracy"].mean()) and row["n"] == len(late) == 2
            assert row["epochs_left"] == 12 - start
    assert len(frame) == 6 * len(cells(options))


def searches(known: Known, options: Any, frame: pandas.DataFrame, name: str) -> None:
    told = by(frame, "dataset", "ipc", "method")
    parts = [f"{name}/part-0-9", f"{name}/part-10-19"]
    for cell in cells(options):
        proxy = pandas.concat([known.rows("nas", cell, part) for part in parts])
        real = [row for part in parts for row in known.written[f"nas/{cell[0]}/real/{part}.parquet"]]
        both = pandas.DataFrame({"proxy": proxy["accuracy"].to_numpy(), "real": [row["accuracy"] for row in real]})
        best, row = both.sort_values("real", ascending=False), told[cell]
        for top, count in (("top5", 5), ("top10", 10), ("top20", 20), ("all", 20)):
            expected = scipy.stats.spearmanr(best["proxy"][:count], best["real"][:count]).statistic
            assert row[f"spearman_{top}"] == near(expected)
        assert row["selected_accuracy"] == near(both["real"][both["proxy"].argmax()])
        assert row["best_accuracy"] == near(both["real"].max()) and row["candidates"] == 20
        assert row["proxy_minutes"] == near(proxy["seconds"].sum() / 60)
        assert row["real_minutes"] == near(sum(each["seconds"] for each in real) / 60)
    assert len(frame) == len(cells(options)) + 1 and told["digits", 0, "real"]["spearman_all"] == near(1)


def robustness(known: Known, options: Any, frame: pandas.DataFrame, name: str) -> None:
    told = by(frame, "dataset", "ipc", "method")

    def accuracy(cell: Group, labels: str, augmented: str) -> numpy.ndarray:
        rows = known.rows("variants", cell, "convnet")
        return rows.loc[(rows["labels"] == labels) & (rows["augmented"] == augmented), "accuracy"].to_numpy()

    def score(value: numpy.ndarray) -> float:
        return float(((numpy.exp(value) - numpy.exp(-1)) / (math.e - numpy.exp(-1))).mean())

    for cell in cells(options):
        row, own = told[cell], "soft" if cell[2] == "datm" else "hard"
        full = numpy.mean([each["accuracy"] for each in known.written["full/digits/strong/convnet.parquet"]])
        for column, setting in (("hard", ("hard", "yes")), ("soft_plain", ("soft", "no"))):
            assert row[f"{column}_mean"] == near(accuracy(cell, *setting).mean())
        base = (*cell[:2], "random")
        gain, plain = (accuracy(cell, own, each) - accuracy(base, own, each) for each in ("yes", "no"))
        gap = full - accuracy(cell, "hard", "yes")
        assert row["own_labels"] == own and row["full_mean"] == near(full) and row["gap_mean"] == near(gap.mean())
        assert row["improvement_mean"] == near(gain.mean()) and row["improvement_plain_mean"] == near(plain.mean())
        assert row["lrs_mean"] == near(score((gain - gap) / 2)) and row["ars_mean"] == near(score((gain + plain) / 2))
    assert len(frame) == len(cells(options))


def continual(known: Known, options: Any, frame: pandas.DataFrame, name: str) -> None:
    told = by(frame, "dataset", "ipc", "method")
    for cell in cells(options):
        rows = known.rows("continual", cell, name)
        finals, averages, lost = [], [], []
        for _, order in rows.groupby("order"):
            steps = [on_all_images(order[order["step"] == step]) for step in range(1, options.steps + 1)]
            finals.append(steps[-1])
            averages.append(numpy.mean(steps))
            falls = []
            for learned in range(1, options.steps):
                after = order[order["learned_at"] == learned]
                way = [on_all_images(after[after["step"] == step]) for step in range(learned, options.steps + 1)]
                falls.append(max(way[:-1]) - way[-1])
            lost.append(numpy.mean(falls))
        for column, values in (("final", finals), ("average", averages), ("forgetting", lost)):
            assert told[cell][f"{column}_mean"] == near(numpy.mean(values))
            assert told[cell][f"{column}_std"] == near(numpy.std(values, ddof=1))
        assert told[cell]["n"] == options.orders == 2
    assert len(frame) == len(cells(options))


def on_all_images(rows: pandas.DataFrame) -> float:
    return float((rows["accuracy"] * rows["images"]).sum() / rows["images"].sum())


Check = Callable[[Known, Any, pandas.DataFrame, str], None]

CHECKS: dict[str, Check] = {
    "accuracy_mean": accuracies,
    "measure": measures,
    "epochs_left": late_starts,
    "spearman_all": searches,
    "lrs_mean": robustness,
    "forgetting_mean": continual,
}
"""How a table is checked, by a column that only tables of its kind have; the last that fits."""


@pytest.mark.parametrize("name", TABLES)
def test_every_table_shows_the_numbers_of_the_files_below_it(name: str, known: Known) -> None:
    assert main(["table", "--config", str(CONFIG), "--name", name]) == 0
    frame = pandas.read_csv(MADE / f"{name}.csv")
    check = [check for column, check in CHECKS.items() if column in frame.columns][-1]
    check(known, TABLES[name], frame, name)
    assert all((MADE / f"{name}.{form}").stat().st_size for form in ("md", "tex", "html"))


def test_the_overview_counts_all_cells_and_the_hours_of_all_files(known: Known) -> None:
    assert main(["table", "--config", str(CONFIG), "--name", OVERVIEW]) == 0
    rows = by(pandas.read_csv(MADE / f"{OVERVIEW}.csv"), "table")
    assert {name for (name,) in rows} == {*TABLES, "all"}
    whole = rows[("all",)]
    assert whole["missing"] == 2 and whole["cells"] == whole["measured"] + 2  # mtt has no sharpness
    assert rows[("ratbptt-c8",)]["hours"] == near(
        known.rows("distilled", ("digits", 10, "ratbptt"), "metrics")["seconds"].sum() / 3600
    )


# Figures


def iterations(known: Known, options: Any, frame: pandas.DataFrame) -> None:
    once = frame.drop_duplicates()  # a method may be in several groups
    told, expected = by(once, "dataset", "ipc", "method", "quantity", "iteration"), set()
    for cell in cells(options):
        for row in known.metrics(cell).to_dict("records"):
            for quantity in options.quantities:
                if pandas.notna(value := row.get(quantity)):
                    place = (*cell, quantity, row["iteration"])
                    assert told[place]["mean"] == near(value) and told[place]["n"] == 1
                    expected.add(place)
    assert set(told) == expected and {place[2] for place in expected} == set(options.methods)


def sweep(known: Known, options: Any, frame: pandas.DataFrame) -> None:
    points = [(label, value, each) for label, series in options.series.items() for value, each in series.items()]
    points += [("reference", math.nan, method) for method in options.references]
    assert len(frame) == len(points)
    for label, value, named in points:
        method, _, network = named.partition("@")
        rows = known.evaluation(("digits", 1, method), network or "convnet")["accuracy"]
        found = frame[
            (frame["series"] == label) & (frame["method"] == method) & (frame["network"] == (network or "convnet"))
        ]
        (row,) = found.to_dict("records")
        assert row["value"] == near(value) and row["n"] == len(rows)
        assert row["mean"] == near(rows.mean()) and row["std"] == near(rows.std())


def costs(known: Known, options: Any, frame: pandas.DataFrame) -> None:
    told = by(frame, "dataset", "ipc", "method")
    assert set(told) == set(cells(options))
    for cell, row in told.items():
        assert row["memory_gb"] == near(measured("memory_gb", known.metrics(cell)))
        assert row["seconds"] == near(measured("seconds", known.metrics(cell)))


def correlation(known: Known, options: Any, frame: pandas.DataFrame) -> None:
    told = by(frame, "dataset", "ipc", "method", "matched", "watched")
    columns = [f"monitor_{epoch}" for epoch in range(options.epochs)]
    for dataset, ipc, method in cells(options):
        for matched in range(options.epochs):
            losses = known.metrics((dataset, ipc, f"{method}-at-epoch-{matched}"))[columns].dropna()
            expected = numpy.corrcoef(losses.to_numpy(float).T)[matched]
            for watched in range(options.epochs):
                row = told[dataset, ipc, method, matched, watched]
                assert row["correlation"] == near(expected[watched])
    assert len(frame) == len(cells(options)) * options.epochs**2


def trajectory(known: Known, options: Any, frame: pandas.DataFrame) -> None:
    told = by(frame, "dataset", "ipc", "method", "quantity", "epoch")
    for cell in cells(options):
        rows = known.rows("analysis", cell, "trajectory")
        for epoch, group in rows[rows["kind"] == "path"].groupby("epoch"):
            quantities = {name: group[f"{name}_loss"] - group["expert_loss"] for name in ("evaluation", "distillation")}
            quantities |= {name: group[name] for name in ("accumulated", "matching", "initialisation")}
            for quantity, values in {**quantities, "expert": group["expert_loss"]}.items():
                row = told[(*cell, quantity, epoch)]
                assert row["mean"] == near(values.mean()) and row["std"] == near(values.std()) and row["n"] == 2
    assert len(frame) == len(cells(options)) * 6 * 6


def variance(known: Known, options: Any, frame: pandas.DataFrame) -> None:
    told = by(frame, "dataset", "ipc", "method", "iteration")
    for cell in cells(options):
        for row in known.rows("analysis", cell, "variance").to_dict("records"):
            assert told[(*cell, row["iteration"])]["mean"] == near(row["variance"])
    assert len(frame) == 5 * len(cells(options))


def bounds(known: Known, options: Any, frame: pandas.DataFrame) -> None:
    told = by(frame, "dataset", "ipc", "method", "quantity", "kept")
    for cell in cells(options):
        for (quantity, kept), rows in known.rows("analysis", cell, "bounds").groupby(["quantity", "kept"]):
            row = told[(*cell, quantity, kept)]
            for column in ("error", "relative", "bound", "lowest_curvature", "highest_curvature", "step_size"):
                assert row[f"{column}_mean"] == near(rows[column].mean())
    assert len(frame) == 6 * len(cells(options))


def curves(known: Known, options: Any, frame: pandas.DataFrame) -> None:
    told, expected = by(frame, "protocol", "dataset", "ipc", "method", "classes_seen"), 0
    for protocol in options.protocols:
        for cell in cells(TABLES[protocol]):
            for seen, rows in known.rows("continual", cell, protocol).groupby("classes_seen"):
                values = [on_all_images(order) for _, order in rows.groupby("order")]
                assert told[(protocol, *cell, seen)]["mean"] == near(numpy.mean(values))
                expected += 1
    assert len(frame) == expected > 0


def images(known: Known, options: Any, frame: pandas.DataFrame) -> None:
    shown = []
    for cell in cells(options):
        states = known.pixels(cell)
        shown += [(*cell, states[0])] if getattr(options, "start", False) else []
        shown.append((*cell, states[-1]))
    pictured(shown, frame)


def animation(known: Known, options: Any, frame: pandas.DataFrame) -> None:
    (cell,) = cells(options)
    states = known.pixels(cell)[:-1]
    pictured([(*cell, state) for state in states], frame)
    with Image.open(MADE / "figures" / "figure5-animation.png") as picture:
        assert picture.n_frames == len(states) == 7  # type: ignore[attr-defined]


def pictured(shown: Sequence[tuple[str, int, str, torch.Tensor]], frame: pandas.DataFrame) -> None:
    """Check that pictures are of these pixels."""
    assert len(frame) == len(shown)
    for (*cell, pixels), row in zip(shown, frame.to_dict("records"), strict=True):
        assert [row[name] for name in ("dataset", "ipc", "method")] == cell
        assert row["lowest"] == near(float(pixels.min())) and row["highest"] == near(float(pixels.max()))
        assert row["clipped"] == near(float(((pixels < 0) | (pixels > 1)).float().mean()))


DRAWN: dict[str, Callable[[Known, Any, pandas.DataFrame], None]] = {
    "iterations": iterations,
    "sweep": sweep,
    "costs": costs,
    "correlation": correlation,
    "trajectory": trajectory,
    "variance": variance,
    "bounds": bounds,
    "continual": curves,
    "images": images,
    "animation": animation,
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_shows_the_numbers_of_the_files_below_it(name: str, known: Known) -> None:
    assert main(["figure", "--config", str(CONFIG), "--name", name]) == 0
    frame, options = pandas.read_csv(MADE / "figures" / f"{name}.csv"), FIGURES[name]
    DRAWN[options.kind](known, options, frame)
    assert (MADE / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(MADE / "figures" / f"{name}.png") as picture:
        darkest, lightest = picture.convert("L").getextrema()
    assert darkest < 100 and lightest > 200  # something is drawn


# Files of finished runs that are kept in git


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with the files of two real runs."""
    monkeypatch.chdir(tmp_path)
    MADE.mkdir(parents=True)
    for part in ("distilled", "evaluation"):
        (MADE / part).symlink_to(STORED / part, target_is_directory=True)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(("kind", "name"), [("table", "table9"), ("figure", "figures/figure5")])
def test_results_of_an_earlier_version_are_read_as_they_were(kind: str, name: str) -> None:
    assert main([kind, "--config", str(CONFIG), "--name", Path(name).name]) == 0
    made, kept = (pandas.read_csv(place / f"{name}.csv") for place in (MADE, STORED))
    pandas.testing.assert_frame_equal(made, kept, rtol=WRITTEN, atol=0)


@pytest.mark.parametrize(
    ("run", "soft", "average", "states", "computed"),
    [
        ("figures-cpu/distilled/digits/ipc-1/datm/seed-0", True, "raw", 0, set()),
        ("figures-cpu/distilled/digits/ipc-1/ftd/seed-0", False, "ema", 0, set()),
        ("figures-cpu/distilled/digits/ipc-1/satm/seed-0", False, "raw", 7, set()),
        ("methods-cpu/distilled/digits/ipc-1/ratbptt-linear/seed-0", False, "raw", 0, {"basis", "weights"}),
    ],
)
def test_synthetic_sets_of_an_earlier_version_are_loaded(
    run: str, soft: bool, average: str, states: int, computed: set[str]
) -> None:
    found = satm.load_distilled(STORED.parent / run / "distilled.safetensors")
    assert found.classes.tolist() == torch.arange(10).repeat_interleave(len(found) // 10).tolist()
    assert (found.labels.ndim == 2, found.average, set(found.stored)) == (soft, average, computed)
    assert (0 if found.history is None else len(found.history)) == states
    assert (found.raw_images is not None) == (average == "ema")
    assert 0.2 < float(found.pixels().mean()) < 0.4  # as real digits

"""Every kind of figure, drawn from stored rows: what its numbers say, what is refused, what is left out."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
from conftest import Refuse
from PIL import Image
from ruamel.yaml import YAML
from test_figures import synthetic
from test_figures import with_history as moving

from satm.cli import main
from satm.config import Cell, load_campaign
from satm.errors import MissingRun, UsageError
from satm.figures.base import Drawn, figure_of
from satm.results.columns import BOUNDS, EVALUATION, METRICS, TRAJECTORY, VARIANCE, Columns
from satm.results.distilled import save_distilled
from satm.results.rows import write_rows
from satm.tables.reader import Reader

CELL = {"dataset": "digits", "ipc": 1}


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A folder whose campaign `it.yaml` has the figures that it is called with."""
    monkeypatch.chdir(tmp_path)

    def write(**entries: Mapping[str, Any]) -> None:
        methods = {"watched": {"method": "mtt", "monitor": 3}, **{name: {"method": "mtt"} for name in "abc"}}
        content = {"datasets": {"greys": {"source": "digits"}}, "methods": methods, "figures": dict(entries)}
        content |= {"networks": {name: {"network": "convnet"} for name in ("flat-1", "flat-2")}}
        YAML(typ="safe", pure=True).dump(content, Path("it.yaml"))

    return write


def asked(dataset: str) -> dict[str, Any]:
    """Return the options of a synthetic set that the campaign asks for."""
    return {**load_campaign(Path("it.yaml")).method(Cell(dataset, 1, "mtt"))}


def draw(name: str, partial: bool = False) -> Drawn:
    reader = Reader(load_campaign(Path("it.yaml")), partial)
    return figure_of(reader.resolver, name).draw(reader)


def texts(drawn: Drawn) -> str:
    """Return everything that is written on a figure."""
    found = [text.get_text() for text in drawn.figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(text.replace("\n", " ") for text in found)


def metrics(method: str, seed: int = 0, ipc: int = 1, **columns: Any) -> None:
    count = len(next(iter(columns.values())))
    rows = [
        {
            "iteration": index + 1,
            "attempt": 0,
            "event": "",
            "loss": 1.0,
            "step_size": 0.1,
            "hypergradient_norm": 1.0,
            "sharpness": None,
            "seconds": 1.0,
            "peak_memory_bytes": 10**9,
            **{name: values[index] for name, values in columns.items()},
        }
        for index in range(count)
    ]
    path = Path(f"results/it/distilled/digits/ipc-{ipc}/{method}/seed-{seed}/metrics.parquet")
    write_rows(path, rows, METRICS, {"options": {"axes": ["digits", ipc, method, seed]}})


def evaluation(method: str, accuracies: list[float], network: str = "convnet", seed: int = 0) -> Path:
    row = {
        **{**CELL, "method": method, "seed": seed, "network": network, "labels": "hard", "split": "test"},
        **{"selection": "last", "average": "raw", "labelled": "own", "augmented": "yes", "step_size": "learned"},
        **{"rate": 0.1, "loss": 1.0, "epochs": 1, "seconds": 1.0, "peak_memory_bytes": 1},
    }
    rows = [{**row, "repeat": index, "accuracy": accuracy} for index, accuracy in enumerate(accuracies)]
    path = Path(f"results/it/evaluation/digits/ipc-1/{method}/seed-{seed}/{network}.parquet")
    write_rows(path, rows, EVALUATION, {"options": {}})
    return path


def analysis(what: str, columns: Columns, rows: list[dict[str, Any]], method: str = "mtt", seed: int = 0) -> None:
    path = Path(f"results/it/analysis/digits/ipc-1/{method}/seed-{seed}/{what}.parquet")
    axes = {**CELL, "method": method, "seed": seed}
    write_rows(path, [{**axes, **row} for row in rows], columns, {"options": {}})


def test_measurements_along_the_iterations_are_means_over_the_seeds(figures: Callable[..., None]) -> None:
    figures(
        one={
            **{"kind": "iterations", "datasets": {"digits": [1]}, "methods": ["mtt", "satm"], "seeds": [0, 1]},
            **{"quantities": ["step_size", "test_accuracy"], "labels": {"satm": "SATM"}},
        }
    )
    for method, step in (("mtt", 0.1), ("satm", 0.3)):
        for seed in (0, 1):
            values = [step * (1 + seed)] * 4
            metrics(method, seed, step_size=values, test_accuracy=[None, 0.5, None, 0.5 + 0.2 * seed])
    drawn = draw("one")
    frame = drawn.frame.set_index(["method", "quantity", "iteration"]).sort_index()
    assert frame.loc[("mtt", "step_size", 3), "mean"] == pytest.approx(0.15)
    assert frame.loc[("satm", "step_size", 1), "mean"] == pytest.approx(0.45)
    looked = frame.xs(("mtt", "test_accuracy"))
    assert list(looked.index) == [2, 4] and list(looked["n"]) == [2, 2]
    assert looked.loc[4, "mean"] == pytest.approx(0.6) and looked.loc[4, "std"] == pytest.approx(0.2 / 2**0.5)
    assert "SATM" in texts(drawn) and "n = 2 seeds" in texts(drawn) and "test accuracy, percent" in texts(drawn)


def test_of_an_iteration_that_was_repeated_the_last_attempt_counts(figures: Callable[..., None]) -> None:
    figures(one={"kind": "iterations", "datasets": {"digits": [1]}, "methods": ["mtt"], "quantities": ["loss"]})
    metrics("mtt", loss=[3.0, 9.0, 2.0, 1.0], iteration=[1, 2, 2, 3], attempt=[0, 0, 1, 1])
    assert list(draw("one").frame["mean"]) == [3.0, 2.0, 1.0]
    metrics("mtt", loss=[3.0, 9.0, 2.0], iteration=[1, 2, 2])
    with pytest.raises(UsageError, match=r"attempt 0: row 1 of .* \(loss 9.0\) and row 2 of .* \(loss 2.0\)"):
        draw("one")


def test_published_means_are_marked_where_a_paper_prints_them(figures: Callable[..., None]) -> None:
    quantity = "hypergradient_norm"
    entry = {"kind": "iterations", "datasets": {"cifar100": [3]}, "methods": ["mtt", "satm"], "quantities": [quantity]}
    figures(one=entry)
    for method in ("mtt", "satm"):
        path = Path(f"results/it/distilled/cifar100/ipc-3/{method}/seed-0/metrics.parquet")
        row = {"iteration": 1, "attempt": 0, "event": "", "hypergradient_norm": 0.1, "seconds": 1.0}
        write_rows(path, [{**row, "peak_memory_bytes": 1}], METRICS, {"options": {}})
    drawn = draw("one")
    assert "mtt, published mean" in texts(drawn) and "satm, published mean" in texts(drawn)
    heights = [line.get_ydata()[0] for line in drawn.figure.axes[0].lines if "published" in str(line.get_label())]
    assert heights == [0.0048, 0.0022]


def test_a_sweep_has_a_point_per_value_and_lines_for_references(figures: Callable[..., None]) -> None:
    entry = {
        **{"kind": "sweep", "datasets": {"digits": [1]}, "references": ["mtt"], "axis": "rho"},
        "series": {"at evaluation": {0.1: "mtt@flat-1", 0.2: "mtt@flat-2"}, "of experts": {0.2: "ftd"}},
    }
    figures(one=entry)
    evaluation("mtt", [0.5, 0.6])
    evaluation("mtt", [0.7, 0.9], "flat-1")
    evaluation("mtt", [0.2], "flat-2")
    evaluation("ftd", [0.4])
    frame = draw("one").frame
    told = frame.set_index(["series", "method", "network"])["mean"]
    assert told["at evaluation", "mtt", "flat-1"] == pytest.approx(0.8)
    assert told["of experts", "ftd", "convnet"] == pytest.approx(0.4)
    assert told["reference", "mtt", "convnet"] == pytest.approx(0.55)
    assert list(frame["n"]) == [2, 1, 1, 2]


def test_costs_are_the_most_memory_and_the_mean_time(figures: Callable[..., None]) -> None:
    figures(one={"kind": "costs", "datasets": {"digits": [1]}, "methods": ["mtt", "satm"]})
    metrics("mtt", seconds=[9.0, 1.0, 3.0], peak_memory_bytes=[10**9, 2 * 10**9, 10**9])
    metrics("satm", seconds=[9.0, 4.0], peak_memory_bytes=[10**9, 10**9])
    frame = draw("one").frame.set_index("method")
    assert list(frame["memory_gb"]) == [2.0, 1.0] and list(frame["seconds"]) == [2.0, 4.0]


def test_a_heatmap_is_of_the_runs_that_match_one_epoch_each(figures: Callable[..., None]) -> None:
    figures(one={"kind": "correlation", "datasets": {"digits": [1]}, "methods": ["watched"], "epochs": 2})
    falling, rising = [3.0, 2.0, 1.0], [1.0, 2.0, 4.0]
    metrics("watched-at-epoch-0", monitor_0=falling, monitor_1=falling)
    metrics("watched-at-epoch-1", monitor_0=rising, monitor_1=[2.0, 1.0, 0.0])
    drawn = draw("one")
    frame = drawn.frame.set_index(["matched", "watched"])["correlation"]
    assert frame[0, 1] == pytest.approx(1) and frame[1, 1] == pytest.approx(1)
    assert frame[1, 0] == pytest.approx(numpy.corrcoef(rising, [2, 1, 0])[0, 1])
    assert "below the diagonal: mean -0.98, 100 % negative" in texts(drawn)
    figures(one={"kind": "correlation", "datasets": {"digits": [1]}, "methods": ["watched"], "epochs": 3})
    metrics("watched-at-epoch-2", monitor_0=rising, monitor_1=rising)
    with pytest.raises(UsageError, match=r"lack monitor_2: .*set monitor 3 for watched and distil again"):
        draw("one")


def test_a_run_at_one_epoch_is_the_method_with_its_start_fixed() -> None:
    resolver = load_campaign(None)
    fixed, plain = (resolver.method(Cell("digits", 1, name)) for name in ("mtt-at-epoch-7", "mtt"))
    assert fixed == {**plain, "start_epoch": 7}
    assert resolver.evaluation(Cell("digits", 1, "mtt-at-epoch-7")) == resolver.evaluation(Cell("digits", 1, "mtt"))


def test_errors_along_the_path_are_drawn_by_epoch(figures: Callable[..., None]) -> None:
    figures(one={"kind": "trajectory", "datasets": {"digits": [1]}, "methods": ["mtt"]})
    numbers = {"evaluation": 3.0, "distillation": 2.0, "expert": 1.5}
    common = {f"{name}_{kind}": value for name, value in numbers.items() for kind in ("loss", "accuracy")}
    errors = {"accumulated": 4.0, "matching": 1.0, "initialisation": 3.0, "residual": 0.0}
    rows = [
        {"kind": "path", "expert": expert, "start": epoch - 1, "epoch": epoch, "steps": 3, **common, **errors}
        for expert in (0, 1)
        for epoch in (1, 2)
    ]
    rest = {"kind": "restart", "expert": 0, "start": 1, "epoch": 2, "steps": 3, "evaluation_accuracy": 9.0}
    analysis("trajectory", TRAJECTORY, [*rows, {**rest, "evaluation_loss": 9.0}])
    frame = draw("one").frame.set_index(["quantity", "epoch"])
    assert frame.loc[("evaluation", 1), "mean"] == 1.5 and frame.loc[("distillation", 2), "mean"] == 0.5
    assert frame.loc[("accumulated", 2), "mean"] == 4.0 and frame.loc[("expert", 2), "n"] == 2


def test_variance_and_bounds_are_means_over_seeds(figures: Callable[..., None]) -> None:
    figures(
        one={"kind": "variance", "datasets": {"digits": [1]}, "methods": ["bptt"], "seeds": [0, 1]},
        two={"kind": "bounds", "datasets": {"digits": [1]}, "methods": ["satm"]},
    )
    for seed in (0, 1):
        rows = [{"iteration": place, "samples": 10, "variance": 1.0 + seed, "norm": 1.0} for place in (0, 5)]
        analysis("variance", VARIANCE, rows, "bptt", seed)
    assert list(draw("one").frame["mean"]) == [1.5, 1.5] and "10 single real images" in texts(draw("one"))
    common = {"segment": 0, "steps": 6, "step_size": 0.5, "rho": 0.1, "gradient": 1.0, "relative": 0.2}
    rows = [
        {
            **common,
            "quantity": "truncation",
            "kept": 2,
            "error": 0.4,
            "lowest_curvature": -1.0,
            "highest_curvature": 3.0,
        },
        {**common, "quantity": "reuse", "kept": 2, "error": 0.1, "bound": 4.0},
    ]
    analysis("bounds", BOUNDS, rows, "satm")
    frame = draw("two").frame.set_index("quantity")
    assert frame.loc["truncation", "lowest_curvature_mean"] == -1 and frame.loc["reuse", "bound_mean"] == 4
    assert "1 / step size" in texts(draw("two"))


def test_pictures_stand_beside_what_they_began_from(figures: Callable[..., None]) -> None:
    figures(
        one={"kind": "images", "datasets": {"greys": [1]}, "methods": ["mtt"], "start": True},
        two={"kind": "animation", "datasets": {"greys": [1]}, "methods": ["mtt"]},
    )
    path = Path("results/it/distilled/greys/ipc-1/mtt/seed-0/distilled.safetensors")
    save_distilled(path, dataclasses.replace(moving(2, (0.0, 0.4, 1.0)), options=asked("greys")))
    drawn = draw("one")
    assert "start of mtt" in texts(drawn) and "are clipped" in texts(drawn)
    assert list(draw("two").frame["iteration"]) == [0, 1, 2]
    assert main(["figure", "--config", "it.yaml", "--name", "two"]) == 0
    with Image.open("results/it/figures/two.png") as picture:
        assert picture.n_frames == 3  # type: ignore[attr-defined]
    assert Path("results/it/figures/two.pdf").is_file() and Path("results/it/figures/two.csv").is_file()
    save_distilled(path, dataclasses.replace(synthetic(2, 1), options=asked("greys")))
    for name in ("one", "two"):
        with pytest.raises(UsageError, match="without its history; distil it with snapshots"):
            draw(name)


def test_pictures_of_sets_that_are_missing_say_so(figures: Callable[..., None]) -> None:
    cell = {"datasets": {"digits": [1]}, "methods": ["mtt"]}
    figures(one={"kind": "images", **cell}, two={"kind": "animation", **cell})
    for name in ("one", "two"):
        with pytest.raises(MissingRun):
            draw(name)
        drawn = draw(name, partial=True)
        assert drawn.frame.empty and drawn.png is None
        assert "Left out: the synthetic set" in drawn.figure.texts[-1].get_text().replace("\n", " ")


def test_what_was_not_run_is_told_or_left_out(figures: Callable[..., None], refused: Refuse) -> None:
    entry = {"kind": "iterations", "datasets": {"digits": [1]}, "methods": ["mtt", "satm"], "quantities": ["loss"]}
    figures(one=entry)
    metrics("mtt", loss=[3.0, 2.0])
    campaign = "--config it.yaml --dataset digits"
    first = f"begin with: python -m satm data {campaign}; then: python -m satm experts {campaign} --experts sgd; then "
    made_by = f"{first}make it with: python -m satm distill {campaign} --ipc 1 --method satm --seed 0"
    with pytest.raises(MissingRun, match=f"satm/seed-0/metrics.parquet is missing; {made_by}"):
        draw("one")
    assert made_by in refused("figure", "--config", "it.yaml", "--name", "one")
    drawn = draw("one", partial=True)
    assert set(drawn.frame["method"]) == {"mtt"}
    assert "Left out:" in texts(drawn) and made_by in texts(drawn).replace("\n", " ")
    assert main(["figure", "--config", "it.yaml", "--name", "one", "--partial"]) == 0
    assert Path("results/it/figures/one.pdf").is_file()


def test_files_of_another_run_are_refused(figures: Callable[..., None]) -> None:
    figures(
        one={"kind": "iterations", "datasets": {"digits": [1]}, "methods": ["mtt"], "quantities": ["loss"]},
        two={"kind": "sweep", "datasets": {"digits": [1]}, "series": {"a": {1: "mtt"}}, "axis": "b"},
    )
    metrics("satm", loss=[1.0])
    path = Path("results/it/distilled/digits/ipc-1/satm").rename("results/it/distilled/digits/ipc-1/mtt")
    with pytest.raises(UsageError, match=r"is not what .*: axes: expected \['digits', 1, 'mtt', 0\], found .*'satm'"):
        draw("one")
    metrics("mtt", loss=[1.0])
    measured = path / "seed-0" / "metrics.parquet"
    rows = pandas.read_parquet(measured).to_dict("records")
    options = {**asked("digits"), "notes": {"images": "one"}}
    held = dataclasses.replace(synthetic(2, 1), dataset="digits", method="mtt", seed=0, options=options)
    save_distilled(path / "seed-0" / "distilled.safetensors", held)
    for seen, told in (
        ({"notes": {"images": "one"}}, None),
        (
            {"notes": {"images": "two"}},
            "two versions of one run: notes.images: .*; make both again with: .*--overwrite",
        ),
        (
            {"iterations": 2},
            r"is not what the campaign asks for: options.iterations: expected \d+, found 2; begin with: ",
        ),
    ):
        write_rows(measured, rows, METRICS, {"options": {"options": {**asked("digits"), **seen}}})  # type: ignore[arg-type]
        if told is None:
            assert draw("one").frame["mean"].tolist() == [1.0]
        else:
            with pytest.raises(UsageError, match=told):
                draw("one")
    write_rows(measured, rows, METRICS, {"options": 3})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"metrics.parquet is damaged, or a file of another kind; begin with: "):
        draw("one")
    (path / "seed-0" / "distilled.safetensors").unlink()
    kept = evaluation("mtt", [0.5, 0.6])
    rows = pandas.read_parquet(kept).to_dict("records")
    write_rows(kept, [*rows, {**rows[0], "accuracy": 0.7}], EVALUATION, {"options": {}})  # type: ignore[list-item]
    with pytest.raises(UsageError, match=r"row 0 of .*parquet \(accuracy 0.5\) and row 2 of .* \(accuracy 0.7\)"):
        draw("two")
    write_rows(kept, rows, EVALUATION, {"options": {"distilled": "abc"}})  # type: ignore[arg-type]
    save_distilled(path / "seed-0" / "distilled.safetensors", held)
    with pytest.raises(
        UsageError, match=r": it is of another synthetic set than .*distilled.safetensors; begin with: "
    ):
        draw("two")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"kind": "iteration"}, "figures.one: unknown kind of figure 'iteration'.*mean 'iterations'"),
        ({"datasets": {"digits": [1]}}, "figures.one: the kind of figure is missing; known: accounting, animation"),
        (
            {"kind": "iterations", "datasets": {"digits": [1]}, "methods": ["mtt"], "quantities": ["los"]},
            "figures.one.*quantities",
        ),
        ({"kind": "animation", "datasets": {"digits": [1, 2]}, "methods": ["mtt"]}, "shows one synthetic set, got 2"),
        ({"kind": "continual", "protocols": ["five"]}, "figure one: unknown protocol .* 'five'; known: none"),
        (
            {"kind": "costs", "datasets": {"digits": [1]}, "methods": ["mtt"], "quantity": 1},
            "unknown option 'figures.one.*quantity'",
        ),
    ],
)
def test_figures_that_cannot_be_drawn_are_refused(figures: Callable[..., None], entry: Any, text: str) -> None:
    figures(one=entry)
    with pytest.raises(UsageError, match=text):
        load_campaign(Path("it.yaml"))


def test_groups_of_methods_have_panels_of_their_own(figures: Callable[..., None]) -> None:
    entry = {
        **{"kind": "iterations", "datasets": {"digits": [1]}, "methods": ["a", "b", "c"], "quantities": ["loss"]},
        "groups": {"lengths": ["a", "b"], "windows": ["b", "c"]},
    }
    figures(one=entry)
    for method in "abc":
        metrics(method, loss=[3.0, 2.0])
    drawn = draw("one")
    assert [[line.get_label() for line in axes.lines] for axes in drawn.figure.axes] == [["a", "b"], ["b", "c"]]
    assert "digits, 1 image per class, windows" in texts(drawn)
    figures(one={**entry, "groups": {"lengths": ["d"]}})
    with pytest.raises(UsageError, match="groups names 'd', which is not among methods"):
        load_campaign(Path("it.yaml"))


def test_the_network_that_is_tested_has_settings_of_its_own(figures: Callable[..., None]) -> None:
    setting = {"stage": "evaluate", "network": "flat", "options": {"flat_rho": 0.1}}
    content = {"networks": {"flat": {"network": "convnet"}}, "settings": [setting]}
    YAML(typ="safe", pure=True).dump(content, Path("it.yaml"))
    resolver = load_campaign(Path("it.yaml"))
    rhos = [resolver.evaluation(Cell("digits", 1, "mtt"), network).flat_rho for network in ("flat", "convnet", "")]
    assert rhos == [0.1, 0.0, 0.0]

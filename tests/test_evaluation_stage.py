"""The stage that evaluates averaged sets: a network of each repeat on the average and on the raw set, resumable."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas
import pytest
from resuming import kept_rows

from satm.cli import main
from satm.results.columns import EVALUATION
from satm.results.distilled import DistilledDataset, load_distilled, save_distilled
from satm.results.rows import read_rows
from satm.stages import evaluate as stage
from satm.stages.checkpoint import Generations, RowsState

RUN = Path("results/tiny")
CELL = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "satm")
DISTILLED = RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"
EVALUATED = RUN / "evaluation/digits/ipc-1/satm/seed-0/convnet.parquet"
STATE = RUN / "state/evaluate/digits/ipc-1/satm/seed-0/convnet"


def evaluated(made: DistilledDataset) -> pandas.DataFrame:
    """Store a set and evaluate it."""
    save_distilled(DISTILLED, made)
    assert main(["evaluate", *CELL]) == 0
    return read_rows(EVALUATED, EVALUATION)


def measured(rows: pandas.DataFrame) -> list[Any]:
    return rows[["repeat", "labels", "accuracy", "loss"]].to_dict("records")


def test_an_average_and_its_raw_set_are_trained_on_with_the_same_networks(campaign: Path) -> None:
    made = load_distilled(DISTILLED)
    averaged = dataclasses.replace(made, average="ema", images=0.5 * made.images, raw_images=made.images)
    rows = evaluated(averaged)
    assert rows["average"].tolist() == ["ema", "ema", "raw", "raw"] and rows["repeat"].tolist() == [0, 1, 0, 1]
    alone = evaluated(made)
    assert alone["average"].tolist() == ["raw", "raw"]
    assert measured(rows[2:]) == measured(alone)
    assert measured(rows[:2]) == measured(evaluated(dataclasses.replace(averaged, raw_images=None)))
    assert rows["loss"].nunique() == 4


def test_an_interrupted_evaluation_of_both_goes_on(campaign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_distilled(DISTILLED)
    averaged = dataclasses.replace(made, average="ema", images=0.5 * made.images, raw_images=made.images)
    whole = evaluated(averaged)
    honest, done = stage.evaluate, []

    def stops(*arguments: Any) -> Any:
        done.append(arguments[2])
        if len(done) == 4:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(stage, "evaluate", stops)
    EVALUATED.unlink()
    assert main(["evaluate", *CELL]) == 75 and not EVALUATED.exists()
    assert [row["average"] for row in kept_rows(STATE)] == ["ema", "ema", "raw"]
    again = evaluated(averaged)
    assert len(done) == 5 and done[3] == done[4] == done[1], "only the last network was left, of the second repeat"
    assert measured(again) == measured(whole) and not STATE.exists()


def test_rows_kept_from_before_averages_are_of_the_raw_set(campaign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_rows(EVALUATED, EVALUATION)

    def stops(*arguments: Any) -> None:
        raise KeyboardInterrupt

    honest = stage.evaluate
    calls = iter([honest, stops])
    monkeypatch.setattr(stage, "evaluate", lambda *arguments: next(calls)(*arguments))
    assert main(["evaluate", *CELL]) == 75
    found = Generations(STATE, "rows").load()
    assert found is not None
    RowsState(STATE, found[1]["identity"]).save(
        [{name: value for name, value in row.items() if name != "average"} for row in found[1]["rows"]]
    )
    monkeypatch.setattr(stage, "evaluate", honest)
    assert main(["evaluate", *CELL]) == 0
    assert measured(read_rows(EVALUATED, EVALUATION)) == measured(whole)

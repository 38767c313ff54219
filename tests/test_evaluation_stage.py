"""The stage that evaluates averaged sets: a network of each repeat on the average and on the raw set, resumable."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas
from resuming import kept_rows, stopped_after

from satm.cli import main
from satm.results.columns import EVALUATION
from satm.results.distilled import DistilledDataset, load_distilled, save_distilled
from satm.results.rows import read_rows

RUN = Path("results/tiny")
CELL = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "satm")
DISTILLED = RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"
EVALUATED = RUN / "evaluation/digits/ipc-1/satm/seed-0/convnet.parquet"
STATE = RUN / "state/evaluate/digits/ipc-1/satm/seed-0/convnet"


def evaluated(made: DistilledDataset) -> pandas.DataFrame:
    """Store a set and evaluate it."""
    save_distilled(DISTILLED, made)
    assert main(["evaluate", *CELL, "--overwrite"]) == 0
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


def test_an_interrupted_evaluation_of_both_goes_on(campaign: Path) -> None:
    made = load_distilled(DISTILLED)
    averaged = dataclasses.replace(made, average="ema", images=0.5 * made.images, raw_images=made.images)
    whole = evaluated(averaged)
    EVALUATED.unlink()
    with stopped_after(3, "/rows-"):
        assert main(["evaluate", *CELL]) == 75 and not EVALUATED.exists()
    kept = kept_rows(STATE)
    assert [row["average"] for row in kept] == ["ema", "ema", "raw"]
    again = evaluated(averaged)
    assert again["seconds"].tolist()[:3] == [row["seconds"] for row in kept], "only the last network was left"
    assert measured(again) == measured(whole) and not STATE.exists()

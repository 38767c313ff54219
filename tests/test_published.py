"""Every number that the papers print stands in exactly one row of the tables of `config/paper.yaml`."""

from collections import Counter
from pathlib import Path

import pandas
import pytest

from satm.config import Resolver, load_campaign
from satm.tables.accuracy import AccuracyTable
from satm.tables.base import table_of
from satm.tables.late_start import LateStartTable
from satm.tables.published import PUBLISHED, load_published, published_name
from satm.tables.reader import Reader
from satm.tables.run_metrics import RunMetricsTable
from satm.tables.search import METRICS, SearchTable

ROOT = Path(__file__).parent.parent

Number = tuple[str, str, str, str, str, str, float]
"""Source and table, dataset, ipc, method, network, metric, value as printed."""


@pytest.fixture(scope="session")
def paper() -> Resolver:
    return load_campaign(ROOT / "config" / "paper.yaml")


def shown(resolver: Resolver, name: str) -> list[Number]:
    """Return the published numbers that stand in a table's rows as its own."""
    options = table_of(resolver, name)
    frame = options.frame(Reader(resolver, partial=True), name)
    found: list[Number] = []
    if isinstance(options, AccuracyTable):
        own = " ".join(PUBLISHED[name][0]) if name in PUBLISHED else ""
        for row in frame[frame["published_source"] == own].to_dict("records"):
            method = options.published_as.get(row["method"], row["method"])
            method = "full" if method.startswith("full-") else method
            ipc = "" if row["ipc"] == 0 else str(row["ipc"])
            place = (own, published_name(row["dataset"]), ipc, method, row["published_network"])
            found.append((*place, "test_accuracy", round(100 * row["published_mean"], 6)))
    elif isinstance(options, RunMetricsTable):
        for row in frame[frame["published_source"].notna()].to_dict("records"):
            method = options.published_as.get(row["method"], row["method"])
            place = (row["published_source"], published_name(row["dataset"]), "", method, "")
            found.append((*place, row["measure"], round(row["published"], 6)))
    elif isinstance(options, LateStartTable):
        for row in frame[frame["published_source"].notna()].to_dict("records"):
            place = (row["published_source"], row["dataset"], str(row["ipc"]), row["method"], "convnet")
            found.append((*place, "test_accuracy", round(100 * row["published_mean"], 6)))
    elif isinstance(options, SearchTable):
        for row in frame[frame["published_source"].notna()].to_dict("records"):
            method, ipc = ("full", "") if row["method"] == "real" else (row["method"], str(row["ipc"]))
            place = (row["published_source"], row["dataset"], ipc, method, "convnet-nas-720")
            for column, metric in METRICS.items():
                value = row[f"published_{column}"]
                scale = 100 if metric == "nas_best_model_accuracy" else 1
                found += [(*place, metric, round(scale * value, 6))] if pandas.notna(value) else []
    return found


def printed() -> list[Number]:
    """Return the published numbers that the tables must show: those that are legible and not listed with a reason."""
    frame = load_published()
    aside = pandas.read_csv(ROOT / "satm" / "tables" / "not_shown.csv")
    keys = ["source", "table", "dataset", "metric"]
    assert aside["reason"].notna().all() and not aside.duplicated(keys).any()
    merged = frame.merge(aside[[*keys, "reason"]], on=keys, how="left")
    assert len(merged) == len(frame) and set(aside["reason"]) <= set(merged["reason"])
    kept = merged[merged["value"].notna() & merged["reason"].isna()]
    accurate = kept["metric"].eq("test_accuracy") | kept["table"].isin(["Table 5", "Table 7"]) & kept["task"].eq("nas")
    return [
        (
            f"{row['source']} {row['table']}",
            row["dataset"],
            str(int(row["ipc"])) if of_sets and pandas.notna(row["ipc"]) else "",
            row["method"],
            row["eval_arch"] if of_sets else "",
            row["metric"],
            round(row["value"], 6),
        )
        for row, of_sets in zip(kept.to_dict("records"), accurate, strict=True)
    ]


def test_every_published_number_stands_in_exactly_one_row(paper: Resolver) -> None:
    found = Counter(number for name in paper.campaign.tables for number in shown(paper, name))
    expected = Counter(printed())
    assert len(load_published()) == 684
    assert not expected - found
    assert not found - expected
    assert sum(expected.values()) == 684 - 5 - 3 - 6  # illegible; numbers of images; averages


def test_without_runs_the_tables_hold_no_measured_number(paper: Resolver, tmp_path: Path) -> None:
    for name, options in paper.campaign.tables.items():
        if isinstance(options, AccuracyTable):
            frame = options.frame(Reader(paper, partial=True), name)
            assert frame[["accuracy_mean", "accuracy_std", "difference", "seconds"]].isna().all(axis=None), name


def test_the_tables_of_the_papers_are_all_there(paper: Resolver) -> None:
    satm_tables = [f"table{number}" for number in (2, 3, 4, 5, 7, 8, 9, 10, 11, 12)]
    ftd_tables = [f"ftd-table{number}" for number in range(1, 7)]
    contra_tables = [f"contra-table{number}" for number in (1, 2, 3, 4, 6, 7, 8)] + ["contra-table4-time"]
    ratbptt_tables = ["ratbptt-table1", "ratbptt-table2", "ratbptt-figure4", "ratbptt-c7", "ratbptt-c8"]
    wanted = {*satm_tables, *ftd_tables, *contra_tables, *ratbptt_tables}
    assert wanted <= set(paper.campaign.tables)

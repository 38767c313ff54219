"""What a campaign takes before it starts: its jobs, what they do, how long that takes somewhere."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
from conftest import TINY
from PIL import Image

from satm.cli import main
from satm.config import Resolver, load_campaign
from satm.cost.forecast import STEP_WITH_GRAPH, Pace, cost, disk
from satm.cost.workload import ASSUMED_CLASSES, Piece, Share, assumptions, pieces, shape, shares
from satm.errors import UsageError
from satm.results.columns import PACE
from satm.results.rows import read_rows, write_rows
from satm.workflow.campaigns import Campaigns
from satm.workflow.graph import Job
from satm.workflow.jobs import campaigns_of, jobs

ROOT = Path(__file__).parent.parent

CAMPAIGN = (
    TINY.replace(
        "sgd: {count: 2, epochs: 3, lr: 0.05, batch_size: 256, per_job: 1}",
        "sgd: {count: 3, epochs: 4, batch_size: 256, per_job: 2}",
    )
    + """
  worth: {datasets: {digits: [2]}, methods: [random, mtt-watched], networks: [alexnet], full: [strong]}
  few: {kind: search, datasets: {digits: [1]}, methods: [random], sample: 5, per_job: 3, width_factor: 0.1}
  two: {kind: continual, datasets: {digits: [1]}, methods: [satm], steps: 2, orders: 2, repeats: 1}
methods:
  mtt-watched: {method: mtt, monitor: 2, watch: test, evaluate_every: 2}
  boosted: {method: ratbptt, blocks: 2, window: 2, inner_steps: 4, iterations: 4, real_batch: 64}
figures:
  correlation: {kind: correlation, datasets: {digits: [1]}, methods: [mtt-watched], epochs: 2}
  lines: {kind: iterations, datasets: {white: [2]}, methods: [dm, boosted], quantities: [loss]}
"""
)


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Campaigns, Resolver, list[Job]]:
    path = tmp_path_factory.mktemp("cost") / "predicted.yaml"
    path.write_text(CAMPAIGN)
    campaigns = campaigns_of(path)
    return campaigns, campaigns.of("results/predicted"), jobs(campaigns, "results/predicted")


@pytest.mark.workflow
def test_the_plan_is_that_of_the_workflow(
    planned: tuple[Campaigns, Resolver, list[Job]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "predicted.yaml").write_text(CAMPAIGN)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run", "--cores", "1"]
    command += ["--configfile", "predicted.yaml", "--", "results/predicted/tables/all", "results/predicted/figures/all"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    found: Counter[tuple[str, str]] = Counter()
    for block in re.split(r"\n(?=(?:local)?rule \w+:)", told)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", block)
        wildcards = re.search(r"^    wildcards: (.*)$", block, re.MULTILINE)
        assert rule is not None
        if rule[1] not in ("all_tables", "all_figures"):
            pairs = sorted(pair.split("=", 1) for pair in wildcards[1].split(", ")) if wildcards else []
            found[rule[1], str(pairs)] += 1
    assert found == Counter((job.rule, str([list(pair) for pair in job.names])) for job in planned[2])
    assert len(found) > 30 and set(found.values()) == {1}


def one(planned: tuple[Campaigns, Resolver, list[Job]], rule: str, at_once: bool = False, **names: str) -> list[Share]:
    resolver, found = planned[1:]
    chosen = [job for job in found if job.rule == rule and names.items() <= dict(job.names).items()]
    assert len(chosen) == 1, chosen
    known = shares(resolver, chosen[0], at_once)
    assert known is not None
    return known


def test_experts_train_in_batches_and_are_tested(planned: tuple[Campaigns, Resolver, list[Job]]) -> None:
    """1437 images in batches of 256 are five whole ones and a rest, for two experts of four epochs; both are tested."""
    found = one(planned, "experts_part", dataset="digits", part="0-1")
    assert [(share.times, share.images) for share in found[:2]] == [(5 * 4 * 2, 256), (1 * 4 * 2, 157)]
    assert found[2].images == 256 and found[2].times == pytest.approx(2 * 360 / 256 / 3)
    assert found[0].piece.values["augment"] == "crop_scale_rotate" and found[0].piece.values["together"] == 1


def test_an_evaluation_trains_each_repeat_or_all_at_once(planned: tuple[Campaigns, Resolver, list[Job]]) -> None:
    alone = one(planned, "evaluate", method="random", ipc="2", network="alexnet")
    assert [(share.times, share.images) for share in alone[:-1]] == [(2 * 3, 20)]
    together = one(planned, "evaluate", True, method="random", ipc="2", network="alexnet")
    assert [(share.times, share.images) for share in together[:-1]] == [(3, 20)]
    assert together[0].piece.values["together"] == 2


def test_a_distillation_iterates_and_evaluates_along_the_way(planned: tuple[Campaigns, Resolver, list[Job]]) -> None:
    found = one(planned, "distill", method="mtt-watched", ipc="2")
    iterations, *looks = found
    assert iterations.times == 3 and iterations.piece.values["monitor_every"] == 10
    assert [(share.times, share.images) for share in looks[:-1]] == [(2 * 3, 20)], "two looks of three epochs"
    (plain,) = one(planned, "distill", method="satm", dataset="digits")
    assert plain.piece.values["method"] == {
        "engine": "reverse",
        "gamma": 0.001,
        "inner_steps": 4,
        "keep_divisor": 2,
        "method": "satm",
        "rho": 0.05,
    }
    assert one(planned, "distill", method="random", ipc="2") == []


def test_continual_learning_and_a_search_train_each_network(planned: tuple[Campaigns, Resolver, list[Job]]) -> None:
    learned = one(planned, "continual", method="satm")
    assert [share.images for share in learned if share.images != 256] == [5, 10] * 2
    searched = [share for share in one(planned, "nas", part="3-4") if share.images == 10]
    assert len(searched) == 2 and all(share.piece.values["network"]["norm"] == "instance" for share in searched)
    real = one(planned, "nas_real", part="3-4")
    assert max(share.times for share in real) == 3 * 200 * 5


def rows(*values: tuple[str, dict[str, Any], int, float | None, int]) -> pandas.DataFrame:
    return pandas.DataFrame(
        [
            {
                "kind": kind,
                "key": json.dumps(key, sort_keys=True),
                "amount": amount,
                "seconds": math.nan if seconds is None else seconds,
                "peak_memory_bytes": peak,
                "parameters": 100,
                "device": "a machine",
            }
            for kind, key, amount, seconds, peak in values
        ]
    )


STEP = {"network": {"network": "n"}, "channels": 1, "size": 8, "classes": 10, "augment": ""}
TRAINED = {**STEP, "together": 1, "sharpness_aware": False}


def share(kind: Any, key: dict[str, Any], times: float, images: int = 0) -> Share:
    return Share(Piece(kind, json.dumps(key, sort_keys=True)), times, images)


def test_seconds_are_interpolated_between_measurements(planned: tuple[Campaigns, Resolver, list[Job]]) -> None:
    matched = {**STEP, "ipc": 1, "method": {"method": "mtt", "inner_steps": 30}}
    steps = [("step", TRAINED, 8, 1.0, 10), ("step", TRAINED, 64, 1.0, 20), ("step", TRAINED, 256, 4.0, 50)]
    pace = Pace(rows(*steps, ("iteration", matched, 6, 1.0, 7), ("iteration", matched, 12, 2.5, 8)))
    for images, seconds in ((2, 1.0), (30, 1.0), (160, 2.5), (512, 8.0)):
        found = pace.of(share("step", TRAINED, 10, images))
        assert found is not None and found.seconds == pytest.approx(10 * seconds) and found.known == "measured"
    found = pace.of(share("iteration", matched, 2))
    assert (
        found is not None
        and found.seconds == pytest.approx(2 * (1.0 + 24 * 0.25))
        and found.memory == pytest.approx(11)
    )


def test_unmeasured_iterations_are_estimated_from_training_steps(
    planned: tuple[Campaigns, Resolver, list[Job]],
) -> None:
    pace = Pace(rows(("step", TRAINED, 8, 1.0, 10), ("step", TRAINED, 256, 1.0, 10)))
    for method, passes in (
        ({"method": "mtt", "inner_steps": 30}, 30 * STEP_WITH_GRAPH),
        ({"method": "satm", "inner_steps": 30, "keep_divisor": 3}, 10 * STEP_WITH_GRAPH + 20),
        ({"method": "contra", "inner_steps": 10, "concurrent": 3}, 4 * 10 * STEP_WITH_GRAPH),
        ({"method": "ratbptt", "inner_steps": 50, "window": 10}, 10 * STEP_WITH_GRAPH + 20),
    ):
        found = pace.of(share("iteration", {**STEP, "ipc": 1, "method": method}, 2))
        assert found is not None and found.seconds == pytest.approx(2 * passes) and found.known == "estimated"
    assert pace.of(share("iteration", {**STEP, "ipc": 1, "method": {"method": "dm"}}, 1)) is None
    assert pace.of(share("step", {**TRAINED, "size": 16}, 1, 8)) is None
    assert pace.of(share("iteration", {**STEP, "size": 16, "ipc": 1, "method": {"method": "mtt"}}, 1)) is None


def test_stages_sum_the_jobs_of_a_campaign(planned: tuple[Campaigns, Resolver, list[Job]]) -> None:
    resolver, found = planned[1:]
    every = pieces(resolver, found, at_once=False)
    assert len(every) == len(set(every)) > 10
    known = [(piece.kind, piece.values, 0, 3600.0, 5) for piece in every]
    stages = cost(resolver, found, Pace(rows(*known)), at_once=False)
    assert sum(stage.jobs for stage in stages.values()) == len(found)
    total = 0.0
    for job in found:
        parts = shares(resolver, job, at_once=False) or []
        total += sum(share.times for share in parts)
    assert sum(stage.hours for stage in stages.values()) == pytest.approx(total)
    assert stages["distill"].longest == 20_000 and "method dm" in stages["distill"].longest_job
    assert stages["experts_part"].memory == 5 + 64 * (1437 + 360)
    lost = [
        (kind, key, amount, None if kind == "iteration" else seconds, peak)
        for kind, key, amount, seconds, peak in known
    ]
    stages = cost(resolver, found, Pace(rows(*lost)), at_once=False)
    assert len(stages["distill"].too_large) == sum(piece.kind == "iteration" for piece in every)


def test_predicted_disk_matches_the_files_of_a_finished_campaign(
    planned: tuple[Campaigns, Resolver, list[Job]], finished: Path
) -> None:
    """Beside the files of a finished campaign of the same shapes."""
    resolver, found = planned[1:]
    pace = Pace(
        rows(("step", {**TRAINED, "network": {"network": "convnet", "depth": 1, "width": 4}}, 8, 1.0, 1)),
    )
    real = finished / "results/tiny"
    for rule, path in (
        ("images", "data/digits/images.safetensors"),
        ("distill", "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"),
    ):
        job = next(
            job
            for job in found
            if job.rule == rule
            and dict(job.names).get("method", "satm") == "satm"
            and ("dataset", "digits") in job.names
        )
        assert disk(resolver, job, pace) == pytest.approx((real / path).stat().st_size, rel=0.5)  # a forecast
    part = next(job for job in found if job.rule == "experts_part" and ("part", "0-1") in job.names)
    assert disk(resolver, part, pace) == 4 * 2 * 5 * 100


def test_unknown_shapes_are_assumed(planned: tuple[Campaigns, Resolver, list[Job]]) -> None:
    resolver = planned[1]
    seen = shape(resolver, "cifar100")
    assert (seen.images, seen.test_images, seen.classes, seen.pixels) == (50_000, 10_000, 100, 3072)
    assert shape(resolver, "held").images == 1437 - 50
    paper = campaigns_of(ROOT / "config/paper.yaml").of("results")
    assert shape(paper, "imagenette").images == 13_000
    names = ("imagenette", "imagenet1k", "cifar10")
    told = assumptions(paper, [Job("images", (("dataset", name),)) for name in names])
    assert [text.split()[2] for text in told] == ["imagenette,", "imagenet1k,"]
    assert "10 classes of 1300 training images, 128 x 128" in told[0] and "set classes in its entry" in told[1]


def test_prepared_images_are_not_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for index, (part, label) in enumerate(itertools.product(("train", "train", "test"), ("ant", "bee", "cat"))):
        path = Path(f"photos/{part}/{label}/{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (9 * index, 5 * index, 90 + index)).save(path)
    entries = "photos: {source: folder, path: photos}, two: {source: folder, path: photos, classes: [0, 2]}"
    Path("c.yaml").write_text(f"datasets: {{{entries}}}")
    for name, classes in (("photos", 3), ("two", 2)):
        jobs = [Job("images", (("dataset", name),))]
        assert assumptions(load_campaign(Path("c.yaml")), jobs)
        assert main(["data", "--config", "c.yaml", "--dataset", name]) == 0
        resolver = load_campaign(Path("c.yaml"))
        seen = shape(resolver, name)
        assert (seen.images, seen.test_images, seen.classes, seen.pixels) == (2 * classes, classes, classes, 108)
        assert assumptions(resolver, jobs) == []
    assert shape(resolver, "two-order-0-step-1-of-2").images == 2
    Path("c.yaml").write_text(f"datasets: {{{entries.replace('path: photos}', 'path: photos, size: 8}')}}}")
    assert shape(load_campaign(Path("c.yaml")), "photos").classes == ASSUMED_CLASSES


def test_measuring_the_pace_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("predicted.yaml").write_text(CAMPAIGN)
    command = [
        "bench",
        "pace",
        "--config",
        "predicted.yaml",
        "--out",
        "pace.parquet",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    assert main([*command, "--seconds", "0"]) == 0
    assert "are left; run the same command to measure them" in capsys.readouterr().out
    assert main(command) == 0
    first = read_rows(Path("pace.parquet"), PACE)
    assert (
        set(first["kind"]) == {"step", "iteration"}
        and (first["seconds"] >= 0).all()
        and (first["parameters"] > 0).all()
    )
    content = Path("pace.parquet").read_bytes()
    assert main(command) == 0 and Path("pace.parquet").read_bytes() == content, "nothing was left to measure"
    capsys.readouterr()
    assert main(["cost", "--config", "predicted.yaml", "--pace", "pace.parquet", "--start-seconds", "0"]) == 0
    told = capsys.readouterr().out
    for words in ("experts_part", "9 measured", "Hours on cpu", "The longest jobs: "):
        assert words in told, told
    write_rows(Path("pace.parquet"), first.assign(device="another").to_dict("records"), PACE, {})
    assert main(command) == 2
    assert "was measured on another, this machine is cpu; name another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "cost needs --config with a campaign"),
        (("--config", "missing.yaml"), "cannot read the configuration missing.yaml"),
        (("--config", "tiny.yaml", "--pace", "missing.parquet"), "measured pace missing.parquet does not exist"),
        (("--config", "tiny.yaml", "--pace", "tiny.yaml"), "is not a whole parquet file"),
        (("--config", "tiny.yaml", "--pace", "empty.parquet"), "empty.parquet has no measurements; make it with"),
        (("--config", "tiny.yaml", "--start-seconds", "-1"), "--start-seconds must be at least 0, got -1"),
    ],
)
def test_unusable_input_of_the_forecast_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    write_rows(Path("empty.parquet"), [], PACE, {})
    assert main(["cost", *arguments]) == 2
    told = capsys.readouterr().err
    assert text in told and told.count("\n") == 1


@pytest.mark.parametrize("key", ["{", "3", "{}", '{"network": 3}'])
def test_a_pace_with_damaged_keys_is_refused(planned: tuple[Campaigns, Resolver, list[Job]], key: str) -> None:
    held = rows(("step", TRAINED, 8, 1.0, 10)).assign(key=key)
    with pytest.raises(
        UsageError, match=r"the pace has a 'step' of .*, which is not a piece of a job; measure it again"
    ):
        Pace(held)

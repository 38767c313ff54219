"""Sharpness of a synthetic set, against its definition written out."""

from dataclasses import replace

import pytest
import torch
from conftest import Refuse

from satm.analysis.sharpness import measure_sharpness
from satm.bench import Case, relative
from satm.methods import Problem, Synthetic
from satm.methods.matching import MatchingOptions, TrajectoryMatching
from satm.results import SHARPNESS, read_rows
from satm.seeds import make_generator

OPTIONS = MatchingOptions(inner_steps=3, expert_epochs=1, max_start_epoch=3, step_size=0.1)


def in_float64(matching: TrajectoryMatching) -> Synthetic:
    start = matching.start()
    return replace(start, images=start.images.double(), step_size=start.step_size.double())


def test_sharpness_is_the_rise_of_the_loss_along_the_gradient(problem: Problem) -> None:
    matching = TrajectoryMatching(OPTIONS, problem)
    synthetic, rho = in_float64(matching), 0.3
    found = list(measure_sharpness(matching, synthetic, rho, segments=2))
    for index, row in enumerate(found):
        oracle = matching.oracle(synthetic, make_generator("sharpness", *problem.axes, index))
        slope = oracle(synthetic.images).images
        neighbour = synthetic.images + rho * slope / slope.square().sum().sqrt()
        assert row["loss"] == pytest.approx(float(oracle(synthetic.images).loss), rel=1e-12)
        assert row["perturbed_loss"] == pytest.approx(float(oracle(neighbour).loss), rel=1e-12)
        assert row["sharpness"] == row["perturbed_loss"] - row["loss"]
    assert found[0] != found[1]


def test_a_small_step_rises_by_rho_times_the_norm(problem: Problem) -> None:
    matching = TrajectoryMatching(OPTIONS, problem)
    synthetic, rho = in_float64(matching), 1e-5
    (row,) = measure_sharpness(matching, synthetic, rho, segments=1)
    slope = matching.oracle(synthetic, make_generator("sharpness", *problem.axes, 0))(synthetic.images).images
    assert row["sharpness"] == pytest.approx(rho * float(slope.norm()), rel=1e-3)


def test_without_a_step_there_is_no_rise(problem: Problem) -> None:
    matching = TrajectoryMatching(OPTIONS, problem)
    assert [row["sharpness"] for row in measure_sharpness(matching, in_float64(matching), 0.0, 2)] == [0.0, 0.0]


def test_the_stage_measures_every_method_on_the_same_segments(campaign: object, refused: Refuse) -> None:
    from satm.cli import main

    cell = ["--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1"]
    assert main(["distill", *cell, "--method", "mtt"]) == 0
    for method in ("satm", "mtt"):
        assert main(["analyse", *cell, "--method", method, "--segments", "2"]) == 0
    from pathlib import Path

    rows = [
        read_rows(Path(f"results/tiny/analysis/digits/ipc-1/{method}/seed-0/sharpness.parquet"), SHARPNESS)
        for method in ("satm", "mtt")
    ]
    assert [list(frame["segment"]) for frame in rows] == [[0, 1], [0, 1]]
    assert set(rows[0]["rho"]) == set(rows[1]["rho"]) == {0.05}
    assert "sharpness is that of a matching loss" in refused("analyse", *cell, "--method", "random")


def test_engines_agree_on_the_benchmark_case() -> None:
    case = Case(width=4, depth=2, size=8, batch=3, steps=4)
    cpu = torch.device("cpu")
    mixed, reverse = (case.solve(engine, torch.float64, cpu) for engine in ("mixed", "reverse"))
    assert relative(mixed, reverse) < 1e-10
    assert relative(case.solve("mixed", torch.float32, cpu), reverse) < 1e-2


def test_benchmark_prints_time_memory_and_differences(capfd: pytest.CaptureFixture[str]) -> None:
    from satm.cli import main

    flags = ["--width", "4", "--depth", "1", "--size", "8", "--batch", "2", "--steps", "3", "--rounds", "1"]
    assert main(["bench", "hypergradient", *flags, "--device", "cpu"]) == 0
    told = capfd.readouterr().out
    assert "mixed against reverse, float64" in told and "x reverse" in told

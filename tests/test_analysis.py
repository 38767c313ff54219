"""Sharpness of a synthetic set and of experts, against their definitions written out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Refuse
from drawing import torch_generator
from tolerances import SUMS
from torch.nn import functional

from satm.analysis.expert_sharpness import measure_expert_sharpness, sharpness_at
from satm.analysis.sharpness import measure_sharpness
from satm.cli import main
from satm.config import Cell, load_campaign
from satm.config.methods import MatchingOptions
from satm.errors import UsageError
from satm.methods import METHODS
from satm.methods.parts.matching import TrajectoryMatching
from satm.methods.parts.problem import Problem, Synthetic
from satm.networks.training import TEST_BATCH, TrainingImages
from satm.params import flatten, load_flat
from satm.results.columns import EXPERT_SHARPNESS, SHARPNESS
from satm.results.rows import read_rows, read_rows_metadata
from satm.run.lock import IN_WORKFLOW, KEPT
from satm.seeds import make_generator
from satm.tables.reader import Reader

OPTIONS = MatchingOptions(inner_steps=3, expert_epochs=1, max_start_epoch=3, step_size=0.1)


def in_float64(matching: TrajectoryMatching) -> Synthetic:
    start = matching.start()
    return replace(start, images=start.images.double(), step_size=start.step_size.double())


def test_sharpness_is_the_rise_of_the_loss_along_the_gradient(problem: Problem) -> None:
    matching = TrajectoryMatching(METHODS["mtt"], OPTIONS, problem)
    synthetic, rho = in_float64(matching), 0.3
    found = list(measure_sharpness(matching, synthetic, rho, segments=2))
    for index, row in enumerate(found):
        generator = make_generator("sharpness", *problem.cell, index)
        oracle = matching.oracle_of(synthetic, generator, matching.segments(generator, None))
        slope = oracle(synthetic.images).images
        neighbour = synthetic.images + rho * slope / slope.square().sum().sqrt()
        assert row["loss"] == pytest.approx(float(oracle(synthetic.images).loss), rel=SUMS)
        assert row["perturbed_loss"] == pytest.approx(float(oracle(neighbour).loss), rel=SUMS)
        assert row["sharpness"] == row["perturbed_loss"] - row["loss"]
    assert found[0] != found[1]


def test_a_small_step_rises_by_rho_times_the_norm(problem: Problem) -> None:
    matching = TrajectoryMatching(METHODS["mtt"], OPTIONS, problem)
    synthetic, rho = in_float64(matching), 1e-5
    (row,) = measure_sharpness(matching, synthetic, rho, segments=1)
    generator = make_generator("sharpness", *problem.cell, 0)
    slope = matching.oracle_of(synthetic, generator, matching.segments(generator, None))(synthetic.images).images
    assert row["sharpness"] == pytest.approx(rho * float(slope.norm()), rel=1e-3)  # and rho**2 times curvature


def test_without_a_step_there_is_no_rise(problem: Problem) -> None:
    matching = TrajectoryMatching(METHODS["mtt"], OPTIONS, problem)
    assert [row["sharpness"] for row in measure_sharpness(matching, in_float64(matching), 0.0, 2)] == [0.0, 0.0]


def test_the_stage_measures_every_method_on_the_same_segments(campaign: object, refused: Refuse) -> None:
    cell = ["--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1"]
    assert main(["distill", *cell, "--method", "mtt"]) == 0
    for method in ("satm", "mtt"):
        assert main(["analyse", *cell, "--method", method, "--segments", "2"]) == 0
    rows = [
        read_rows(Path(f"results/hand/tiny/analysis/digits/ipc-1/{method}/seed-0/sharpness.parquet"), SHARPNESS)
        for method in ("satm", "mtt")
    ]
    assert [list(frame["segment"]) for frame in rows] == [[0, 1], [0, 1]]
    assert set(rows[0]["rho"]) == set(rows[1]["rho"]) == {0.05}
    assert "method random matches no trajectories" in refused("analyse", *cell, "--method", "random")


def test_a_measurement_that_ended_unseen_is_put_back(campaign: object, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = ["--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "mtt"]
    assert main(["distill", *cell]) == 0
    tiny, text = Path("tiny.yaml"), Path("tiny.yaml").read_text()
    layout = load_campaign(tiny).layout

    def segments(count: int) -> None:
        more = f"  - {{stage: analyse, options: {{segments: {count}}}}}\ntables:"
        tiny.write_text(text.replace("tables:", more))

    segments(2)
    path = Path(layout.analysis("sharpness", Cell("digits", 1, "mtt", 0)))
    kept = Path(layout.state("sharpness", "digits", "ipc-1", "mtt", "seed-0"), KEPT)
    monkeypatch.setenv(IN_WORKFLOW, "yes")
    assert main(["analyse", *cell]) == 0
    made = path.stat().st_ino
    assert (kept / path.name).samefile(path)
    path.unlink()  # by Snakemake, before it makes the result anew
    assert main(["analyse", *cell]) == 0
    assert path.stat().st_ino == made
    path.unlink()
    segments(1)
    resolver = load_campaign(tiny)
    assert main(["analyse", *cell]) == 0
    assert path.stat().st_ino != made and len(read_rows(path, SHARPNESS)) == 1
    assert len(Reader(resolver).analysis("sharpness", [Cell("digits", 1, "mtt")])) == 1
    with Path(layout.distilled(Cell("digits", 1, "mtt", 0))).open("ab") as file:
        file.write(b"another")
    with pytest.raises(UsageError, match=r"sharpness .*parquet is not what .*: it is of another synthetic set than"):
        Reader(resolver).analysis("sharpness", [Cell("digits", 1, "mtt")])


def test_the_rho_of_sharpness_is_that_of_the_entry_satm(campaign: Path, refused: Refuse) -> None:
    text = Path("tiny.yaml").read_text()
    cell = ["--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "mtt"]
    assert main(["distill", *cell]) == 0
    Path("tiny.yaml").write_text(text + "methods: {satm: {rho: 0.07}}\n")
    assert main(["analyse", *cell, "--segments", "1"]) == 0
    path = Path("results/hand/tiny/analysis/digits/ipc-1/mtt/seed-0/sharpness.parquet")
    assert set(read_rows(path, SHARPNESS).rho) == {0.07}
    assert main(["data", "--config", "tiny.yaml", "--dataset", "held"]) == 0
    other = text.replace("  - {method: satm, options: {rho: 0.05, gamma: 0.001, keep_divisor: 2}}\n", "")
    Path("tiny.yaml").write_text(other + "methods: {satm: {method: mtt}}\n")
    cell[cell.index("digits")] = "held"  # without presets for the entry satm
    assert "the entry 'satm', another method here; rename it" in refused("analyse", *cell)


def real_images(count: int) -> TrainingImages:
    generator = torch_generator(3)
    images = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    return TrainingImages(images, torch.arange(count) % 3)


def loss_at(problem: Problem, weights: torch.Tensor, data: TrainingImages) -> torch.Tensor:
    load_flat(problem.module, weights)
    return functional.cross_entropy(problem.module(data.images), data.labels)


def test_the_sharpness_of_an_expert_is_ftds_equation(problem: Problem) -> None:
    assert problem.experts is not None
    data, lengths = real_images(12), (0.05, 0.4)
    found = list(measure_expert_sharpness(problem.module, problem.experts, data, 2, lengths))
    assert [[(row["expert"], row["epoch"]) for row in rows] for rows in found] == [
        [(expert, epoch)] * 2 for expert in range(2) for epoch in range(5)
    ]
    for rows in found:
        weights = problem.experts.snapshot(int(rows[0]["expert"]), int(rows[0]["epoch"])).double()
        base = loss_at(problem, weights, data)
        slope = torch.cat([part.reshape(-1) for part in torch.autograd.grad(base, list(problem.module.parameters()))])
        for row, rho in zip(rows, lengths, strict=True):
            worst = float(loss_at(problem, weights + rho * slope / slope.square().sum().sqrt(), data).detach())
            assert row["rho"] == rho
            assert row["loss"] == pytest.approx(float(base.detach()), rel=SUMS)
            assert row["perturbed_loss"] == pytest.approx(worst, rel=SUMS)
            assert row["sharpness"] == row["perturbed_loss"] - row["loss"] > 0


def test_no_neighbour_at_a_small_distance_is_much_worse(problem: Problem) -> None:
    data, weights, rho = real_images(12), flatten(problem.module), 1e-3
    (row,) = sharpness_at(problem.module, weights, data, [rho])
    generator = torch_generator(0)
    for _ in range(50):
        step = torch.randn(len(weights), generator=generator, dtype=torch.float64)
        other = float(loss_at(problem, weights + rho * step / step.norm(), data).detach())
        assert other - row["loss"] < row["sharpness"]


def test_the_sharpness_of_an_expert_goes_through_all_batches(problem: Problem) -> None:
    data = real_images(TEST_BATCH["cpu"] + 8)
    weights = flatten(problem.module)
    (row,) = sharpness_at(problem.module, weights, data, [0.3])
    assert torch.equal(flatten(problem.module), weights)
    base = loss_at(problem, weights, data)
    slope = torch.cat([part.reshape(-1) for part in torch.autograd.grad(base, list(problem.module.parameters()))])
    assert row["loss"] == pytest.approx(float(base.detach()), rel=SUMS)
    worst = float(loss_at(problem, weights + 0.3 * slope / slope.norm(), data).detach())
    assert row["perturbed_loss"] == pytest.approx(worst, rel=SUMS)
    (still,) = sharpness_at(problem.module, weights, data, [0.0])
    assert still["sharpness"] == 0


def test_the_stage_measures_the_sharpness_of_experts(campaign: Path, refused: Refuse) -> None:
    given = ["analyse", "--config", "tiny.yaml", "--what", "expert-sharpness", "--dataset", "digits"]
    assert main([*given, "--experts", "sgd", "--images", "100", "--rho", "0.01", "0.1"]) == 0
    path = Path("results/hand/tiny/analysis/digits/experts/sgd/sharpness.parquet")
    rows = read_rows(path, EXPERT_SHARPNESS)
    assert len(rows) == 2 * 4 * 2 and set(rows.rho) == {0.01, 0.1} and set(rows.experts) == {"sgd"}
    assert rows.sharpness.gt(0).all() and sorted(set(rows.epoch)) == [0, 1, 2, 3]
    assert read_rows_metadata(path, EXPERT_SHARPNESS)["options"]["images"] == 100
    assert main([*given, "--experts", "sgd", "--images", "100", "--rho", "0.01", "0.1"]) == 0
    assert read_rows(path, EXPERT_SHARPNESS).equals(rows)
    assert "--what expert-sharpness needs --experts, got none" in refused(*given)
    for flags, text in (
        (("--ipc", "1"), "--ipc has no effect with --what expert-sharpness; leave it out"),
        (("--images", "0"), "images must be above 0, got 0"),
        (("--rho", "0.1", "0"), "rho must be above 0, got 0.0"),
    ):
        assert text in refused(*given, "--experts", "sgd", *flags)
    told = refused("analyse", "--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1")
    assert "--what sharpness needs --ipc and --method, got no --method" in told
    told = refused("analyse", "--dataset", "digits", "--ipc", "1", "--method", "mtt", "--experts", "sgd")
    assert "--experts has no effect with --what sharpness" in told

"""What must hold on a GPU; skipped where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from tolerances import SUMS, TRAINING

from satm.cli import main
from satm.distill import begin, distill
from satm.methods import METHODS, resolve
from satm.methods.parts.problem import Problem
from satm.results.distilled import load_distilled
from satm.run.machine import describe_backend, peak_memory, reset_peak
from satm.run.record import find_record
from satm.stages.bench import Case, relative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine"),
]


def test_both_engines_agree_with_the_cpu_in_float64() -> None:
    case, gpu = Case(width=8, depth=2, size=16, batch=4, steps=6), torch.device("cuda")
    reference = case.solve("reverse", torch.float64, torch.device("cpu"))
    for engine in ("mixed", "reverse"):
        found = case.solve(engine, torch.float64, gpu)
        assert found.images.is_cuda
        torch.testing.assert_close(found.images.cpu(), reference.images, rtol=TRAINING, atol=SUMS)
        torch.testing.assert_close(found.step_size.cpu(), reference.step_size, rtol=TRAINING, atol=SUMS)


def test_mixed_takes_less_memory_than_reverse() -> None:
    case, gpu, peaks = Case(width=32, depth=3, size=32, batch=10, steps=20), torch.device("cuda"), {}
    for engine in ("mixed", "reverse"):
        reset_peak(gpu)
        before = peak_memory(gpu)
        case.solve(engine, torch.float32, gpu)
        peaks[engine] = peak_memory(gpu) - before
    assert peaks["mixed"] < peaks["reverse"] / 4


def test_float32_is_as_near_to_float64_as_on_a_cpu() -> None:
    case, gpu = Case(width=16, depth=2, size=16, batch=4, steps=5), torch.device("cuda")
    exact = case.solve("reverse", torch.float64, gpu)
    assert relative(case.solve("mixed", torch.float32, gpu), exact) < 5e-2  # second derivatives in float32


def test_the_chain_runs_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    where = ["--config", "tiny.yaml", "--dataset", "digits"]
    cell = [*where, "--ipc", "1", "--method", "satm", "--device", "cuda"]
    assert main(["data", *where]) == 0
    assert main(["experts", *where, "--device", "cuda"]) == 0
    for stage in (["distill", *cell], ["evaluate", *cell], ["analyse", *cell, "--segments", "2"]):
        assert main(stage) == 0, stage
    found = load_distilled("results/tiny/distilled/digits/ipc-1/satm/seed-0/distilled.safetensors")
    assert torch.isfinite(found.images).all()
    assert "torch" in describe_backend(torch.device("cuda"))
    kept = find_record(Path("results/tiny/logs/distill/digits/ipc-1/satm/seed-0.json"))
    assert kept is not None and kept.attempts[0].device == torch.cuda.get_device_name() and kept.attempts[0].gpus == 1
    assert kept.attempts[0].peak_device_bytes > 0


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_runs_on_a_gpu(problem: Problem, name: str) -> None:
    fields = METHODS[name].options.model_fields
    small = {"iterations": 3, "inner_steps": 4, "window": 2, "max_start_epoch": 3, "real_batch": 4, "lr_images": 0.01}
    small["images"] = "$FOREIGN_IMAGES"
    if not {"window", "inner_steps"} <= set(fields) or name in ("bptt", "r-bptt"):
        small.pop("window")
    if name == "contra":
        small |= {"concurrent": 2, "distance": 1}
    kind, options = resolve({"method": name, **{key: value for key, value in small.items() if key in fields}})
    build = problem.build
    there = replace(problem, build=lambda seed: build(seed).float(), device=torch.device("cuda"))
    made = kind(options, there)
    assert made.start().images.is_cuda
    if made.iterative:
        found = distill(made, begin(made), None, lambda row: None, lambda run: None).synthetic
        assert found.images.is_cuda and torch.isfinite(found.images).all()

"""What must hold on a GPU; skipped where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from tolerances import SUMS, TRAINING

from satm.benchmarks.cases import Matching
from satm.benchmarks.measure import apart
from satm.benchmarks.ways import matching_way
from satm.cli import main
from satm.distill import begin, distill
from satm.methods import METHODS, resolve
from satm.methods.parts.problem import Problem
from satm.results.distilled import load_distilled
from satm.run.machine import describe_backend, peak_memory, reset_peak
from satm.run.record import find_record

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine"),
]


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("engine", ["mixed", "mixed:0", "mixed:2", "reverse"])
def test_engines_agree_with_the_published_loop_on_the_cpu_in_float64(engine: str) -> None:
    case = Matching(width=8, depth=2, size=16, classes=4, steps=6)
    _, images, step_size = matching_way(case, torch.float64, CPU, "mtt-loop")()
    found = matching_way(case, torch.float64, GPU, engine)()
    assert found[1].is_cuda
    torch.testing.assert_close(found[1].cpu(), images, rtol=TRAINING, atol=SUMS)
    torch.testing.assert_close(found[2].cpu(), step_size, rtol=TRAINING, atol=SUMS)


def test_mixed_takes_less_memory_than_reverse() -> None:
    case, peaks = Matching(width=32, depth=3, size=32, steps=20), {}
    for engine in ("mixed", "reverse"):
        run = matching_way(case, torch.float32, GPU, engine)
        reset_peak(GPU)
        before = peak_memory(GPU)
        run()
        peaks[engine] = peak_memory(GPU) - before
    assert peaks["mixed"] < peaks["reverse"] / 4


def test_float32_is_as_near_to_float64_as_on_a_cpu() -> None:
    case = Matching(width=16, depth=2, size=16, classes=4, steps=5)
    exact = matching_way(case, torch.float64, GPU, "mtt-loop")()
    assert apart(matching_way(case, torch.float32, GPU, "mixed")(), exact) < 5e-2  # second derivatives in float32


@pytest.mark.parametrize("engine", ["mixed:0", "mixed", "reverse"])
def test_products_are_rounded_as_on_a_cpu_and_only_where_that_is_asked_for(engine: str) -> None:
    case, before = Matching(width=16, depth=2, size=16, classes=4, steps=5), torch.backends.cudnn.allow_tf32
    exact = matching_way(case, torch.float64, CPU, "mtt-loop")()
    for precision, bits in (("float32", 23), ("tf32", 10), ("bfloat16", 7)):
        on_cpu, on_gpu = (
            apart(matching_way(case, torch.float32, device, engine, precision)(), exact)  # type: ignore[arg-type]
            for device in (CPU, GPU)
        )
        assert on_gpu < 50 * 2.0 ** -(bits + 1)
        assert on_gpu > on_cpu / 10, "the operands are not rounded"
    assert torch.backends.cudnn.allow_tf32 == before


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

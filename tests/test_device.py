"""The device of a run: which one is chosen, and what is refused; GPUs are played."""

from pathlib import Path
from typing import Any

import pytest
import torch

from satm.cli import main
from satm.errors import RunError, UsageError
from satm.experts import TrajectoryStore
from satm.results.distilled import load_distilled
from satm.run.machine import ALLOCATED, DEVICE, VISIBLE, choose_device
from satm.storage.tensors import read_tensors

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (DEVICE, *ALLOCATED, *VISIBLE):
        monkeypatch.delenv(name, raising=False)


def play(monkeypatch: pytest.MonkeyPatch, gpus: int, build: str | None = "13.0", init: Exception | None = None) -> None:
    """Let torch see some GPUs, be built for a version of CUDA, and begin with an error."""

    def begin() -> None:
        if init is not None:
            raise init

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "init", begin)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.tensor([1.0]))


NO_DRIVER = RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU.")
OLD = RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver.")


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, 0)
    assert choose_device("auto") == CPU == choose_device("cpu", gpus=1)
    play(monkeypatch, 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("auto", gpus=1).index == 0 and choose_device("cuda:1").index == 1
    assert choose_device("cpu", gpus=1) == CPU


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_JOB_GPUS", "0"),
        ("SLURM_STEP_GPUS", "2,3"),
        ("SLURM_GPUS_ON_NODE", "1"),
        ("SLURM_GPUS", "a100:1"),
        ("CUDA_VISIBLE_DEVICES", "0"),
        ("CUDA_VISIBLE_DEVICES", "MIG-5c8e2f1a-0000-0000-0000-000000000000"),
        ("HIP_VISIBLE_DEVICES", "1"),
        ("ROCR_VISIBLE_DEVICES", "GPU-1f2e"),
    ],
)
def test_a_gpu_that_was_given_and_is_not_seen_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    play(monkeypatch, 0, init=NO_DRIVER)
    monkeypatch.setenv(name, value)
    told = rf"given a GPU \({name}={value}\), and torch finds none: Found no NVIDIA driver on your system; check the"
    with pytest.raises(UsageError, match=told):
        choose_device("auto")
    assert choose_device("cpu") == CPU
    monkeypatch.setenv(DEVICE, "cpu")
    assert choose_device("auto", gpus=1) == CPU


def test_the_workflow_asks_for_a_gpu_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, 0, init=NO_DRIVER)
    with pytest.raises(
        UsageError, match=r"given a GPU \(--gpus 1\), .*; to compute on the CPU use --device cpu, or SATM_"
    ):
        choose_device("auto", gpus=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_GPUS_ON_NODE", "0"),
        ("SLURM_GPUS", "0"),
        ("CUDA_VISIBLE_DEVICES", ""),
        ("CUDA_VISIBLE_DEVICES", "-1"),
        ("CUDA_VISIBLE_DEVICES", "NoDevFiles"),
        ("SLURM_JOB_GPUS", ""),
    ],
)
def test_no_gpu_was_given(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    play(monkeypatch, 0)
    monkeypatch.setenv(name, value)
    assert choose_device("auto") == CPU


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"build": None}, r"torch \S+ is built without CUDA; install a build with it"),
        (
            {"init": OLD},
            r"The NVIDIA driver on your system is too old \(found version 11040\); check the driver \(nvidia-smi\)",
        ),
        ({"init": RuntimeError("No CUDA GPUs are available")}, "No CUDA GPUs are available; .*--nv, --gpus all"),
        ({"init": NO_DRIVER}, "Found no NVIDIA driver on your system; check"),
    ],
)
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_what_to_check_is_said(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], told: str, device: str) -> None:
    play(monkeypatch, 0, **values)
    with pytest.raises(UsageError, match=told) as error:
        choose_device(device, gpus=1)
    assert "\n" not in str(error.value) and "cpu" in str(error.value)


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_an_environment_that_hides_the_gpus_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    play(monkeypatch, 0, init=RuntimeError("No CUDA GPUs are available"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    with pytest.raises(
        UsageError, match=rf"SLURM_JOB_GPUS=0.*CUDA_VISIBLE_DEVICES is '{value}', which hides them; unset"
    ):
        choose_device("auto")


def test_a_gpu_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, 2)
    with pytest.raises(
        UsageError, match="--device cuda:7 is not there, torch finds 2 on this machine; use cuda:0 to cuda:1"
    ):
        choose_device("cuda:7")
    play(monkeypatch, 1)
    with pytest.raises(UsageError, match=r"cuda:1 is not there, torch finds 1 on this machine; use cuda:0$"):
        choose_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "mps", "CPU", ""])
def test_an_unknown_device_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    play(monkeypatch, 1)
    with pytest.raises(UsageError, match=r"unknown device .* known: auto, cpu, cuda, cuda:N"):
        choose_device(name)
    monkeypatch.setenv(DEVICE, "gpu")
    with pytest.raises(UsageError, match=r"unknown device 'gpu' \(from \$SATM_DEVICE\); known"):
        choose_device("auto")


@pytest.mark.parametrize(
    "words",
    ["CUDA error: no kernel image is available for execution on the device\nSearch for", "CUDA error: out of memory"],
)
def test_a_gpu_that_cannot_compute_is_a_failure_of_the_machine(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    play(monkeypatch, 1)

    def fails(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError(words)

    monkeypatch.setattr(torch, "ones", fails)
    first = words.split("\n")[0]
    with pytest.raises(RunError, match=rf"A GPU cannot be used by torch .*: {first}; see nvidia-smi"):
        choose_device("auto")


def test_the_device_is_printed_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the experts and the synthetic set; files of earlier versions do not say it."""
    from conftest import TINY

    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    where = ["--config", "tiny.yaml", "--dataset", "digits"]
    assert main(["data", *where]) == main(["experts", *where, "--device", "cpu"]) == 0
    assert main(["distill", *where, "--ipc", "1", "--method", "mtt", "--iterations", "1"]) == 0
    root = Path("results")
    distilled = next(root.rglob("distilled.safetensors"))
    assert load_distilled(distilled).device_name == "cpu"
    assert {shard["device"] for shard in TrajectoryStore(next(root.rglob("manifest.json"))).shards} == {"cpu"}
    assert read_tensors(next(root.rglob("expert-000.safetensors")), "shard")[1]["device"] == "cpu"
    log = next(root.rglob("logs/distill/**/*.log")).read_text()
    assert f"computing on cpu, {torch.get_num_threads()} threads, torch {torch.__version__}" in log

"""Benchmarks: two implementations, one run, ratios."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from ruamel.yaml import YAML
from torch import Tensor, nn

from satm.config import EvaluateOptions, root_of
from satm.cost.calibrate import measure_pace
from satm.cost.workload import pieces
from satm.data import Augmentation
from satm.errors import RunError
from satm.evaluation.networks import Axes, Task, train, train_together
from satm.networks import build
from satm.networks.training import TrainingImages, measure
from satm.params import flatten
from satm.run.machine import choose_device, describe_backend, peak_memory
from satm.run.progress import Progress
from satm.seeds import derive_seed, make_generator
from satm.unroll import ENGINES, Hypergradient, hypergradient
from satm.workflow.jobs import campaigns_of, jobs


@dataclass(frozen=True)
class Case:
    """One hypergradient problem of the shape of trajectory matching, made of random images and weights."""

    width: int
    depth: int
    size: int
    batch: int
    steps: int

    def solve(self, engine: str, dtype: torch.dtype, device: torch.device) -> Hypergradient:
        """Return the hypergradient; equal draws for every engine and precision."""
        generator = make_generator("bench")
        shape = (self.batch, 3, self.size, self.size)
        images = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        values = {"network": "convnet", "width": self.width, "depth": self.depth}
        module = build(values, 3, 10, self.size, derive_seed("bench")).double()
        start = flatten(module)
        noise = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        target = (start + 0.01 * noise).to(device, dtype)

        def objective(weights: Tensor) -> Tensor:
            return (weights - target).square().sum()

        labels = torch.arange(self.batch, device=device) % 10
        module.to(device, dtype)
        return hypergradient(module, images, labels, 0.01, objective, steps=self.steps, engine=engine)


def bench_hypergradient(
    width: int = 128,
    depth: int = 3,
    size: int = 32,
    batch: int = 10,
    steps: int = 50,
    rounds: int = 3,
    precision: Literal["float32", "float64"] = "float32",
    device: str = "auto",
    threads: int | None = None,
    difference: bool = True,
) -> None:
    """Compare the engines: seconds, peak memory above the process's start, and differences between their gradients.

    Seconds are the fastest of the rounds, the engines run in turn in one process. Memory is measured in a process of
    its own for each engine. Differences are relative, ``|a - b| / |b|`` over the images' gradient.

    Args:
        width: filters of the ConvNet.
        depth: blocks of the ConvNet.
        size: height and width of the images in pixels.
        batch: synthetic images, all of them in each inner step.
        steps: inner steps.
        rounds: measurements of each engine.
        precision: of the timed runs.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; None: as torch chooses.
        difference: also compare the gradients in float64, and in float32 with those, which takes longer.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place, dtype = choose_device(device), getattr(torch, precision)
    case = Case(width, depth, size, batch, steps)
    print(f"hypergradient of {case} in {precision} on {describe_backend(place)}")
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    found: dict[str, Hypergradient] = {}
    memory = {engine: _memory(case, engine, precision, device) for engine in ENGINES}
    for _ in range(rounds):
        for engine in ENGINES:
            started = time.perf_counter()
            found[engine] = case.solve(engine, dtype, place)
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            seconds[engine].append(time.perf_counter() - started)

    console = Progress.console()
    console.print(f"{'engine':10}{'seconds':>10}{'x reverse':>11}{'MiB':>10}{'x reverse':>11}")
    for engine in ENGINES:
        fastest, mebibytes = min(seconds[engine]), memory[engine] / 2**20
        time_ratio = fastest / min(seconds["reverse"])
        memory_ratio = (
            memory[engine] / memory["reverse"] if memory["reverse"] else float("nan")
        )  # a tiny case needs none
        console.print(f"{engine:10}{fastest:10.3f}{time_ratio:11.3f}{mebibytes:10.1f}{memory_ratio:11.3f}")
    if difference:
        exact = {engine: case.solve(engine, torch.float64, place) for engine in ENGINES}
        single = found if precision == "float32" else {e: case.solve(e, torch.float32, place) for e in ENGINES}
        for engine in ENGINES:
            if engine != "reverse":
                console.print(f"{engine} against reverse, float64: {relative(exact[engine], exact['reverse']):.2e}")
            console.print(f"{engine} float32 against reverse float64: {relative(single[engine], exact['reverse']):.2e}")


def bench_evaluation(
    network: str = "convnet",
    size: int = 32,
    ipc: int = 1,
    classes: int = 10,
    networks: int = 5,
    epochs: int = 100,
    test_images: int = 1000,
    rounds: int = 3,
    options: tuple[str, ...] = (),
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """Compare training the networks of one evaluation at once with one after another: seconds, accuracies.

    Random images in the shape of a synthetic set, with differentiable augmentation. Seconds are the fastest of the
    rounds, both ways run in turn in one process; testing is told apart from training.

    Args:
        network: name of a registered network.
        size: height and width of the images in pixels.
        ipc: synthetic images per class, all of them in each step up to 256.
        classes: of the images.
        networks: trained in one evaluation.
        epochs: of each.
        test_images: that each network is tested on.
        rounds: measurements of each way.
        options: of the network, each as NAME=VALUE, such as width=32.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; None: as torch chooses.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = choose_device(device)
    generator = make_generator("bench", "evaluation")
    labels = torch.arange(classes).repeat_interleave(ipc)
    images, tested = (torch.randn(count, 3, size, size, generator=generator) for count in (len(labels), test_images))
    synthetic = TrainingImages(images.to(place), labels.to(place))
    real = TrainingImages(tested.to(place), (torch.arange(test_images) % classes).to(place))
    values: dict[str, Any] = {"network": network}
    for option in options:
        name, _, text = option.partition("=")
        values[name] = YAML(typ="safe", pure=True).load(text)
    recipe = EvaluateOptions(epochs=epochs, decay_epoch=None, lr=0.01)
    augmentation = Augmentation("color_crop_cutout_flip_scale_rotate", "image")
    task = Task(synthetic, 0.01, values, classes, recipe, augmentation)
    axes: list[Axes] = [("bench", repeat) for repeat in range(networks)]
    ways: dict[str, Callable[[], list[nn.Module]]] = {
        "one by one": lambda: [train(task, one) for one in axes],
        "at once": lambda: train_together(task, axes),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {}
    console = Progress.console()
    console.print(
        f"{networks} networks {values} on {len(labels)} images of {size} x {size}, {epochs} epochs, "
        f"{describe_backend(place)}"
    )
    testing = []
    for _ in range(rounds):
        for way, run in ways.items():
            started = time.perf_counter()
            modules = run()
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            seconds[way].append(time.perf_counter() - started)
            started = time.perf_counter()
            losses[way] = [measure(module, real)[1] for module in modules]
            testing.append(time.perf_counter() - started)
    slow = min(seconds["one by one"])
    for way, measured in seconds.items():
        console.print(f"{way:12}{min(measured):10.3f} seconds{slow / min(measured):8.2f} times as fast as one by one")
    console.print(f"testing all of them on {test_images} images takes {min(testing):.3f} seconds either way")
    pairs = zip(losses["at once"], losses["one by one"], strict=True)
    console.print(f"largest relative difference of a test loss: {max(abs(a - b) / b for a, b in pairs):.2e}")


def bench_pace(
    config: Path,
    out: Path,
    seconds: float = 3600.0,
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """Measure how long the pieces of a campaign's jobs take on this machine; `python -m satm cost` reads the file.

    Random images and random experts of the right shape stand in for the real ones. Pieces that the file has already
    are left out, so the same command goes on where it stopped.

    Args:
        config: the campaign.
        out: parquet file to write.
        seconds: no further piece is begun after so many; those that take the least come first.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; None: as torch chooses.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = choose_device(device)
    campaigns, root = campaigns_of(config), root_of(config)
    resolver = campaigns.of(root)
    wanted = pieces(resolver, jobs(campaigns, root), at_once=place.type == "cuda")
    with Progress("pace", len(wanted)) as progress:
        left = measure_pace(wanted, out, place, seconds, progress)
    console = Progress.console()
    console.print(f"{len(wanted) - left} of {len(wanted)} pieces of {config} are measured on {describe_backend(place)}")
    if left:
        console.print(f"{left} are left; the same command goes on with them")


def relative(one: Hypergradient, other: Hypergradient) -> float:
    """Return the largest relative difference over the gradients of the images and of the step size."""
    pairs = [(one.images, other.images), (one.step_size, other.step_size)]
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


def _memory(case: Case, engine: str, precision: str, device: str) -> int:
    """Return bytes above the start of a fresh process that solves the case once.

    A small case is solved first there, so that the libraries' own buffers are not counted.

    Raises:
        RunError: the process failed.
    """
    given = json.dumps([case.__dict__, engine, precision, device, torch.get_num_threads()])
    command = [sys.executable, "-W", "ignore", "-c", "from satm.stages.bench import _measure; _measure()"]
    process = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RunError(f"measuring {engine} failed: {process.stderr.strip().splitlines()[-1:]}; use a smaller case")
    return int(process.stdout)


def _measure() -> None:
    """Solve the case on the standard input and print how far the peak of memory rose."""
    values, engine, precision, device, threads = json.loads(sys.stdin.read())
    torch.set_num_threads(threads)
    place, dtype = choose_device(device), getattr(torch, precision)
    Case(width=4, depth=1, size=8, batch=2, steps=2).solve(engine, dtype, place)
    before = peak_memory(place)
    Case(**values).solve(engine, dtype, place)
    print(peak_memory(place) - before)

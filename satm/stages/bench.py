"""Benchmarks that compare implementations in one run."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
import tyro
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

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A hypergradient problem of trajectory matching with random images and weights."""

    width: int = 128
    """Filters of the ConvNet."""
    depth: int = 3
    """Blocks of the ConvNet."""
    size: int = 32
    """Height and width of the images in pixels."""
    batch: int = 10
    """Synthetic images, all of them in each inner step."""
    steps: int = 50
    """Inner steps."""

    def solve(self, engine: str, dtype: torch.dtype, device: torch.device) -> Hypergradient:
        """Return the hypergradient; random values are the same for every engine and precision."""
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
    case: Annotated[Case, tyro.conf.OmitArgPrefixes],
    rounds: int = 3,
    precision: Literal["float32", "float64"] = "float32",
    device: str = "auto",
    threads: int | None = None,
    difference: bool = True,
) -> None:
    """Compare the engines: seconds, peak memory above the process's start, and differences between their gradients.

    Seconds are those of the fastest round; the engines take turns in one process. Memory is measured in a separate
    process for each engine. Differences are relative, ``|a - b| / |b|`` over the images' gradient.

    Args:
        case: the problem.
        rounds: measurements of each engine.
        precision: floating-point type of the timed runs.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; None: torch's choice.
        difference: also compare the gradients of the engines in float64, and float32 with float64; takes longer.
    """
    place, dtype = choose_device(device, threads), getattr(torch, precision)
    print(f"hypergradient of {case} in {precision} on {describe_backend(place)}")
    memory = {engine: _memory(case, engine, precision, device) for engine in ENGINES}
    ways = {engine: partial(case.solve, engine, dtype, place) for engine in ENGINES}
    seconds, gradients = _fastest(ways, rounds, place)
    console = Progress.console()
    console.print(f"{'engine':10}{'seconds':>10}{'x reverse':>11}{'MiB':>10}{'x reverse':>11}")
    for engine in ENGINES:
        time_ratio = seconds[engine] / seconds["reverse"]
        memory_ratio = memory[engine] / (memory["reverse"] or math.nan)  # a tiny case needs none
        times = f"{engine:10}{seconds[engine]:10.3f}{time_ratio:11.3f}"
        console.print(f"{times}{memory[engine] / 2**20:10.1f}{memory_ratio:11.3f}")
    if difference:
        exact = {engine: case.solve(engine, torch.float64, place) for engine in ENGINES}
        single = gradients if precision == "float32" else {e: case.solve(e, torch.float32, place) for e in ENGINES}
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

    Images are random, in the shape of a synthetic set, with differentiable augmentation. Seconds are those of the
    fastest round; both ways take turns in one process, and testing is measured separately.

    Args:
        network: name of a registered network.
        size: height and width of the images in pixels.
        ipc: synthetic images per class, all of them in each step up to 256.
        classes: number of classes.
        networks: networks trained in one evaluation.
        epochs: epochs of each network.
        test_images: images that each network is tested on.
        rounds: measurements of each way.
        options: options of the network, each as NAME=VALUE, such as width=32.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; None: torch's choice.
    """
    place, generator = choose_device(device, threads), make_generator("bench", "evaluation")
    labels = torch.arange(classes).repeat_interleave(ipc)
    test_labels = torch.arange(test_images) % classes
    synthetic, real = (
        TrainingImages(torch.randn(len(each), 3, size, size, generator=generator).to(place), each.to(place))
        for each in (labels, test_labels)
    )
    pairs = (option.partition("=") for option in options)
    values = {"network": network} | {name: YAML(typ="safe", pure=True).load(text) for name, _, text in pairs}
    recipe = EvaluateOptions(epochs=epochs, decay_epoch=None, lr=0.01)
    augmentation = Augmentation("color_crop_cutout_flip_scale_rotate", "image")
    task = Task(synthetic, 0.01, values, classes, recipe, augmentation)
    axes: list[Axes] = [("bench", repeat) for repeat in range(networks)]
    ways: dict[str, Callable[[], list[nn.Module]]] = {
        "one by one": lambda: [train(task, one) for one in axes],
        "at once": lambda: train_together(task, axes),
    }
    console = Progress.console()
    console.print(
        f"{networks} networks {values} on {len(labels)} images of {size} x {size}, {epochs} epochs, "
        f"{describe_backend(place)}"
    )
    seconds, networks_of = _fastest(ways, rounds, place)
    started = time.perf_counter()
    losses = {way: [measure(module, real)[1] for module in modules] for way, modules in networks_of.items()}
    testing = (time.perf_counter() - started) / len(ways)
    for way, fastest in seconds.items():
        ratio = seconds["one by one"] / fastest
        console.print(f"{way:12}{fastest:10.3f} seconds{ratio:8.2f} times as fast as one by one")
    console.print(f"testing all of them on {test_images} images takes {testing:.3f} seconds either way")
    both = zip(losses["at once"], losses["one by one"], strict=True)
    console.print(f"largest relative difference of a test loss: {max(abs(a - b) / b for a, b in both):.2e}")


def bench_pace(
    config: Path, out: Path, seconds: float = 3600.0, device: str = "auto", threads: int | None = None
) -> None:
    """Measure how long the pieces of a campaign's jobs take on this machine; `python -m satm cost` reads the file.

    Random images and random experts of the right shape stand in for the real ones. Pieces that are already in the file
    are skipped, so the same command resumes where it stopped.

    Args:
        config: the campaign.
        out: parquet file to write.
        seconds: seconds after which no new piece is started; the shortest pieces come first.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; None: torch's choice.
    """
    place, campaigns, root = choose_device(device, threads), campaigns_of(config), root_of(config)
    work = pieces(campaigns.of(root), jobs(campaigns, root), at_once=place.type == "cuda")
    with Progress("pace", len(work)) as progress:
        left = measure_pace(work, out, place, seconds, progress)
    console = Progress.console()
    console.print(f"{len(work) - left} of {len(work)} pieces of {config} are measured on {describe_backend(place)}")
    if left:
        console.print(f"{left} are left; run the same command to measure them")


def _fastest(
    ways: Mapping[str, Callable[[], T]], rounds: int, device: torch.device
) -> tuple[dict[str, float], dict[str, T]]:
    """Return the shortest time of each way, in seconds, and its last result; the ways take turns."""
    seconds, results = dict.fromkeys(ways, math.inf), dict[str, T]()
    for _ in range(rounds):
        for way, run in ways.items():
            started = time.perf_counter()
            results[way] = run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[way] = min(seconds[way], time.perf_counter() - started)
    return seconds, results


def relative(one: Hypergradient, other: Hypergradient) -> float:
    """Return the largest relative difference over the gradients of the images and of the step size."""
    pairs = [(one.images, other.images), (one.step_size, other.step_size)]
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


def _memory(case: Case, engine: str, precision: str, device: str) -> int:
    """Return the bytes that solving the case adds to the peak memory of a fresh process.

    A small case is solved first, so that the libraries' own buffers are not counted.

    Raises:
        RunError: the process failed.
    """
    arguments = json.dumps([vars(case), engine, precision, device, torch.get_num_threads()])
    command = [sys.executable, "-W", "ignore", "-c", "from satm.stages.bench import _measure; _measure()"]
    process = subprocess.run(command, input=arguments, capture_output=True, encoding="utf-8", check=False)
    if process.returncode:
        raise RunError(f"measuring {engine} failed: {process.stderr.strip().splitlines()[-1:]}; use a smaller case")
    return int(process.stdout)


def _measure() -> None:
    """Solve the case given on the standard input and print the rise of the peak memory."""
    values, engine, precision, device, threads = json.load(sys.stdin)
    place, dtype = choose_device(device, threads), getattr(torch, precision)
    Case(width=4, depth=1, size=8, batch=2, steps=2).solve(engine, dtype, place)
    before = peak_memory(place)
    Case(**values).solve(engine, dtype, place)
    print(peak_memory(place) - before)

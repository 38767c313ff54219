"""Files of every kind that the stages of a campaign leave behind, written in seconds without running a stage.

A file's path alone says what it holds: `STAGE/DATASET/ipc-N/METHOD/seed-S/FILE` below the root of the campaign. Its
numbers come from a generator that is seeded by the path: different in every file, and the same in every run.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import torch
from drawing import numpy_generator
from numpy.random import Generator
from torch import Tensor

from satm.config import Cell, Resolver, StepsOptions
from satm.config.class_order import split_classes
from satm.evaluation.search import candidates
from satm.methods import resolve
from satm.results.columns import BOUNDS, CONTINUAL, EVALUATION, METRICS, NAS, TRAJECTORY, VARIANCE, Columns
from satm.results.distilled import DistilledDataset, History, save_distilled
from satm.results.rows import write_rows
from satm.storage.identity import hash_file

Row = dict[str, Any]

CLASSES = 10

MEAN, STD = 0.3, 0.4
"""Normalisation of the images."""

ITERATIONS, ROLLBACK = 40, 8
"""Iterations of a distillation, and the one that its second attempt starts again from."""

OPTIONS = ("labels", "ema", "snapshots", "watch", "monitor", "monitor_every")
"""Options of a method that decide what its files hold."""


def write_files(resolver: Resolver, paths: Iterable[str]) -> dict[str, Any]:
    """Write files of a campaign below the current folder.

    Args:
        resolver: the campaign.
        paths: the files.

    Returns:
        A `DistilledDataset` or a list of rows for each file, by its path below the root of the campaign.
    """
    written = {}
    for path in sorted(paths, key=lambda path: (not path.endswith(".safetensors"), path)):  # the rest states their hash
        place = Path(path).relative_to(resolver.layout.root)
        write = _cell_file if "ipc-" in path else _real_file
        written[str(place)] = write(resolver, Path(path), place, numpy_generator(zlib.crc32(path.encode())))
    return written


def _real_file(resolver: Resolver, path: Path, place: Path, random: Generator) -> list[Row]:
    """Write what networks trained on all real images reach: `full/DATASET/RECIPE/` or `nas/DATASET/real/SEARCH/`."""
    stage, dataset, recipe, *search = place.parts[:-1]
    if stage == "nas":
        cell = {"dataset": dataset, "ipc": 0, "method": "real", "seed": 0}
        return _save(path, NAS, _searched(cell, search[0], place.stem, random))
    cell = {"dataset": dataset, "ipc": 0, "method": f"full-{recipe}", "seed": 0}
    return _save(path, EVALUATION, _tested(cell, place.stem, random, step_size="fixed"))


def _cell_file(resolver: Resolver, path: Path, place: Path, random: Generator) -> Any:
    """Write what belongs to one synthetic set."""
    stage, dataset, ipc, method, seed, *search = place.parts[:-1]
    numbers = (int(part.rpartition("-")[2]) for part in (ipc, seed))
    cell: Row = {"dataset": dataset, "ipc": next(numbers), "method": method, "seed": next(numbers)}
    named = resolver.method(Cell(dataset, cell["ipc"], method))
    options = {name: getattr(resolve(named)[1], name, None) for name in OPTIONS}
    if path.suffix == ".safetensors":
        data = _synthetic(cell, options, resolver.dataset(dataset).size or 8, random)
        save_distilled(path, replace(data, options=named))
        return data
    if stage == "distilled":
        return _save(path, METRICS, _iterations(method, options, random), axes=list(cell.values()), options=named)
    beside = Path(resolver.layout.root, "distilled", *place.parts[1:5], "distilled.safetensors")
    stated = {"distilled": hash_file(beside)} if beside.is_file() else {}
    averages = ("raw",) if options["ema"] is None else ("ema", "raw")
    if stage == "evaluation":
        tested = [row for average in averages for row in _tested(cell, place.stem, random, average=average)]
        return _save(path, EVALUATION, tested, **stated)
    if stage == "variants":
        soft = options["labels"] in ("learned", "teacher")
        return _save(path, EVALUATION, _variants(cell, soft, place.stem, random), **stated)
    if stage == "continual":
        protocol = resolver.campaign.tables_with(StepsOptions)[place.stem]
        columns = {**cell, "protocol": place.stem, "average": averages[0]}
        return _save(path, CONTINUAL, _learned(columns, protocol, random), **stated)
    if stage == "nas":
        return _save(path, NAS, _searched(cell, search[0], place.stem, random), **stated)
    kinds = {"trajectory": (TRAJECTORY, _path), "variance": (VARIANCE, _variances), "bounds": (BOUNDS, _bounds)}
    columns, rows_of = kinds[place.stem]
    return _save(path, columns, [{**cell, **row} for row in rows_of(random)], **stated)


def _save(path: Path, columns: Columns, rows: Iterable[Row], **stated: Any) -> list[Row]:
    """Write rows with the options of their run, and return them."""
    held = list(rows)
    write_rows(path, held, columns, {"options": stated})
    return held


def _cost(random: Generator) -> Row:
    return {"seconds": random.uniform(0.1, 2), "peak_memory_bytes": int(random.integers(5 * 10**8, 9 * 10**8))}


def _synthetic(cell: Row, options: Row, size: int, random: Generator) -> DistilledDataset:
    """Return noise; with soft labels, an average or a history where the method's options ask for them."""
    classes = torch.arange(CLASSES).repeat_interleave(cell["ipc"])
    labels = 5.0 * torch.nn.functional.one_hot(classes).float() if options["labels"] == "learned" else classes
    averaged, count = options["ema"] is not None, options["snapshots"] or 0

    def images(*states: int) -> Tensor:
        return torch.from_numpy(random.normal(size=(*states, len(classes), 1, size, size)).astype("float32"))

    return DistilledDataset(
        images=images(),
        labels=labels,
        step_size=torch.tensor(0.05),
        preprocessing={"space": "normalised", "mean": [MEAN], "std": [STD], "whitening_hash": None},
        class_names=tuple(map(str, range(CLASSES))),
        **cell,
        options={},
        iteration=ITERATIONS,
        selection="last",
        average="ema" if averaged else "raw",
        raw_images=images() if averaged else None,
        history=History(
            torch.linspace(0, ITERATIONS, count).long(),
            images(count),
            labels.expand(count, *labels.shape).contiguous(),
            torch.full((count,), 0.05),
        )
        if count
        else None,
    )


def _iterations(method: str, options: Row, random: Generator) -> Iterator[Row]:
    """Yield a falling loss and noise in the other columns; the second attempt repeats some iterations."""
    for attempt, first, last in ((0, 1, ROLLBACK + 4), (1, ROLLBACK, ITERATIONS)):
        for iteration in range(first, last + 1):
            row = {
                **{"iteration": iteration, "attempt": attempt, "event": ""},
                "loss": float(numpy.exp(-iteration / 10) + random.uniform(0, 0.05)),
                "step_size": random.uniform(0.01, 0.1),
                "hypergradient_norm": float(random.lognormal()),
                "sharpness": random.normal() if method.startswith("satm") else None,
                **_cost(random),
            }
            if options["watch"] is not None:
                row[f"{options['watch']}_accuracy"] = random.uniform() if iteration % 10 == 0 else None
            for epoch in range(options["monitor"] or 0):
                row[f"monitor_{epoch}"] = random.uniform() if iteration % options["monitor_every"] == 0 else None
            yield row


def _tested(cell: Row, network: str, random: Generator, **columns: str) -> Iterator[Row]:
    """Yield rows of three networks; `columns`: other values than those of a set tested as it comes."""
    same = {"labels": "hard", "split": "test", "selection": "last", "average": "raw", "labelled": "own"}
    same |= {"augmented": "yes", "step_size": "learned", **columns}
    for repeat in range(3):
        numbers = {"accuracy": random.uniform(0.2, 0.9), "loss": random.uniform(0.5, 2), "rate": 0.05, "epochs": 100}
        yield {**cell, "network": network, "repeat": repeat, **same, **numbers, **_cost(random)}


def _variants(cell: Row, soft: bool, network: str, random: Generator) -> Iterator[Row]:
    """Yield rows with hard and soft labels, augmented and plain; `soft`: the set has soft labels of its own."""
    whose = {"hard": "class", "soft": "own" if soft else "teacher"}
    for labels, augmented in product(whose, ("yes", "no")):
        yield from _tested(cell, network, random, labels=labels, labelled=whose[labels], augmented=augmented)


def _learned(columns: Row, protocol: Any, random: Generator) -> Iterator[Row]:
    """Yield a row per network of a protocol of continual learning and class that it has seen."""
    same = {"network": protocol.network, "sets": protocol.sets, "labels": "hard", "split": "test", "selection": "last"}
    for order in range(protocol.orders):
        parts = split_classes(CLASSES, order, protocol.steps)
        for repeat, step in product(range(protocol.repeats), range(1, protocol.steps + 1)):
            seen = [(label, at) for at, part in enumerate(parts[:step], 1) for label in part]
            cost = _cost(random)
            for label, at in seen:
                place = {"order": order, "repeat": repeat, "step": step, "classes_seen": len(seen), "label": label}
                numbers = {"learned_at": at, "images": 30 + label, "accuracy": random.uniform(), "rate": 0.05}
                yield {**columns, **same, "step_size": "learned", **place, **numbers, **cost}


def _searched(cell: Row, search: str, part: str, random: Generator) -> Iterator[Row]:
    """Yield a row per candidate of one part of an architecture search, every 30th of all."""
    first, last = map(int, part.split("-")[1:])
    for candidate in candidates()[30 * first : 30 * last + 1 : 30]:
        numbers = {"repeat": 0, "split": "test", "accuracy": random.uniform(0.1, 0.9), "loss": 1.0, "epochs": 50}
        place = {"search": search, "candidate": candidate.index, **candidate.choices}
        yield {**cell, **place, **numbers, **_cost(random)}


def _path(random: Generator) -> Iterator[Row]:
    """Yield errors along the paths of two experts of twelve epochs, and networks that start late on them."""
    names = [f"{name}_{kind}" for name in ("evaluation", "distillation", "expert") for kind in ("loss", "accuracy")]
    errors = ("accumulated", "matching", "initialisation", "residual")
    for expert, start in product(range(2), range(0, 12, 2)):
        place = {"expert": expert, "start": start}
        numbers = {name: random.uniform() for name in (*names, *errors)}
        yield {"kind": "path", **place, "epoch": start + 2, "steps": 20, **numbers}
        late = {name: random.uniform() for name in names[:2]}
        yield {"kind": "restart", **place, "epoch": 12, "steps": 10 * (12 - start), **late}


def _variances(random: Generator) -> Iterator[Row]:
    for iteration in range(0, ITERATIONS + 1, 10):
        yield {"iteration": iteration, "samples": 20, "variance": random.uniform(0.1, 2), "norm": 1.0}


def _bounds(random: Generator) -> Iterator[Row]:
    for quantity, segment, kept in product(("truncation", "reuse"), range(3), (4, 7, 10)):
        place = {"quantity": quantity, "segment": segment, "kept": kept, "steps": 20, "rho": 0.3}
        numbers = {name: random.uniform(0.1, 1) for name in ("error", "relative", "gradient", "step_size")}
        names = ("lowest_curvature", "highest_curvature") if quantity == "truncation" else ("bound",)
        yield {**place, **numbers, **{name: random.uniform(1, 2) for name in names}}

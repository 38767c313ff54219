"""The stage `evaluate`: accuracies of networks trained on synthetic sets."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from satm.config import EvaluateOptions, Resolver
from satm.errors import UsageError
from satm.evaluate import evaluate
from satm.experts import differing_field
from satm.files import exclusive, hash_file, read_json, write_json
from satm.progress import Progress
from satm.results import EVALUATION, load_distilled, run_metadata, write_rows
from satm.stages.common import distilled_path, prepare
from satm.training import TrainingImages

LOG = logging.getLogger("satm")


def make_evaluation(
    resolver: Resolver,
    dataset: str,
    ipc: int,
    method: str,
    seed: int,
    network: str,
    options: EvaluateOptions,
    device: torch.device,
) -> None:
    """Train fresh networks on a synthetic set and write one row each; rows that are there already are kept.

    A set that is an average is followed by its raw one, on networks of the same seeds, so that the two are paired.
    """
    layout = resolver.layout
    prepared = prepare(resolver, dataset)
    path = distilled_path(resolver, dataset, ipc, method, seed)
    distilled = load_distilled(path)
    if difference := differing_field(prepared.preprocessor.identity, dict(distilled.preprocessing)):
        raise UsageError(
            f"{path} was made for images prepared in another way: {difference}; distil again, or use the dataset's "
            "options that it was made with"
        )
    values = resolver.network(network, dataset)
    split = getattr(prepared.data, options.split)
    if not len(split):
        raise UsageError(f"dataset {dataset} holds out no {options.split} images; set its option validation above 0")
    identity = {
        "distilled": hash_file(path),
        "options": options.model_dump(mode="json"),
        "network": values,
        "data": prepared.data.hash,
    }
    state = Path(layout.state("evaluate", dataset, f"ipc-{ipc}", method, f"seed-{seed}", network))
    with exclusive(state, f"the evaluation of {method}"):
        rows: list[dict[str, Any]] = []
        held = state / "rows.json"
        if held.is_file():
            content: dict[str, Any] = read_json(held, "state of an evaluation")
            rows = [{**EVALUATION.since, **row} for row in content["rows"]] if content["identity"] == identity else []
        real = TrainingImages.of(split, prepared.preprocessor, device)
        tested = [distilled] if distilled.raw_images is None else [distilled, distilled.unaveraged()]
        named = ["" if distilled.average == "raw" else f" on the {each.average} set" for each in tested]
        synthetic = [TrainingImages(each.images.to(device), each.labels.to(device)) for each in tested]
        with Progress("evaluate", options.repeats * len(tested), len(rows)) as progress:
            for done in range(len(rows), options.repeats * len(tested)):
                which, repeat = divmod(done, options.repeats)
                axes = (dataset, ipc, method, seed, network, repeat, options.network_seed)
                score = evaluate(
                    synthetic[which],
                    float(distilled.step_size),
                    real,
                    values,
                    prepared.data.classes,
                    options,
                    prepared.augmentation,
                    axes,
                )
                rows.append(
                    {
                        "dataset": dataset,
                        "ipc": ipc,
                        "method": method,
                        "seed": seed,
                        "network": network,
                        "repeat": repeat,
                        "labels": "soft" if distilled.labels.is_floating_point() else "hard",
                        "split": options.split,
                        "selection": distilled.selection,
                        "average": tested[which].average,
                        "accuracy": score.accuracy,
                        "loss": score.loss,
                        "epochs": options.epochs,
                        "seconds": score.seconds,
                        "peak_memory_bytes": score.peak_memory_bytes,
                    }
                )
                write_json(held, {"identity": identity, "rows": rows})
                progress.step(f"network {repeat}{named[which]}: {options.split} accuracy {score.accuracy:.4f}")
        target = Path(layout.evaluation(dataset, ipc, method, seed, network))
        write_rows(target, rows, EVALUATION, run_metadata(identity, device))
        for each, name in zip(tested, named, strict=True):
            found = [row["accuracy"] for row in rows if row["average"] == each.average]
            mean = sum(found) / len(found)
            LOG.info("mean %s accuracy of %d networks%s %.4f -> %s", options.split, len(found), name, mean, target)
        shutil.rmtree(state)

"""The stage `experts`: trajectory stores."""

import contextlib
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from satm.config import ExpertsOptions, Resolver, parts, place_of
from satm.config.base import numbers
from satm.data import Augmentation
from satm.errors import UsageError
from satm.experts import (
    Difficulty,
    TrajectoryStore,
    chance_level,
    describe_near_chance,
    describe_shard,
    expert_difficulty,
    load_difficulty,
    mean_difficulty,
    read_shards,
    save_difficulty,
    shard_identity,
    shard_name,
    train_expert,
    write_manifest,
    write_shard,
)
from satm.networks.training import measure
from satm.params import load_flat
from satm.run.machine import describe_backend, device_name
from satm.run.record import mark_complete
from satm.seeds import derive_seed
from satm.stages.checkpoint import ExpertState
from satm.stages.dry_step import check_step
from satm.stages.fit import check_images
from satm.stages.inputs import Inputs
from satm.stages.job import Job, account_of, may_replace, otherwise, refuse_other_state
from satm.storage.files import read_record, write_record
from satm.storage.identity import described, differences, differing_fields
from satm.workflow.provenance import stated_identity

LOG = logging.getLogger("satm")


def make_experts(
    resolver: Resolver, dataset: str, experts: str, options: ExpertsOptions, part: str | None, device: torch.device
) -> None:
    """Train the experts of a part, or all and write the manifest; complete experts of the same recipe are kept."""
    inputs, known = Inputs(resolver, dataset, device), parts(options)
    identity, difficulty = inputs.expert_identity(experts, options), inputs.difficulty(experts, options)
    if part is not None and part not in known:
        raise UsageError(f"unknown part {part!r} of experts {experts}; known: {', '.join(known)}")
    folder = Path(resolver.layout.experts(dataset, experts))
    chosen = known if part is None else [part]
    for index in (index for name in chosen for index in numbers(name)):
        stored = (stated_identity(folder / shard_name(index)) or {}).get("identity")  # None: of another kind of file
        if stored and (difference := differing_fields(identity, stored)) and not may_replace(resolver):
            raise UsageError(f"expert {index} in {folder} is trained, but differs: {difference}; {otherwise(resolver)}")
    if part is None:
        _refuse_fewer(resolver, dataset, experts, options)
    names = {"dataset": dataset, "experts": experts}
    for name in chosen:  # before the first part is trained
        state = resolver.layout.state(*place_of("experts_part", **names, part=name))
        refuse_other_state(resolver, Path(state), identity)
    if resolver.by_hand:
        resolver.by_hand.remember()
    for name in chosen:
        with Job(resolver, "experts_part", {**names, "part": name}, identity) as job:
            shards = _train_part(inputs, experts, options, difficulty, folder, job, numbers(name))
            job.write(partial(write_record, job.path, {"identity": identity, "shards": shards}))
    if part is None:
        with account_of(resolver.layout, "experts", dataset=dataset, experts=experts):
            collect_experts(resolver, dataset, experts, options)


def collect_experts(resolver: Resolver, dataset: str, experts: str, options: ExpertsOptions) -> None:
    """Join the parts of a trajectory store into its manifest."""
    _refuse_fewer(resolver, dataset, experts, options)
    inputs = Inputs(resolver, dataset, torch.device("cpu"))
    identity, labels = inputs.expert_identity(experts, options), inputs.data.test.labels
    shards: list[Mapping[str, Any]] = []
    for part in parts(options):
        path = Path(resolver.layout.experts_part(dataset, experts, part))
        content = read_record(path, "part of experts", {"identity": dict, "shards": list})
        if difference := differing_fields(identity, content["identity"]):
            raise UsageError(f"{path} holds other experts: {difference}; train that part again")
        shards += read_shards(content["shards"], f"part of experts {path}", numbers(part))
    shards = [{**shard, "near_chance": chance_level(shard["test_accuracy"], labels)} for shard in shards]
    path = Path(resolver.layout.manifest(dataset, experts))
    write_manifest(path, identity, shards)
    mean = sum(float(shard["test_accuracy"]) for shard in shards) / len(shards)
    LOG.info("%d experts of %d epochs, mean test accuracy %.4f -> %s", len(shards), options.epochs, mean, path)
    if near := [shard for shard in shards if shard["near_chance"] is not None]:
        LOG.warning("experts %s of %s: %s", experts, dataset, describe_near_chance(near, len(shards)))


def _refuse_fewer(resolver: Resolver, dataset: str, experts: str, options: ExpertsOptions) -> None:
    """Refuse by hand to replace a manifest by one that lists fewer experts."""
    path = Path(resolver.layout.manifest(dataset, experts))
    listed = 0
    with contextlib.suppress(UsageError):  # a damaged one may be replaced
        if path.is_file():
            listed = len(TrajectoryStore(path))
    if listed > options.count and not may_replace(resolver):
        raise UsageError(f"{path} lists {listed} experts, count is {options.count}; {otherwise(resolver)}")


def make_difficulty(
    resolver: Resolver, dataset: str, experts: str, options: ExpertsOptions, device: torch.device
) -> None:
    """Measure the difficulty of each training image for trained experts."""
    inputs = Inputs(resolver, dataset, device)
    data, store = inputs.data, inputs.experts(experts, options)
    count = min(options.difficulty_count, len(store))

    def is_ours(path: Path) -> bool:
        load_difficulty(path, store.identity, count, len(data.train))
        return True

    names = {"dataset": dataset, "experts": experts}
    with Job(resolver, "difficulty", names, store.identity, is_ours=is_ours) as job:
        if job.done:
            return
        module, real = inputs.module(options.network), inputs.images("train")
        difficulties = []
        with job.progress(count) as progress:
            for expert in range(count):
                difficulties.append(expert_difficulty(module, store, expert, real))
                learned = difficulties[-1].epoch
                mean, never = float(learned.mean()), int((learned > store.epochs).sum())
                progress.step(f"expert {expert}: learned after {mean:.2f} epochs, {never} images never")
        job.write(lambda: save_difficulty(job.path, mean_difficulty(difficulties), store.identity, count))
        LOG.info("difficulty of %d images, from %d experts -> %s", len(real), count, job.path)


def _train_part(
    inputs: Inputs,
    experts: str,
    options: ExpertsOptions,
    difficulty: Difficulty | None,
    folder: Path,
    job: Job,
    indices: range,
) -> list[dict[str, Any]]:
    """Train the experts of a part that have no shard yet; return the records of the whole part."""
    data, identity, missing = inputs.data, job.identity, []
    for index in indices:
        stored = shard_identity(folder, index)
        if stored is not None and (found := differences(identity, stored)):
            LOG.info("expert %d on disk has other options and is replaced: %s", index, described(found))
        if stored != identity:
            missing.append(index)
    if not missing:
        LOG.info(
            "experts %d to %d with these options are trained already; delete them to train them again",
            indices[0],
            indices[-1],
        )
        mark_complete()
    else:
        check_images(inputs.resolver, inputs.whole)
        check_step(inputs, experts, options)
        real, test = inputs.images("train"), inputs.images("test")
        augmentation = inputs.augmentation if options.augment else Augmentation("", "image")
        labels = data.train.labels if options.order == "balanced-curriculum" else None
        order = difficulty.order(labels) if difficulty else None
        with job.progress(len(missing) * options.epochs, unit="epochs") as progress:
            for index in missing:
                # Not the recipe's own name: recipes are compared on the same initialisations and batches.
                axes = ("experts", data.name, "sgd", options.seed, index)
                module = inputs.module(options.network, derive_seed("network", *axes))
                state = ExpertState(job.folder / f"expert-{index:03d}", identity, describe_backend(inputs.device))
                after = state.load()
                progress.skip(after.epoch if after else 0)
                with ThreadPoolExecutor(1) as writer:  # the next epoch does not wait for the file
                    written: Future[None] = writer.submit(lambda: None)
                    for snapshot in train_expert(module, real, options, augmentation, axes, after, order):
                        written.result()
                        job.check()
                        written = writer.submit(state.save, snapshot)
                        if snapshot.epoch:
                            text = f"expert {index} epoch {snapshot.epoch}/{options.epochs}: loss {snapshot.loss:.4f}"
                            if snapshot.epoch % 5 == 0 and snapshot.epoch < options.epochs:
                                text += f", test accuracy {measure(module, test)[0]:.4f}"
                            progress.step(text)
                    written.result()
                snapshots = state.snapshots()
                load_flat(module, snapshots[-1].weights.to(inputs.device))
                module.load_state_dict(snapshots[-1].buffers, strict=False)
                accuracy, _ = measure(module, test)
                LOG.info("expert %d: test accuracy %.4f after %d epochs", index, accuracy, options.epochs)
                weights, buffers = [each.weights for each in snapshots], [each.buffers for each in snapshots]
                about = (identity, accuracy, buffers, device_name(inputs.device))
                job.write(partial(write_shard, folder, index, weights, *about))
                state.clear()
    return [describe_shard(folder, index) for index in indices]

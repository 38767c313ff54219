"""Inputs of the stages: a dataset ready for training, experts, synthetic sets; each checked against the campaign."""

import contextlib
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from satm.config import REVISIONS, Cell, ExpertsOptions, Resolver
from satm.config.methods import MethodOptions
from satm.data import Augmentation, ImageData, Preprocessor, Split, keep_classes, load_images, load_whitening
from satm.errors import UsageError
from satm.experts import Difficulty, TrajectoryStore, load_difficulty
from satm.methods import Recipe
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem
from satm.networks import build
from satm.networks.training import TrainingImages
from satm.params import buffer_names
from satm.results.columns import METRICS
from satm.results.distilled import DistilledDataset, load_distilled
from satm.results.rows import read_rows_metadata
from satm.seeds import make_generator
from satm.storage.identity import differing_fields, hash_file
from satm.workflow import asked
from satm.workflow.commands import command_of, remedy
from satm.workflow.provenance import Provenance

LOG = logging.getLogger("satm")


class Inputs:
    """A dataset of a campaign ready for training on a device, and the results of other stages for it.

    Raises:
        UsageError: (on construction) the images or their whitening are missing, of other classes or of other options.
    """

    def __init__(self, resolver: Resolver, dataset: str, device: torch.device) -> None:
        self.resolver, self.dataset, self.device = resolver, dataset, device
        self._provenance = Provenance(resolver)  # reads and hashes each file once
        options, name = resolver.dataset(dataset), resolver.whole(dataset)
        self.data = self.whole = whole = stored_images(resolver, dataset, self._provenance)
        if step := resolver.step(dataset):
            if whole.classes != (classes := resolver.classes(step.dataset)):
                raise UsageError(
                    f"the images of {whole.name} have {whole.classes} classes, expected {classes} for its steps; "
                    "name the labels to keep in its option classes"
                )
            self.data = keep_classes(whole, dataset, step.labels(classes))
        whitening, self.whitening_path = None, resolver.data_file(resolver.layout.zca(name)) if options.zca else None
        if path := self.whitening_path:
            _require(path, "the whitening", resolver, "zca", dataset=name)
            with remedy(command_of(resolver, "zca", {"dataset": name}, overwrite=True)):
                whitening = load_whitening(path, whole.hash)
                for field in ("eps", "per_image", "relative"):
                    if (value := getattr(whitening, field)) != (asks := getattr(options, f"zca_{field}")):
                        raise UsageError(f"{path} was made with {field} {value}, zca_{field} is {asks}; make it again")
        self.preprocessor = Preprocessor(self.data.mean, self.data.std, whitening)
        self.augmentation = Augmentation(options.augment, options.augment_share)
        changed = self._provenance.changed_files(name)  # and accepted, or they would have been refused
        doubts = [*whole.doubts, *([changed] if changed else [])]
        self._doubts = {f"images of {name}: {doubt}": None for doubt in doubts}
        for doubt in self._doubts:
            LOG.warning("%s", doubt)

    @property
    def doubts(self) -> list[str]:
        """Signs that the images, experts or synthetic sets used so far are not what they should be."""
        return [*self._doubts]

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the training images; part of the identity of every result computed from them."""
        return {
            "data": self.data.hash,
            "preprocessing": self.preprocessor.identity,
            "augmentation": [self.augmentation.strategy, self.augmentation.share],
        }

    def identify(self, stage: str, **values: Any) -> dict[str, Any]:
        """Return the identity of a stage's result: its revision, these values and the images."""
        whole = asked.wildcards({"dataset": self.resolver.whole(self.dataset)})
        images = {"images": asked.of_images(self.resolver, whole)["options"].values, "whole": self.whole.hash}
        return {"revision": REVISIONS[stage], **values, **images, **self.identity}

    def network(self, name: str) -> dict[str, Any]:
        """Return `{"network": registered name, option: value…}` for this dataset."""
        return self.resolver.network(name, self.dataset)

    def network_identity(self, name: str) -> dict[str, Any]:
        """Return a network with all its options, for identities: its defaults may change."""
        return asked.network(self.resolver, name, self.dataset).values

    def module(self, network: str, seed: int = 0) -> nn.Module:
        """Return a network for this dataset on the device, initialised from a seed."""
        shape = (self.data.channels, self.data.classes, self.data.size)
        return build(self.network(network), *shape, seed).to(self.device)

    def shape(self, network: str) -> nn.Module:
        """Return a network for this dataset without weights (on the device `meta`)."""
        with torch.device("meta"):
            return build(self.network(network), self.data.channels, self.data.classes, self.data.size, 0)

    def images(self, split: str, count: int | None = None) -> TrainingImages:
        """Return the real images of a split on the device, or some of them, drawn at random.

        Raises:
            UsageError: the dataset holds out none of them.
        """
        images: Split = getattr(self.data, split)
        if not len(images):
            raise UsageError(f"dataset {self.dataset} holds out no {split} images; set its option validation above 0")
        if count is not None and count < len(images):
            order = torch.randperm(len(images), generator=make_generator("some", self.dataset, split))
            chosen = order[:count].sort().values
            images = Split(images.images[chosen], images.labels[chosen])
        return TrainingImages.of(images, self.preprocessor, self.device)

    def expert_identity(self, experts: str, options: ExpertsOptions) -> dict[str, Any]:
        """Return the identity of experts; their number and grouping into jobs are not part of it.

        Raises:
            UsageError: options that do not fit together, or a difficulty that was not measured or belongs to other
                experts.
        """
        difficulty = self.difficulty(experts, options)
        return {
            "dataset": self.dataset,
            **self.identity,
            **({} if options.augment else {"augmentation": None}),
            "network": self.network_identity(options.network),
            "experts": experts,
            "recipe": options.model_dump(mode="json", exclude=asked.UNSTATED),
            "difficulty": difficulty.hash if difficulty else None,
            # Experts of the first revision do not state it.
            **({"revision": REVISIONS["experts"]} if REVISIONS["experts"] > 1 else {}),
            # Experts of earlier versions have no running statistics.
            **({"buffers": "stored"} if buffer_names(self.shape(options.network)) else {}),
        }

    def difficulty(self, experts: str, options: ExpertsOptions) -> Difficulty | None:
        """Return the difficulty of the training images, for experts of a curriculum; None for others."""
        if (measured := self.resolver.difficulty(experts, self.dataset, options)) is None:
            return None
        path = self.resolver.file(self.resolver.layout.difficulty(self.dataset, measured))
        names = {"dataset": self.dataset, "experts": measured}
        _require(path, "the difficulty", self.resolver, "difficulty", **names)
        recipe = self.resolver.experts(measured, self.dataset)
        count, images = min(recipe.difficulty_count, recipe.count), len(self.data.train)
        identity = self.expert_identity(measured, recipe)
        with remedy(command_of(self.resolver, "difficulty", names, overwrite=True)):
            return load_difficulty(path, identity, count, images)

    def experts(self, name: str, options: ExpertsOptions | None = None) -> TrajectoryStore:
        """Return the trajectory store of some experts; without options, of the campaign's recipe."""
        options = options or self.resolver.experts(name, self.dataset)
        path = self.resolver.file(self.resolver.layout.manifest(self.dataset, name))
        names = {"dataset": self.dataset, "experts": name}
        _require(path, f"the manifest of experts {name}", self.resolver, "experts", **names)
        with remedy(command_of(self.resolver, "experts", names, overwrite=True)):
            store = TrajectoryStore(path, self.expert_identity(name, options))
            if len(store) != options.count:
                advice = "train the missing ones" if len(store) < options.count else "list the first ones alone"
                raise UsageError(f"{path} lists {len(store)} experts, count is {options.count}; {advice}")
        if near := store.near_chance:
            self._doubts[f"experts {name} on {self.dataset}: {near}"] = None
        return store

    def problem(self, cell: Cell, network: str, experts: TrajectoryStore | None) -> Problem:
        """Return the problem that a method solves for a cell."""
        data = self.data
        fresh = partial(build, self.network(network), data.channels, data.classes, data.size)
        return Problem(data, self.preprocessor, self.augmentation, fresh, cell.ipc, self.device, cell, experts)

    def method(
        self, recipe: Recipe, options: MethodOptions, cell: Cell, experts: str | None = None
    ) -> tuple[Method[Any], str]:
        """Return a method for a cell, and the name of the network that is trained on its sets.

        `experts` replaces the experts that the options name; the seeds of the run derive from the cell.
        """
        store, network = None, getattr(options, "network", "convnet")
        if recipe.needs_experts:
            name: str = experts or getattr(options, "experts")  # noqa: B009 - the options of such methods have it
            store, network = self.experts(name), self.resolver.experts(name, self.dataset).network
        return recipe(options, self.problem(cell, network, store)), network

    def distillations(self, *cells: Cell) -> dict[str, Any]:
        """Return how stored synthetic sets were made, by dataset, for the identity of results at them."""
        return {"distillations": {cell.dataset: self._provenance.distillation(cell) for cell in cells}}

    def distilled(self, cell: Cell) -> tuple[DistilledDataset, str]:
        """Return a synthetic set and the hash of its file.

        Raises:
            UsageError: it is missing, is another one, or was made with other options, data or experts than those of
                today.
        """
        path = self.resolver.file(self.resolver.layout.distilled(cell))
        _require(path, "the synthetic set", self.resolver, "distill", **cell.axes)
        with remedy(command_of(self.resolver, "distill", cell.axes, overwrite=True)):
            distilled = load_distilled(path)
            if difference := differing_fields(cell.axes, {axis: getattr(distilled, axis) for axis in cell._fields}):
                raise UsageError(f"{path} is another synthetic set: {difference}; distil it again")
            if difference := differing_fields(self.preprocessor.identity, dict(distilled.preprocessing)):
                raise UsageError(
                    f"{path} was made with another preprocessing: {difference}; use the dataset's options that it was "
                    "made with, or distil again"
                )
            names = {"class_names": self.data.class_names}
            own = cell.dataset == self.dataset  # a step of it has fewer classes
            if own and (difference := differing_fields(names, {"class_names": distilled.class_names})):
                raise UsageError(f"{path} was made for other classes or in another order: {difference}; distil again")
        if difference := self._provenance.difference("distill", **cell.axes):
            todo = self._provenance.remedy("distill", **cell.axes)
            raise UsageError(f"{path} is not the set that is asked for: {difference}; {todo}")
        LOG.info("synthetic set: %s", path)
        for doubt in _stated_doubts(self.resolver.file(self.resolver.layout.metrics(cell))):
            if doubt not in self._doubts:
                LOG.warning("%s", doubt)
                self._doubts[doubt] = None
        return distilled, hash_file(path)


def _stated_doubts(metrics: Path) -> list[str]:
    """Return the doubts that a distillation states; none if its metrics are missing or damaged."""
    with contextlib.suppress(UsageError):
        return [str(doubt) for doubt in read_rows_metadata(metrics, METRICS).get("doubts", [])]
    return []


def stored_images(resolver: Resolver, dataset: str, provenance: Provenance | None = None) -> ImageData:
    """Return the stored images of a dataset; for a step, those of the whole dataset.

    A `provenance` of the caller is used, so that the files of the source are looked at once.

    Raises:
        UsageError: an unknown dataset, or its images are missing or of another one.
    """
    resolver.dataset(dataset)
    whole = resolver.whole(dataset)
    path = resolver.data_file(resolver.layout.images(whole))
    _require(path, "the image file", resolver, "images", dataset=whole)
    with remedy(command_of(resolver, "images", {"dataset": whole}, overwrite=True)):
        data = load_images(path)
        if data.name != whole:
            raise UsageError(f"the images {path} are of dataset {data.name}; make them again")
    provenance = provenance or Provenance(resolver)
    if difference := provenance.difference("images", dataset=whole):
        todo = provenance.remedy("images", dataset=whole)
        raise UsageError(f"the images {path} are not those that are asked for: {difference}; {todo}")
    return data


def _require(path: Path, what: str, resolver: Resolver, rule: str, **names: object) -> None:
    """Raise a UsageError, with the command that makes the file, if it is missing."""
    if not path.is_file():
        raise UsageError(f"{what} {path} does not exist; {Provenance(resolver).remedy(rule, **names)}")

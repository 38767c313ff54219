"""What stages read: a dataset ready for training, experts, synthetic sets; each checked against what it should be."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from satm.config import REVISIONS, Cell, ExpertsOptions, Resolver
from satm.config.methods import MethodOptions
from satm.data import Augmentation, ImageData, Preprocessor, Split, keep_classes, load_images, load_whitening
from satm.errors import UsageError
from satm.experts import Difficulty, TrajectoryStore, load_difficulty
from satm.methods import Recipe
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem
from satm.networks import build
from satm.networks import resolve as resolve_network
from satm.networks.training import TrainingImages
from satm.results.distilled import DistilledDataset, load_distilled
from satm.seeds import make_generator
from satm.storage.identity import differing_field


class Inputs:
    """A dataset ready for training, and what else a campaign has of it.

    Args:
        resolver: the campaign.
        dataset: name of the dataset.
        device: where to compute.

    Raises:
        UsageError: (on construction) the images or their whitening do not exist or are others.
    """

    def __init__(self, resolver: Resolver, dataset: str, device: torch.device) -> None:
        self.resolver, self.dataset, self.device = resolver, dataset, device
        options = resolver.dataset(dataset)
        whole = _whole_images(resolver, dataset)
        self.data = _of_step(resolver, dataset, whole)
        path = Path(resolver.layout.zca(resolver.whole(dataset))) if options.zca else None
        if path is not None and not path.is_file():
            raise UsageError(f"the whitening {path} does not exist; make it with {_data_command(resolver, dataset)}")
        whitening = load_whitening(path, whole.hash) if path else None
        for name in ("eps", "per_image", "relative") if whitening else ():
            if (has := getattr(whitening, name)) != (wanted := getattr(options, f"zca_{name}")):
                raise UsageError(f"{path} was made with {name} {has}, zca_{name} is {wanted}; make it again")
        self.whitening_path = path
        self.preprocessor = Preprocessor(self.data.mean, self.data.std, whitening)
        self.augmentation = Augmentation(options.augment, options.augment_share)

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the images of training the ones they are; stands in what is computed from them."""
        return {
            "data": self.data.hash,
            "preprocessing": self.preprocessor.identity,
            "augmentation": [self.augmentation.strategy, self.augmentation.share],
        }

    def identify(self, stage: str, **values: Any) -> dict[str, Any]:
        """Return what makes a result of a stage what it is: its revision, these values and the images."""
        return {"revision": REVISIONS[stage], **values, **self.identity}

    def network(self, name: str) -> dict[str, Any]:
        """Return `{"network": registered name, option: value…}` for this dataset."""
        return self.resolver.network(name, self.dataset)

    def images(self, split: str, count: int | None = None) -> TrainingImages:
        """Return the real images of a split on the device, or some of them, drawn at random.

        Raises:
            UsageError: the dataset holds out none of them.
        """
        found: Split = getattr(self.data, split)
        if not len(found):
            raise UsageError(f"dataset {self.dataset} holds out no {split} images; set its option validation above 0")
        if count is not None and count < len(found):
            order = torch.randperm(len(found), generator=make_generator("some", self.dataset, split))
            chosen = order[:count].sort().values
            found = Split(found.images[chosen], found.labels[chosen])
        return TrainingImages.of(found, self.preprocessor, self.device)

    def expert_identity(self, experts: str, options: ExpertsOptions) -> dict[str, Any]:
        """Return everything that makes experts the ones they are; their number and grouping into jobs does not.

        Raises:
            UsageError: options that do not fit together, or a difficulty that was not measured or belongs to other
                experts.
        """
        difficulty = self.difficulty(experts, options)
        network, settings = resolve_network(self.network(options.network))
        return {
            "dataset": self.dataset,
            **self.identity,
            **({} if options.augment else {"augmentation": None}),
            "network": {"network": network, **settings.model_dump(mode="json")},
            "experts": experts,
            "recipe": options.model_dump(mode="json", exclude={"network", "count", "per_job", "difficulty_count"}),
            "difficulty": difficulty.hash if difficulty else None,
            # Experts of the first revision do not state it.
            **({"revision": REVISIONS["experts"]} if REVISIONS["experts"] > 1 else {}),
        }

    def difficulty(self, experts: str, options: ExpertsOptions) -> Difficulty | None:
        """Return how hard the training images are, for experts that see the easy ones first; None for others."""
        asked = self.resolver.difficulty(experts, self.dataset, options)
        if asked is None:
            return None
        path = Path(self.resolver.layout.difficulty(self.dataset, asked))
        if not path.is_file():
            more = " --measure-difficulty"
            command = _command(self.resolver, "experts", dataset=self.dataset, experts=asked, more=more)
            raise UsageError(f"the difficulty {path} does not exist; measure it with {command}")
        recipe = self.resolver.experts(asked, self.dataset)
        count, images = min(recipe.difficulty_count, recipe.count), len(self.data.train)
        return load_difficulty(path, self.expert_identity(asked, recipe), count, images)

    def experts(self, name: str, options: ExpertsOptions | None = None) -> TrajectoryStore:
        """Return the trajectory store of some experts, whose recipe is that of the campaign unless it is given."""
        options = options or self.resolver.experts(name, self.dataset)
        path = Path(self.resolver.layout.manifest(self.dataset, name))
        if not path.is_file():
            command = _command(self.resolver, "experts", dataset=self.dataset, experts=name)
            raise UsageError(f"the experts {name} of {self.dataset} do not exist ({path}); make them with {command}")
        store = TrajectoryStore(path, self.expert_identity(name, options))
        if len(store) != options.count:
            raise UsageError(f"{path} lists {len(store)} experts, count is {options.count}; make the experts again")
        return store

    def problem(self, cell: Cell, network: str, experts: TrajectoryStore | None) -> Problem:
        """Return what a method may use for a cell."""
        data = self.data
        fresh = partial(build, self.network(network), data.channels, data.classes, data.size)
        images = (data, self.preprocessor, self.augmentation)
        return Problem(*images, fresh, cell.ipc, self.device, cell, experts)

    def method(
        self, recipe: Recipe, options: MethodOptions, cell: Cell, experts: str | None = None
    ) -> tuple[Method[Any], str]:
        """Return a method for a cell, and the name of the network that is trained on its sets.

        Args:
            recipe: of the method.
            options: of the method.
            cell: names the run for its seeds.
            experts: to use in place of those that the options name.
        """
        store, network = None, getattr(options, "network", "convnet")
        if recipe.needs_experts:
            name: str = experts or getattr(options, "experts")  # noqa: B009 - the options of such methods have it
            store, network = self.experts(name), self.resolver.experts(name, self.dataset).network
        return recipe(options, self.problem(cell, network, store)), network

    def distilled(self, cell: Cell) -> tuple[DistilledDataset, Path]:
        """Return a synthetic set and its file.

        Raises:
            UsageError: it is missing, is another one, or was made for images prepared in another way.
        """
        path = Path(self.resolver.layout.distilled(cell))
        if not path.is_file():
            command = _command(self.resolver, "distill", **cell.axes)
            raise UsageError(f"the synthetic set {path} does not exist; make it with {command}")
        made = load_distilled(path)
        if difference := differing_field(cell.axes, {axis: getattr(made, axis) for axis in cell._fields}):
            raise UsageError(f"{path} is another synthetic set: {difference}; distil it again")
        if difference := differing_field(self.preprocessor.identity, dict(made.preprocessing)):
            raise UsageError(
                f"{path} was made for images prepared in another way: {difference}; distil again, or use the "
                "dataset's options that it was made with"
            )
        return made, path


def stored_images(resolver: Resolver, dataset: str) -> ImageData:
    """Return a dataset as its stage stored it; the classes of one step out of the whole dataset.

    Raises:
        UsageError: an unknown dataset, its images were not made yet or are of another one, or it has not as many
            classes as its steps need.
    """
    return _of_step(resolver, dataset, _whole_images(resolver, dataset))


def _whole_images(resolver: Resolver, dataset: str) -> ImageData:
    whole, command = resolver.whole(dataset), _data_command(resolver, dataset)
    path = Path(resolver.layout.images(whole))
    resolver.dataset(dataset)
    if not path.is_file():
        raise UsageError(f"the images {path} do not exist; make them with {command}")
    data = load_images(path)
    if data.name != whole:
        raise UsageError(f"the images {path} are of dataset {data.name}; make them again with {command}")
    return data


def _of_step(resolver: Resolver, dataset: str, data: ImageData) -> ImageData:
    if (step := resolver.step(dataset)) is None:
        return data
    if data.classes != (expected := resolver.classes(step.dataset)):
        raise UsageError(
            f"the images of {data.name} are of {data.classes} classes, expected {expected} for its steps; name the "
            "labels to keep in its option classes"
        )
    return keep_classes(data, dataset, step.labels(expected))


def _data_command(resolver: Resolver, dataset: str) -> str:
    return _command(resolver, "data", dataset=resolver.whole(dataset))


def _command(resolver: Resolver, stage: str, *, more: str = "", **flags: object) -> str:
    """Return the command that makes what is missing."""
    config = f" --config {resolver.path}" if resolver.path else ""
    return f"`python -m satm {stage}{''.join(f' --{name} {value}' for name, value in flags.items())}{more}{config}`"

"""What several stages need: a dataset ready for training, experts checked, where a synthetic set is."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from satm.config import REVISIONS, Cell, ExpertsOptions, Resolver
from satm.data import Augmentation, ImageData, Preprocessor, Split, keep_classes, load_images, load_whitening
from satm.errors import UsageError
from satm.experts import Difficulty, TrajectoryStore, load_difficulty
from satm.methods import Recipe
from satm.methods.options import MethodOptions
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem
from satm.networks import build as build_network
from satm.networks import resolve as resolve_network
from satm.networks.training import TrainingImages
from satm.results import DistilledDataset, load_distilled
from satm.seeds import make_generator
from satm.storage.identity import differing_field


@dataclass(frozen=True)
class Prepared:
    """A dataset ready for training: raw images, the way into the space of training, and the augmentation."""

    data: ImageData
    preprocessor: Preprocessor
    augmentation: Augmentation
    whitening_path: Path | None

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the images of training the ones they are; stands in what is computed from them."""
        return {
            "data": self.data.hash,
            "preprocessing": self.preprocessor.identity,
            "augmentation": [self.augmentation.strategy, self.augmentation.share],
        }


def prepare(resolver: Resolver, dataset: str) -> Prepared:
    """Return a dataset from its stored images and, if it is whitened, its stored whitening."""
    options = resolver.dataset(dataset)
    whole = _whole_images(resolver, dataset)
    data = _of_step(resolver, dataset, whole)
    path = Path(resolver.layout.zca(resolver.whole(dataset))) if options.zca else None
    if path is not None and not path.is_file():
        raise UsageError(f"the whitening {path} does not exist; make it with {_data_command(resolver, dataset)}")
    whitening = load_whitening(path, whole.hash) if path else None
    if whitening is not None:
        made = (whitening.eps, whitening.per_image, whitening.relative)
        asked = (options.zca_eps, options.zca_per_image, options.zca_relative)
        for name, has, wanted in zip(("eps", "per_image", "relative"), made, asked, strict=True):
            if has != wanted:
                raise UsageError(f"{path} was made with {name} {has}, zca_{name} is {wanted}; make it again")
    preprocessor = Preprocessor(data.mean, data.std, whitening)
    return Prepared(data, preprocessor, Augmentation(options.augment, options.augment_share), path)


def stored_images(resolver: Resolver, dataset: str) -> ImageData:
    """Return a dataset as its stage stored it; the classes of one step out of the whole dataset.

    Raises:
        UsageError: an unknown dataset, its images were not made yet or are of another one, or it has not as many
            classes as its steps need.
    """
    return _of_step(resolver, dataset, _whole_images(resolver, dataset))


def _whole_images(resolver: Resolver, dataset: str) -> ImageData:
    path = Path(resolver.layout.images(resolver.whole(dataset)))
    resolver.dataset(dataset)
    if not path.is_file():
        raise UsageError(f"the images {path} do not exist; make them with {_data_command(resolver, dataset)}")
    data = load_images(path)
    if data.name != resolver.whole(dataset):
        raise UsageError(
            f"the images {path} are of dataset {data.name}; make them again with {_data_command(resolver, dataset)}"
        )
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


def expert_identity(resolver: Resolver, prepared: Prepared, experts: str, options: ExpertsOptions) -> dict[str, Any]:
    """Return everything that makes experts the ones they are; their number and grouping into jobs does not.

    Raises:
        UsageError: options that do not fit together, or a difficulty that was not measured or belongs to other experts.
    """
    difficulty = stored_difficulty(resolver, prepared, experts, options)
    network, settings = resolve_network(resolver.network(options.network, prepared.data.name))
    return {
        "dataset": prepared.data.name,
        **prepared.identity,
        **({} if options.augment else {"augmentation": None}),
        "network": {"network": network, **settings.model_dump(mode="json")},
        "experts": experts,
        "recipe": options.model_dump(mode="json", exclude={"network", "count", "per_job", "difficulty_count"}),
        "difficulty": difficulty.hash if difficulty else None,
        # Experts of the first revision do not state it.
        **({"revision": REVISIONS["experts"]} if REVISIONS["experts"] > 1 else {}),
    }


def stored_difficulty(
    resolver: Resolver, prepared: Prepared, experts: str, options: ExpertsOptions
) -> Difficulty | None:
    """Return how hard the training images are, for experts that see the easy ones first; None for others."""
    dataset = prepared.data.name
    asked = resolver.difficulty(experts, dataset, options)
    if asked is None:
        return None
    path = Path(resolver.layout.difficulty(dataset, asked))
    if not path.is_file():
        raise UsageError(
            f"the difficulty {path} does not exist; measure it with `python -m satm experts --dataset {dataset} "
            f"--experts {asked} --measure-difficulty{_config_flag(resolver)}`"
        )
    recipe = resolver.experts(asked, dataset)
    identity = expert_identity(resolver, prepared, asked, recipe)
    return load_difficulty(path, identity, min(recipe.difficulty_count, recipe.count), len(prepared.data.train))


def open_experts(
    resolver: Resolver, prepared: Prepared, experts: str, given: ExpertsOptions | None = None
) -> TrajectoryStore:
    """Return the trajectory store of some experts, checked against what they should be.

    Args:
        resolver: the campaign.
        prepared: the dataset.
        experts: their name.
        given: their recipe; None: what the campaign says.
    """
    dataset = prepared.data.name
    options = resolver.experts(experts, dataset) if given is None else given
    path = Path(resolver.layout.manifest(dataset, experts))
    if not path.is_file():
        raise UsageError(
            f"the experts {experts} of {dataset} do not exist ({path}); make them with `python -m satm experts "
            f"--dataset {dataset} --experts {experts}{_config_flag(resolver)}`"
        )
    store = TrajectoryStore(path, expert_identity(resolver, prepared, experts, options))
    if len(store) != options.count:
        raise UsageError(f"{path} lists {len(store)} experts, count is {options.count}; make the experts again")
    return store


def open_method(
    resolver: Resolver,
    prepared: Prepared,
    recipe: Recipe,
    options: MethodOptions,
    cell: Cell,
    device: torch.device,
    experts: str | None = None,
) -> tuple[Method[Any], str]:
    """Return a method for a cell, and the name of the network that is trained on its sets.

    Args:
        resolver: the campaign.
        prepared: the dataset.
        recipe: of the method.
        options: of the method.
        cell: names the run for its seeds.
        device: where to compute.
        experts: to use in place of those that the options name.

    Raises:
        UsageError: the experts are missing or others, or options, experts and data do not fit together.
    """
    store, network = None, getattr(options, "network", "convnet")
    if recipe.needs_experts:
        name: str = experts or getattr(options, "experts")  # noqa: B009 - the options of such methods have it
        store, network = open_experts(resolver, prepared, name), resolver.experts(name, cell.dataset).network
    return recipe(options, open_problem(resolver, prepared, network, cell, device, store)), network


def open_problem(
    resolver: Resolver,
    prepared: Prepared,
    network: str,
    cell: Cell,
    device: torch.device,
    store: TrajectoryStore | None,
) -> Problem:
    """Return what a method may use, on a device."""
    data = prepared.data
    build = partial(build_network, resolver.network(network, data.name), data.channels, data.classes, data.size)
    return Problem(data, prepared.preprocessor, prepared.augmentation, build, cell.ipc, device, cell, store)


def distilled_path(resolver: Resolver, cell: Cell) -> Path:
    """Return where a synthetic set is.

    Raises:
        UsageError: it was not made yet; the text has the command that makes it.
    """
    path = Path(resolver.layout.distilled(cell))
    if not path.is_file():
        raise UsageError(
            f"the synthetic set {path} does not exist; make it with `python -m satm distill "
            f"{' '.join(f'--{axis} {value}' for axis, value in cell.axes.items())}{_config_flag(resolver)}`"
        )
    return path


def open_distilled(resolver: Resolver, prepared: Prepared, cell: Cell) -> tuple[DistilledDataset, Path]:
    """Return a synthetic set and its file.

    Raises:
        UsageError: it is missing, is another one, or was made for images prepared in another way.
    """
    path = distilled_path(resolver, cell)
    made = load_distilled(path)
    if difference := differing_field(cell.axes, {axis: getattr(made, axis) for axis in cell._fields}):
        raise UsageError(f"{path} is another synthetic set: {difference}; distil it again")
    if difference := differing_field(prepared.preprocessor.identity, dict(made.preprocessing)):
        raise UsageError(
            f"{path} was made for images prepared in another way: {difference}; distil again, or use the "
            "dataset's options that it was made with"
        )
    return made, path


def real_images(prepared: Prepared, name: str, device: torch.device, count: int | None = None) -> TrainingImages:
    """Return the real images of the split `name` on a device, or so many of them, drawn at random.

    Raises:
        UsageError: the dataset holds out none of them.
    """
    split = getattr(prepared.data, name)
    if not len(split):
        raise UsageError(f"dataset {prepared.data.name} holds out no {name} images; set its option validation above 0")
    if count is not None and count < len(split):
        order = torch.randperm(len(split), generator=make_generator("some", prepared.data.name, name))
        chosen = order[:count].sort().values
        split = Split(split.images[chosen], split.labels[chosen])
    return TrainingImages.of(split, prepared.preprocessor, device)


def _data_command(resolver: Resolver, dataset: str) -> str:
    return f"`python -m satm data --dataset {resolver.whole(dataset)}{_config_flag(resolver)}`"


def _config_flag(resolver: Resolver) -> str:
    return f" --config {resolver.path}" if resolver.path else ""

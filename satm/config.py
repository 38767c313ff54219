"""Typed, closed options; a campaign (one YAML file) resolved to the options of each job; the paths of its files.

Nothing here imports torch: a Snakefile reads a campaign each time it is parsed, on every cluster job.

A value is looked for in this order, the later winning: the default of its model, the preset files in name order
(`preset_folder`), the campaign's `settings`, the campaign's own entry of that name, a flag on the command line.
"""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from satm.class_order import Step, step_of
from satm.errors import UsageError, pick, suggest

NAME = r"[A-Za-z0-9][A-Za-z0-9-]*"
"""What a name in a campaign may look like: it becomes part of paths and a Snakemake wildcard."""

REVISIONS = {
    "data": 1,
    "experts": 1,
    "distill": 1,
    "evaluate": 1,
    "continual": 1,
    "nas": 1,
    "analyse": 1,
    "table": 1,
    "figure": 1,
}
"""Raised by hand when a stage's numbers change; the workflow passes it to each job, which cannot see edits of code."""

M = TypeVar("M", bound="Options")


class Options(BaseModel):
    """Frozen options; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def refuse_idle(options: Options, idle: Mapping[str, Sequence[str]], prefix: str = "") -> None:
    """Refuse options that were set and have no effect.

    Args:
        options: to check.
        idle: names by what robs them of their effect, and what to do, in words.
        prefix: what the message begins with.

    Raises:
        UsageError: naming both.
    """
    for cause, names in idle.items():
        for name in names:
            if (value := getattr(options, name)) != type(options).model_fields[name].default:
                raise UsageError(f"{prefix}{name} {value!r} has no effect with {cause}, or leave {name} out")


class DatasetOptions(Options):
    """Where the images of a dataset are and how they are prepared for a network."""

    source: Literal["digits", "cifar10", "cifar100", "tiny-imagenet", "parquet", "folder"]
    """`digits` comes with scikit-learn; `cifar10` and `cifar100` are downloaded by torchvision unless `path` holds
    image-parquet files; `tiny-imagenet` is its published folder layout or image-parquet; `parquet` any folder of
    image-parquet files; `folder` any folder `path/{train,test}/CLASS/image`."""
    path: str = ""
    """Folder; `$NAME` and `${NAME}` are replaced from the environment. Empty: `$SATM_DATA/SOURCE`, or `data/SOURCE`."""
    train: str = "train*.parquet"
    """File pattern of the training images below `path` (image-parquet only)."""
    test: str = "{test,valid,val}*.parquet"
    """File pattern of the test images below `path` (image-parquet only); `{a,b}` means either."""
    image_column: str | None = None
    """Column with the encoded images; None: the only one whose type is a struct of bytes and path."""
    label_column: str | None = None
    """Column with the integer labels; None: `label`, else `fine_label`."""
    classes: tuple[int, ...] | None = None
    """Labels to keep, renumbered from 0 in this order; None: all."""
    size: int | None = Field(None, ge=4)
    """Height and width in pixels; other images are resized on their shorter side and cropped at the centre. None: all
    images must have one size already."""
    validation: int = Field(0, ge=0)
    """Training images per class that are held out for choosing checkpoints and options; never trained on."""
    split_seed: int = 0
    """Which images are held out."""
    zca: bool = False
    """Whiten with ZCA, fitted on the training images, instead of subtracting the mean and dividing by the std."""
    zca_eps: float = Field(0.1, gt=0)
    """Added to the eigenvalues of the covariance before the inverse root."""
    zca_per_image: bool = False
    """Bring each image to mean 0 and norm 1 by itself before whitening, instead of subtracting the mean image. With
    `zca_relative` this is the whitening of RaT-BPTT. Images are shown with the average brightness and contrast then."""
    zca_relative: bool = False
    """`zca_eps` is in units of the mean eigenvalue."""
    mean: tuple[float, ...] | None = None
    """Per channel, images in [0, 1]; None: measured on the training images."""
    std: tuple[float, ...] | None = None
    """Per channel, images in [0, 1]; None: measured on the training images."""
    augment: str = "color_crop_cutout_flip_scale_rotate"
    """Families of differentiable Siamese augmentation, joined by `_`; empty: none."""
    augment_share: Literal["image", "batch"] = "image"
    """Each image draws its own parameters, or one draw serves the whole batch."""

    @model_validator(mode="after")
    def _variants_need_zca(self) -> "DatasetOptions":
        wrong = [name for name in ("zca_per_image", "zca_relative") if getattr(self, name) and not self.zca]
        if wrong:
            raise ValueError(f"{wrong[0]} changes the whitening and zca is false; set zca to true or leave it out")
        return self


class ExpertsOptions(Options):
    """The recipe of the expert networks. Source of the defaults: protocol of MTT (SGD without momentum).

    How an expert descends (`optimiser`) and which images it sees when (`order`) are independent of each other.
    """

    network: str = "convnet"
    """Name of a network."""
    count: int = Field(100, ge=1)
    """Experts."""
    epochs: int = Field(50, ge=1)
    """Epochs of each; a snapshot is kept of the start and after each epoch."""
    lr: float = Field(0.01, gt=0)
    """Step size of SGD, constant."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(0.0, ge=0)
    """Added to the gradient, times the weight."""
    batch_size: int = Field(256, ge=1)
    """Real images a step."""
    augment: bool = True
    """Augment the real images as the dataset says."""
    seed: int = 0
    """Another seed gives other experts."""
    per_job: int = Field(10, ge=1)
    """Experts that one job trains, one after another. Does not change them."""
    optimiser: Literal["sgd", "flat"] = "sgd"
    """`flat`: SGD along a sharpness-aware gradient, which leads to flat minima (FTD)."""
    flat_rule: Literal["paper", "code"] = "paper"
    """Which sharpness-aware gradient: FTD's Algorithm 1, or that of its public code (GSAM)."""
    rho: float = Field(0.01, ge=0)
    """Length of the sharpness-aware step to the worst neighbour. Source: FTD sections 4.3 and A.3.1."""
    alpha: float = Field(1.0, ge=0)
    """`paper`: share of the neighbour's gradient; `code`: weight of what is taken away from it. Source: FTD Table 7,
    1 but for 0.3 on CIFAR-10 at 1 and 10 images per class; its code's own default is 0.4."""
    adaptive: bool = False
    """Measure the step relative to each weight's size (ASAM), so that one rho is a much shorter step; `flat_rule: code`
    only."""
    order: Literal["full", "curriculum", "balanced-curriculum"] = "full"
    """`full`: every epoch sees all images; `curriculum`: the easy ones first (ConTra Appendix B, Eq. 12);
    `balanced-curriculum`: the easy ones of each class first, for where whole classes are hard (ours)."""
    difficulty: str = ""
    """Name of the experts whose paths say how hard each training image is, for a curriculum."""
    start_fraction: float = Field(0.5, gt=0, le=1)
    """Fraction of the images, the easiest, that the first epoch of a curriculum sees (lambda in ConTra); from there it
    grows linearly. Not given in the paper; 0.5 is ours: the hard half comes later."""
    full_epoch: int | None = Field(None, ge=1)
    """Epochs of a curriculum before all images are seen (gamma in ConTra); None: half of `epochs`, rounded down. Not
    given in the paper; half is ours."""
    difficulty_count: int = Field(5, ge=1)
    """How many of these experts, the first ones, are asked when they say how hard images are. Does not change them."""

    def check(self, where: str) -> None:
        """Check that the options fit together; a single one is checked when it is set.

        Args:
            where: what the options belong to, for the message.

        Raises:
            UsageError: an option without effect beside another, or a curriculum that lacks or contradicts something.
        """
        idle: dict[str, tuple[str, ...]] = {}
        if self.optimiser != "flat":
            idle["optimiser 'sgd'; set optimiser to flat"] = ("flat_rule", "rho", "alpha", "adaptive")
        elif self.flat_rule != "code":
            idle["flat_rule 'paper'; set flat_rule to code"] = ("adaptive",)
        if self.order == "full":
            idle["order 'full'; set order to curriculum"] = ("difficulty", "start_fraction", "full_epoch")
        refuse_idle(self, idle, f"{where}: ")
        if self.order == "full":
            return
        if not self.difficulty:
            raise UsageError(
                f"{where}: order {self.order!r} needs difficulty: name the experts, such as sgd, whose paths say how "
                "hard each image is"
            )
        if self.full_epoch is not None and self.full_epoch > self.epochs:
            raise UsageError(
                f"{where}: full_epoch {self.full_epoch} lies after the last of {self.epochs} epochs; lower it or "
                "raise epochs"
            )


BUILTIN_EXPERTS = {
    "sgd": ExpertsOptions(),
    "flat": ExpertsOptions(optimiser="flat", flat_rule="paper", rho=0.01, alpha=1.0),
    "flat-03": ExpertsOptions(optimiser="flat", flat_rule="paper", rho=0.01, alpha=0.3),
    "flat-code": ExpertsOptions(optimiser="flat", flat_rule="code", rho=0.01, alpha=0.4, adaptive=True),
    "flat-datm": ExpertsOptions(optimiser="flat", flat_rule="code", rho=0.01, alpha=0.3, adaptive=True),
    "sgd-long": ExpertsOptions(),
    "curriculum": ExpertsOptions(order="curriculum", difficulty="sgd"),
}
"""`sgd`: MTT; `flat`: FTD as its paper says, `flat-03` with the alpha of its Table 7 for CIFAR-10 at 1 and 10 images
per class; `flat-code`: FTD as its public code does by default, `flat-datm` as DATM uses it; `curriculum`: ConTra with
few images per class, whose paper names no optimiser: plain SGD here, and `{optimiser: flat, order: curriculum,
difficulty: sgd}` is both; `sgd-long`: ConTra with more images per class. Presets say how long those of DATM and ConTra
train."""


class EvaluateOptions(Options):
    """How a synthetic set is tested. Source of the defaults: MTT's public protocol, 1000 epochs of SGD."""

    repeats: int = Field(5, ge=1)
    """Freshly initialised networks, one row each."""
    epochs: int = Field(1000, ge=1)
    """Passes over the synthetic set."""
    batch_size: int = Field(256, ge=1)
    """Synthetic images a step."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """`adam`: with PyTorch's betas 0.9 and 0.999. RaT-BPTT trains with it: `lr` 0.001, `decay_epoch` None."""
    lr: float | Literal["learned", "searched"] = "learned"
    """Step size; `learned`: the one in the synthetic set's file; `searched`: the one of `lr_grid` whose network is best
    on real images that are not the tested ones. Each row says which."""
    lr_grid: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.001, 0.003, 0.01, 0.03, 0.1), min_length=1)
    """Step sizes to try, one network each, with `lr: searched`."""
    lr_images: Literal["validation", "train"] = "validation"
    """Real images that `lr: searched` chooses on: the held-out ones; or training images, which the tested networks have
    not seen, but from which the synthetic set was made."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; Adam has its own."""
    weight_decay: float = Field(5e-4, ge=0)
    """Added to the gradient, times the weight."""
    schedule: Literal["step", "cosine"] = "step"
    """How the step size falls: once, at `decay_epoch`, or along half a cosine to 0, without effect of `decay_epoch`."""
    decay_epoch: int | None = Field(501, ge=1)
    """The step size is divided by 10 after this many epochs and the optimiser's state starts anew; None: never."""
    flat_rho: float = Field(0.0, ge=0)
    """Above 0, train sharpness-aware with steps of this length to the worst neighbour (SAM, FTD section 4.3)."""
    augment: bool = True
    """Augment the synthetic images as the dataset says."""
    split: Literal["test", "validation"] = "test"
    """Real images to test on; `validation`, the held-out ones, for choosing options."""
    network_seed: int = 0
    """Another seed gives other networks."""
    together: Literal["auto", "no", "yes"] = "auto"
    """Train the networks of all repeats at once, as one network with stacked weights, or one after another; equal up to
    rounding. `auto`: at once on a GPU, where that is faster, one after another on a CPU."""


FULL = {
    "experts": "trained as the experts are: their step size, batch size, epochs and augmentation, no decay",
    "strong": "SGD with momentum 0.9, step size 0.1 along a cosine, weight decay 5e-4, 200 epochs, batches of 128",
}
"""Recipes by which networks are trained on all real images. `strong` is ours: what has long been usual for CIFAR."""


CANDIDATES = 720
"""Networks that an architecture search chooses from (`satm.nas.candidates`)."""


class CandidateOptions(EvaluateOptions):
    """How the candidates of an architecture search are trained and tested. Source: FTD A.3.4 for epochs and repeats.

    Optimiser and step size are not given in the papers; SGD with momentum and a constant step size of 0.01 are ours.
    """

    repeats: int = Field(3, ge=1)
    """Freshly initialised networks of each candidate, one row each; their mean accuracy counts."""
    epochs: int = Field(200, ge=1)
    """Passes over the images, synthetic or real."""
    batch_size: int = Field(256, ge=1)
    """Images a step."""
    lr: float | Literal["learned"] = 0.01
    """Step size; `learned`: the one in the synthetic set's file, for the proxy only."""
    decay_epoch: int | None = Field(None, ge=1)
    """The step size is divided by 10 after this many epochs and the optimiser's state starts anew; None: never."""

    @model_validator(mode="after")
    def _never_searches(self) -> "CandidateOptions":
        refuse_idle(self, {"an architecture search; set lr": ("lr_grid", "lr_images")})
        return self


class Setting(Options):
    """One row of a preset file or of a campaign's `settings`: options for the jobs that it names."""

    stage: Literal["network", "experts", "distill", "evaluate"] = "distill"
    """Whose options these are."""
    method: tuple[str, ...] = ()
    """Names of methods, or the registered methods below them; empty: all (stages distill and evaluate)."""
    experts: tuple[str, ...] = ()
    """Names of experts; empty: all (stage experts)."""
    network: tuple[str, ...] = ()
    """Names of networks, or the registered networks below them; empty: all (stage network)."""
    dataset: tuple[str, ...] = ()
    """Names of datasets; empty: all."""
    ipc: tuple[int, ...] = ()
    """Images per class; empty: all."""
    options: dict[str, Any]
    """Values by option name."""
    source: str = ""
    """Where the values come from."""

    @field_validator("method", "experts", "network", "dataset", "ipc", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return value if isinstance(value, list | tuple) else (value,)

    def applies(self, stage: str, **axes: tuple[object, ...]) -> bool:
        """Say whether each axis that this row restricts has one of the given values."""
        return self.stage == stage and all(
            not (wanted := getattr(self, axis)) or set(wanted) & set(values) for axis, values in axes.items()
        )


class Cells(Options):
    """The synthetic sets that something is made of."""

    datasets: dict[str, tuple[int, ...]]
    """Images per class, by dataset."""
    methods: tuple[str, ...]
    """Rows, in this order."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Seeds of the distillation."""
    seeds_at: dict[int, tuple[int, ...]] = {}
    """Other seeds at some numbers of images per class."""

    def seeds_for(self, ipc: int) -> tuple[int, ...]:
        """Return the seeds at so many images per class."""
        return self.seeds_at.get(ipc, self.seeds)

    def files(self, layout: "Layout", name: str) -> list[str]:
        """Return the paths of everything that the table of this name is made of."""
        raise TypeError(f"{type(self).__name__} must define files()")

    def cells(self, methods: tuple[str, ...] | None = None) -> list[tuple[str, int, str, int]]:
        """Return (dataset, ipc, method, seed) of each distillation in the table's order; `methods`: only of these."""
        return [
            (dataset, ipc, method, seed)
            for dataset, ipcs in self.datasets.items()
            for ipc in ipcs
            for method in (self.methods if methods is None else methods)
            for seed in self.seeds_for(ipc)
        ]


class TableOptions(Cells):
    """The cells of one results table."""

    networks: tuple[str, ...] = Field(("convnet",), min_length=1)
    """Networks that are trained on the synthetic sets; with several the table has a row for each."""
    split: Literal["test", "validation"] = "test"
    """Real images that the accuracies are of; `validation` for choosing options (set `split` in the stage evaluate too,
    and `validation` in the dataset)."""
    sharpness: tuple[str, ...] = ()
    """Methods whose sharpness is measured and compared, the first against each other one."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of methods whose difference in accuracy is told with its interval, paired; empty: satm and mtt, where the
    table has both."""
    full: tuple[Literal["experts", "strong"], ...] = ()
    """Recipes by which networks trained on all real images are shown beside the sets (`FULL`)."""
    published: tuple[str, ...] = ()
    """Methods, by their names in `satm/published/published_results.csv`, that are shown with published numbers only,
    beside those that the paper's own table prints."""

    @field_validator("published")
    @classmethod
    def _only_published(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("split") == "validation":
            raise ValueError("published numbers are of test images, split is 'validation'; leave one of them out")
        for name in value:
            if name in info.data.get("methods", ()):
                raise ValueError(
                    f"methods names {name!r} too, which has its published numbers beside the measured ones; leave it "
                    "out of published"
                )
        return value

    def files(self, layout: "Layout", name: str) -> list[str]:
        """Return the paths of everything that the table of this name is made of."""
        found = [layout.evaluation(*cell, network) for cell in self.cells() for network in self.networks]
        found += [layout.metrics(*cell) for cell in self.cells()]
        found += [layout.sharpness(*cell) for cell in self.cells(self.sharpness)]
        places = [
            (dataset, recipe, network) for dataset in self.datasets for recipe in self.full for network in self.networks
        ]
        return found + [layout.full(*place) for place in places]

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs that are compared: `compare`, then the first of `sharpness` against each other one."""
        found = (*self.compare, *((self.sharpness[0], other) for other in self.sharpness[1:]))
        if not found and {"satm", "mtt"} <= set(self.methods):
            found = (("satm", "mtt"),)
        return tuple(dict.fromkeys(found))


class FairOptions(Cells):
    """One table that says what a method's images are worth: labels, augmentation, random images and real data apart."""

    networks: tuple[str, ...] = Field(("convnet",), min_length=1)
    """Networks that are trained on the synthetic sets."""
    baseline: str = "random"
    """The method whose sets, with the same labels and schedule, are the measure of an improvement."""
    full: Literal["experts", "strong"] = "strong"
    """Recipe of the networks trained on all real images, the measure of recovery (`FULL`)."""

    def files(self, layout: "Layout", name: str) -> list[str]:
        """Return the paths of everything that the table of this name is made of."""
        found = [layout.variants(*cell, network) for cell in self.cells() for network in self.networks]
        places = [(dataset, self.full, network) for dataset in self.datasets for network in self.networks]
        return found + [layout.full(*place) for place in places]

    @model_validator(mode="after")
    def _has_baseline(self) -> "FairOptions":
        if self.baseline not in self.methods:
            raise ValueError(f"methods lacks the baseline {self.baseline!r}; add it, or name another baseline")
        return self


class SearchOptions(Cells):
    """An architecture search with synthetic sets in place of the real images, and its table."""

    sample: int | None = Field(None, ge=1, le=CANDIDATES)
    """How many of the 720 candidates are trained, chosen at random; None: all that fit the images."""
    sample_seed: int = 0
    """Another seed chooses others."""
    per_job: int = Field(20, ge=1)
    """Candidates that one job trains, one after another. Does not change them."""
    proxy: CandidateOptions = CandidateOptions()
    """How they are trained on synthetic sets."""
    real: CandidateOptions = CandidateOptions()
    """How they are trained on all real images."""
    top_by: Literal["real", "proxy"] = "real"
    """Whose accuracies say which the best 5, 10 and 20 candidates are, over which ranks are correlated."""

    def parts(self) -> list[str]:
        """Return the parts in which the candidates are trained, `FIRST-LAST` by their places in the sample."""
        return grouped(self.sample or CANDIDATES, self.per_job)

    def files(self, layout: "Layout", name: str) -> list[str]:
        """Return the paths of everything that the table of this name is made of."""
        found = [layout.nas(*cell, name, part) for cell in self.cells() for part in self.parts()]
        return found + [layout.nas_real(dataset, name, part) for dataset in self.datasets for part in self.parts()]

    @field_validator("real")
    @classmethod
    def _has_a_rate(cls, value: CandidateOptions) -> CandidateOptions:
        if value.lr == "learned":
            raise ValueError("real images have no step size of their own, so lr must be a number")
        return value


class StepsOptions(Options):
    """How classes are learned step by step (continual learning)."""

    steps: int = Field(5, ge=1)
    """Steps in which the classes are learned, as even as can be, earlier ones larger."""
    orders: int = Field(5, ge=1)
    """Orders of the classes, the first ones (`satm.class_order`)."""
    repeats: int = Field(3, ge=1)
    """Freshly initialised networks at each step of an order."""
    network: str = "convnet"
    """Network that is trained on the synthetic images kept."""
    sets: Literal["sliced", "per-step"] = "sliced"
    """`sliced`: a step brings its classes' images of one distillation of all classes; `per-step`: a set that was
    distilled on the classes of this step only."""

    def sources(self, dataset: str) -> list[str]:
        """Return the datasets whose synthetic sets are learned from: the whole one, or each step of each order."""
        if self.sets == "sliced":
            return [dataset]
        places = itertools.product(range(self.orders), range(1, self.steps + 1))
        return [Step(dataset, order, step, self.steps).name for order, step in places]


class LearnOptions(StepsOptions, EvaluateOptions):
    """How classes are learned step by step, and how a network is trained and tested at each step."""


class ContinualOptions(Cells, StepsOptions):
    """Continual learning from some synthetic sets: one table and one figure."""

    def files(self, layout: "Layout", name: str) -> list[str]:
        """Return the paths of everything that the table and the figure of this name are made of."""
        return [layout.continual(*cell, name) for cell in self.cells()]


class Campaign(Options):
    """One YAML file: the datasets, networks, experts and methods by name, and the tables made of them."""

    datasets: dict[str, DatasetOptions] = {}
    """Added to the built-in ones; the same name replaces."""
    networks: dict[str, dict[str, Any]] = {}
    """Each names a registered network under `network` and fixes its options."""
    experts: dict[str, ExpertsOptions] = {}
    """Recipes by name; an entry changes what it names of a built-in recipe (`satm.config.BUILTIN_EXPERTS`)."""
    methods: dict[str, dict[str, Any]] = {}
    """Each names a registered method under `method` and fixes its options; a registered name needs no entry."""
    settings: tuple[Setting, ...] = ()
    """Options for some of the jobs, after the presets."""
    tables: dict[str, TableOptions] = {}
    """Results tables by name."""
    fair: dict[str, FairOptions] = {}
    """Tables of what images are worth by themselves, by name."""
    searches: dict[str, SearchOptions] = {}
    """Architecture searches by name, a table of each."""
    continual: dict[str, ContinualOptions] = {}
    """Continual learning by the name of the protocol, a table and a figure of each."""

    @property
    def all_tables(self) -> dict[str, Cells]:
        """Everything that becomes `results/NAME.csv`, by name."""
        return {**self.tables, **self.fair, **self.searches, **self.continual}

    @model_validator(mode="after")
    def _one_file_each(self) -> "Campaign":
        sections: dict[str, Mapping[str, Cells]] = {
            "tables": self.tables,
            "fair": self.fair,
            "searches": self.searches,
            "continual": self.continual,
        }
        seen: dict[str, str] = {}
        for section, entries in sections.items():
            for name in entries:
                if name in seen:
                    raise ValueError(f"{seen[name]} and {section} both name {name!r}; rename one of them")
                seen[name] = section
        return self

    @field_validator("continual")
    @classmethod
    def _other_figures(cls, value: dict[str, ContinualOptions]) -> dict[str, ContinualOptions]:
        for name in value:
            if name.startswith("synthetic"):
                raise ValueError(f"the figure of {name!r} could be taken for a picture of synthetic images; rename it")
        return value

    @field_validator("datasets", "networks", "experts", "methods", "tables", "fair", "searches", "continual")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"the name {name!r} may hold letters, digits and '-' only")
        return value


STANDARDISED: tuple[Literal["cifar10", "cifar100", "tiny-imagenet"], ...] = ("cifar10", "cifar100", "tiny-imagenet")

BUILTIN_DATASETS = {
    "digits": DatasetOptions(source="digits", augment="crop_scale_rotate"),
    "cifar10": DatasetOptions(source="cifar10", zca=True),
    "cifar100": DatasetOptions(source="cifar100", zca=True),
    "tiny-imagenet": DatasetOptions(source="tiny-imagenet", zca=True),
    **{
        f"{source}-standardised": DatasetOptions(
            source=source, zca=True, zca_per_image=True, zca_relative=True, augment="flip_rotate"
        )
        for source in STANDARDISED
    },
}
"""The names that end in `-standardised` are prepared as RaT-BPTT prepares them (C.1 and section 3): each image without
its mean and of norm 1, whitened with 0.1 times the mean eigenvalue added to each, flipped or rotated.

Digits are neither flipped, nor coloured, nor cut out: a 6 mirrored is no digit, and 8 pixels leave little to cut."""


CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "tiny-imagenet": 200}
"""Classes of the sources that always have as many."""


class Resolver:
    """A campaign's names turned into options, presets included.

    Values are resolved as plain mappings where the model belongs to a registered method or network, because those
    modules need torch; `satm.methods.resolve` and `satm.networks.resolve` check them.
    """

    def __init__(self, campaign: Campaign, presets: tuple[Setting, ...], root: str, path: Path | None = None) -> None:
        self.campaign = campaign
        self.settings = (*presets, *campaign.settings)
        self.layout = Layout(root)
        self.path = path
        self.datasets = {**BUILTIN_DATASETS, **campaign.datasets}

    def dataset(self, name: str) -> DatasetOptions:
        """Return the options of a dataset; the error for an unknown name lists the known ones.

        A name such as `digits-order-0-step-1-of-5` (`satm.class_order`) means the classes of one step of another one.
        """
        options = pick(self.whole(name), self.datasets, "dataset")
        if (step := self.step(name)) is None:
            return options
        labels = step.labels(self.classes(step.dataset))
        kept = labels if options.classes is None else tuple(options.classes[label] for label in labels)
        return options.model_copy(update={"classes": kept})

    def step(self, name: str) -> Step | None:
        """Return the step that the name of a dataset means; None: it is a dataset of its own."""
        return None if name in self.datasets else step_of(name)

    def whole(self, name: str) -> str:
        """Return the dataset whose images, normalisation, whitening and settings serve; mostly `name` itself."""
        return step.dataset if (step := self.step(name)) else name

    def classes(self, name: str) -> int:
        """Return how many classes a dataset has, as far as that can be known before its files are read.

        Raises:
            UsageError: it cannot.
        """
        options = self.dataset(name)
        if options.classes is None and options.source not in CLASSES:
            raise UsageError(
                f"only the files of dataset {name} say how many classes it has, and its steps need the number before; "
                "name the labels to keep in its option classes"
            )
        return CLASSES[options.source] if options.classes is None else len(options.classes)

    def network(self, name: str, dataset: str) -> dict[str, Any]:
        """Return `{"network": registered name, option: value…}` on a dataset; a registered name needs no entry."""
        own = {"network": name, **self.campaign.networks.get(name, {})}
        return {**self._set("network", network=(name, own["network"]), dataset=(dataset,)), **own}

    def experts(self, name: str, dataset: str) -> ExpertsOptions:
        """Return the recipe of the experts `name` on a dataset."""
        pick(name, {**BUILTIN_EXPERTS, **self.campaign.experts}, "experts")
        base, own = (
            entries[name].model_dump(exclude_unset=True) if name in entries else {}
            for entries in (BUILTIN_EXPERTS, self.campaign.experts)
        )
        found = self._set("experts", experts=(name,), dataset=(dataset,))
        options = parse(ExpertsOptions, {**base, **found, **own}, f"experts {name}")
        options.check(f"experts {name}")
        return options

    def difficulty(self, name: str, dataset: str, options: ExpertsOptions) -> str | None:
        """Return the experts whose paths order the images for the experts `name`; None where the order is full.

        Raises:
            UsageError: options that do not fit together, or experts that learn from an order themselves.
        """
        options.check(f"experts {name}")
        if options.order == "full":
            return None
        if (found := self.experts(options.difficulty, dataset).order) != "full":
            raise UsageError(
                f"experts {name}: difficulty names {options.difficulty}, experts of order {found!r}; name experts of "
                "order 'full'"
            )
        return options.difficulty

    def method(self, name: str, dataset: str, ipc: int) -> dict[str, Any]:
        """Return `{"method": registered name, option: value…}` for one cell of a table."""
        own = {"method": name, **self.campaign.methods.get(name, {})}
        found = self._set("distill", method=(name, own["method"]), dataset=(dataset,), ipc=(ipc,))
        return {**found, **own}

    def evaluation(self, method: str, dataset: str, ipc: int) -> EvaluateOptions:
        """Return how the synthetic sets of one cell are tested."""
        base = self.campaign.methods.get(method, {}).get("method", method)
        found = self._set("evaluate", method=(method, base), dataset=(dataset,), ipc=(ipc,))
        return parse(EvaluateOptions, found, "evaluate")

    def full(self, recipe: str, dataset: str) -> EvaluateOptions:
        """Return how networks are trained on all images of a dataset by a recipe of `FULL`.

        The campaign's settings of the stage evaluate that name the method `full-RECIPE` change it.
        """
        pick(recipe, FULL, "recipe for all real images")
        found: dict[str, Any] = {"lr": 0.1, "batch_size": 128, "epochs": 200, "schedule": "cosine"}
        if recipe == "experts":
            base = self.experts("sgd", dataset)
            same = ("lr", "batch_size", "epochs", "augment", "momentum", "weight_decay")
            found = {name: getattr(base, name) for name in same}
        for setting in self.settings:
            if setting.method and setting.applies("evaluate", method=(f"full-{recipe}",), dataset=(dataset,), ipc=(0,)):
                found.update(setting.options)
        return parse(EvaluateOptions, {"decay_epoch": None, **found}, f"full-{recipe}")

    def table(self, name: str) -> Cells:
        """Return the cells of a table that this campaign defines, of whatever kind."""
        return pick(name, self.campaign.all_tables, f"table in {self.path or 'the built-in campaign'}")

    def search(self, name: str) -> SearchOptions:
        """Return an architecture search; without a campaign every name has the defaults, for runs by hand."""
        if self.path is None:
            return SearchOptions(datasets={}, methods=())
        return pick(name, self.campaign.searches, f"search in {self.path}")

    def learning(self, protocol: str, method: str, dataset: str, ipc: int) -> LearnOptions:
        """Return how classes are learned; without a campaign every protocol has the defaults, for runs by hand."""
        known = self.campaign.continual
        where = f"protocol of continual learning in {self.path}"
        plan = StepsOptions() if self.path is None else pick(protocol, known, where)
        training = self.evaluation(method, dataset, ipc).model_dump()
        return parse(LearnOptions, {**training, **plan.model_dump(include=set(StepsOptions.model_fields))}, "continual")

    def pictured(self, dataset: str, ipc: int) -> list[tuple[str, int]]:
        """Return (method, seed) of what the picture of a cell shows: all methods of its tables, first seed."""
        tables = [table for table in self.campaign.all_tables.values() if ipc in table.datasets.get(dataset, ())]
        return list(dict.fromkeys((method, table.seeds_for(ipc)[0]) for table in tables for method in table.methods))

    def _set(self, stage: str, **axes: tuple[object, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        names = axes["dataset"]
        axes["dataset"] = (*names, *(self.whole(str(name)) for name in names))
        for setting in self.settings:
            if setting.applies(stage, **axes):
                found.update(setting.options)
        return found


class Layout:
    """Every path below one root. With `{name}` texts as arguments it gives Snakemake's patterns."""

    def __init__(self, root: str) -> None:
        self.root = root

    def images(self, dataset: str) -> str:
        """Decoded images of a dataset, uint8."""
        return f"{self.root}/data/{dataset}/images.safetensors"

    def zca(self, dataset: str) -> str:
        """Whitening of a dataset: mean, matrix, inverse."""
        return f"{self.root}/data/{dataset}/zca.safetensors"

    def experts(self, dataset: str, experts: str) -> str:
        """Folder of a trajectory store: shards, parts and manifest."""
        return f"{self.root}/experts/{dataset}/{experts}"

    def experts_part(self, dataset: str, experts: str, part: str) -> str:
        """What one job of several experts made, `part` being `FIRST-LAST`."""
        return f"{self.experts(dataset, experts)}/part-{part}.json"

    def manifest(self, dataset: str, experts: str) -> str:
        """Manifest of a whole trajectory store."""
        return f"{self.experts(dataset, experts)}/manifest.json"

    def difficulty(self, dataset: str, experts: str) -> str:
        """How hard each training image was for some experts."""
        return f"{self.experts(dataset, experts)}/difficulty.safetensors"

    def distilled(self, dataset: str, ipc: int | str, method: str, seed: int | str) -> str:
        """A synthetic set."""
        return f"{self._run('distilled', dataset, ipc, method, seed)}/distilled.safetensors"

    def metrics(self, dataset: str, ipc: int | str, method: str, seed: int | str) -> str:
        """What was measured in each iteration of a distillation."""
        return f"{self._run('distilled', dataset, ipc, method, seed)}/metrics.parquet"

    def evaluation(self, dataset: str, ipc: int | str, method: str, seed: int | str, network: str) -> str:
        """Accuracies of networks trained on a synthetic set."""
        return f"{self._run('evaluation', dataset, ipc, method, seed)}/{network}.parquet"

    def variants(self, dataset: str, ipc: int | str, method: str, seed: int | str, network: str) -> str:
        """The same with hard and with soft labels, with and without augmentation."""
        return f"{self._run('variants', dataset, ipc, method, seed)}/{network}.parquet"

    def full(self, dataset: str, recipe: str, network: str) -> str:
        """Accuracies of networks trained on all real images."""
        return f"{self.root}/full/{dataset}/{recipe}/{network}.parquet"

    def nas(self, dataset: str, ipc: int | str, method: str, seed: int | str, search: str, part: str) -> str:
        """Accuracies of some candidates of an architecture search trained on a synthetic set; `part`: `FIRST-LAST`."""
        return f"{self._run('nas', dataset, ipc, method, seed)}/{search}/part-{part}.parquet"

    def nas_real(self, dataset: str, search: str, part: str) -> str:
        """The same trained on all real images."""
        return f"{self.root}/nas/{dataset}/real/{search}/part-{part}.parquet"

    def continual(self, dataset: str, ipc: int | str, method: str, seed: int | str, protocol: str) -> str:
        """Accuracies by class of networks that learn classes step by step."""
        return f"{self._run('continual', dataset, ipc, method, seed)}/{protocol}.parquet"

    def sharpness(self, dataset: str, ipc: int | str, method: str, seed: int | str) -> str:
        """Sharpness of the outer loss around a synthetic set."""
        return f"{self._run('analysis', dataset, ipc, method, seed)}/sharpness.parquet"

    def expert_sharpness(self, dataset: str, experts: str) -> str:
        """Sharpness of the training loss along the paths of some experts."""
        return f"{self.root}/analysis/{dataset}/experts/{experts}/sharpness.parquet"

    def table(self, name: str, kind: str = "csv") -> str:
        """A results table as csv, md or tex."""
        return f"{self.root}/{name}.{kind}"

    def figure(self, name: str, kind: str = "png") -> str:
        """A figure or picture."""
        return f"{self.root}/figures/{name}.{kind}"

    def synthetic(self, dataset: str, ipc: int | str) -> str:
        """The images of the synthetic sets of one cell, all methods."""
        return self.figure(f"synthetic-{dataset}-ipc-{ipc}")

    def log(self, *parts: str | int) -> str:
        """What a job printed."""
        return f"{self.root}/logs/{'/'.join(str(part) for part in parts)}.log"

    def benchmark(self, *parts: str | int) -> str:
        """Seconds and memory of a job, as Snakemake measures them."""
        return f"{self.root}/benchmarks/{'/'.join(str(part) for part in parts)}.tsv"

    def state(self, *parts: str | int) -> str:
        """Folder for resuming one job; never an output, because Snakemake deletes the outputs of a job it restarts."""
        return f"{self.root}/state/{'/'.join(str(part) for part in parts)}"

    def _run(self, stage: str, dataset: str, ipc: int | str, method: str, seed: int | str) -> str:
        return f"{self.root}/{stage}/{dataset}/ipc-{ipc}/{method}/seed-{seed}"


def parts(options: ExpertsOptions) -> list[str]:
    """Return the parts in which the experts are trained, `FIRST-LAST`, both included."""
    return grouped(options.count, options.per_job)


def grouped(count: int, each: int) -> list[str]:
    """Return the numbers from 0 up to `count` in groups of so many, `FIRST-LAST`, both included."""
    return [f"{first}-{min(first + each, count) - 1}" for first in range(0, count, each)]


def preset_folder() -> Path:
    """Return the folder of the preset files: inside an installed package, `config/presets` in a checkout."""
    installed = Path(__file__).parent / "presets"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "config" / "presets"


def load_presets() -> tuple[Setting, ...]:
    """Return the rows of all preset files, in the order of the files' names."""
    found: list[Setting] = []
    for path in sorted(preset_folder().glob("*.yaml")):
        rows = load_yaml(path).get("settings", [])
        found += [parse(Setting, row, f"{path}: settings.{index}") for index, row in enumerate(rows)]
    return tuple(found)


def load_campaign(path: Path | None) -> Resolver:
    """Return the campaign in a YAML file; None gives the built-in one, which has no tables.

    `paper.yaml` and the built-in campaign root at `results/`, every other NAME.yaml at `results/NAME/`, so that no two
    files share an output.

    Raises:
        UsageError: the file is missing, is not YAML, or holds an unknown name or an unusable value.
    """
    if path is None:
        return Resolver(Campaign(), load_presets(), "results")
    root = root_of(path)
    return Resolver(parse(Campaign, load_yaml(path), str(path)), load_presets(), root, path)


def root_of(path: Path) -> str:
    """Return the folder of everything that a campaign makes, from the name of its file.

    Raises:
        UsageError: the name cannot become a folder.
    """
    if not re.fullmatch(NAME, path.stem):
        raise UsageError(f"the name of {path} becomes a folder and may hold letters, digits and '-' only; rename it")
    return "results" if path.stem == "paper" else f"results/{path.stem}"


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-6 is a number, as in YAML 1.2; PyYAML alone wants 1.0e-6."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
)


def load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UsageError: the file is missing, is not YAML or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{path} is not YAML: {text}; correct it") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}, expected a mapping of names to values; correct it")
    return content


def parse(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """Return `values` as the options model, checked.

    Args:
        model: the options to fill.
        values: by option name.
        where: what the values belong to, for the message.

    Raises:
        UsageError: an unknown option (with the nearest known one) or an unusable value; one line, the first problem.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_at(model, first["loc"][:-1])
            hint = f"; known: {', '.join(known)}.{suggest(str(first['loc'][-1]), known)}"
            raise UsageError(f"{where}: unknown option {place!r}{hint}") from error
        if first["type"] == "missing":
            raise UsageError(f"{where}: {place} is missing; give it a value") from error
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        raise UsageError(f"{where}: {place or 'the options'}: {message}, got {first['input']!r}") from error


def _known_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the option names of the model that `path` (of a validation error) leads to."""
    here: Any = model
    for step in path:
        if isinstance(here, type) and issubclass(here, BaseModel) and step in here.model_fields:
            here = here.model_fields[str(step)].annotation
            arguments = [found for found in getattr(here, "__args__", ()) if isinstance(found, type)]
            models = [found for found in arguments if issubclass(found, BaseModel)]
            here = models[0] if models else here
    return sorted(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def canonical(values: Mapping[str, Any] | BaseModel) -> str:
    """Return options as one JSON text that is the same for the same values, for parameters of jobs and metadata."""
    content = values.model_dump(mode="json") if isinstance(values, BaseModel) else values
    return json.dumps(content, sort_keys=True)


def data_path(options: DatasetOptions) -> Path:
    """Return the folder of a dataset with the environment's variables put in.

    Raises:
        UsageError: the path names a variable that is not set.
    """
    return expand(options.path) if options.path else Path(os.environ.get("SATM_DATA", "data")) / options.source


def expand(path: str) -> Path:
    """Return a path with the environment's variables, `$NAME` and `${NAME}`, and the home folder `~` put in.

    Raises:
        UsageError: it names a variable that is not set.
    """
    expanded = os.path.expandvars(path)
    if "$" in expanded:
        raise UsageError(f"the path {path!r} names a variable that is not set; set it or write the path out")
    return Path(expanded).expanduser()

"""Options for training and testing networks: alone, step by step or in an architecture search."""

import itertools
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from satm.config.base import Options, grouped, refuse_idle
from satm.config.class_order import Step


class EvaluateOptions(Options):
    """Evaluation of a synthetic set. Source of the defaults: MTT's public protocol, 1000 epochs of SGD."""

    repeats: int = Field(5, ge=1)
    """Freshly initialised networks, one row each."""
    epochs: int = Field(1000, ge=1)
    """Passes over the synthetic set."""
    train_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Steps of training in place of `epochs`, in passes whose last one may be cut short. With several the number counts
    whose network is best on real images other than the test images. Source: RaT-BPTT's public code, which tests after
    300, 600, 1000 and 3000 steps and reports the best on test images."""
    batch_size: int = Field(256, ge=1)
    """Images per step."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """`adam`: with PyTorch's betas 0.9 and 0.999; RaT-BPTT uses it, with `lr` 0.001 and `decay_epoch` None."""
    lr: float | Literal["learned", "searched"] = "learned"
    """Step size; `learned`: that of the synthetic set; `searched`: the one of `lr_grid` whose network is best on real
    images other than the test images. Each row records which."""
    lr_grid: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.001, 0.003, 0.01, 0.03, 0.1), min_length=1)
    """Step sizes that `lr: searched` tries, one network each."""
    lr_images: Literal["validation", "train"] = "validation"
    """Real images on which `lr: searched` and several `train_steps` choose: held-out ones, or training images, which
    the tested networks have not seen but from which the synthetic set was made."""
    lr_count: int | None = Field(None, ge=1)
    """Number of these images, drawn at random, the same for every set; None: all."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; Adam has its own."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty: this times the weight is added to the gradient."""
    schedule: Literal["step", "cosine"] = "step"
    """Decay of the step size: once, at `decay_epoch`, or along half a cosine to 0, which ignores `decay_epoch`."""
    decay_epoch: int | None = Field(501, ge=1)
    """Epochs after which the step size is divided by 10 and the optimiser's state is reset; None: never."""
    flat_rho: float = Field(0.0, ge=0)
    """Above 0: sharpness-aware training with this distance to the worst neighbour (SAM, FTD section 4.3)."""
    augment: bool = True
    """Augment the synthetic images, by the dataset's options."""
    split: Literal["test", "validation"] = "test"
    """Real images to test on; `validation`: the held-out ones, for choosing options."""
    network_seed: int = 0
    """Seed of the networks."""
    together: Literal["auto", "no", "yes"] = "auto"
    """Train the networks of all repeats at once, with stacked weights, or one after another; results agree up to
    rounding. `auto`: at once on a GPU, because it is faster there."""

    @property
    def chooses(self) -> bool:
        """Whether step size or number of steps are chosen on real images."""
        return self.lr == "searched" or len(self.train_steps) > 1

    def passes(self, images: int) -> float:
        """Return the passes over a set of `images` images; with several `train_steps`, that of the largest."""
        return max(self.train_steps) / -(-images // self.batch_size) if self.train_steps else float(self.epochs)

    @model_validator(mode="after")
    def _counts_once(self) -> "EvaluateOptions":
        if not self.train_steps:
            return self
        usual = type(self).model_fields["epochs"].default
        if self.epochs != usual:
            raise ValueError(
                f"train_steps {[*self.train_steps]} and epochs {self.epochs} both say how long networks are trained; "
                f"leave train_steps out, or set epochs to {usual}, the default"
            )
        if self.lr == "searched" and len(self.train_steps) > 1:
            raise ValueError("lr 'searched' and several train_steps are two searches; fix one of them")
        return self

    @model_validator(mode="after")
    def _steps_alone_if_flat(self) -> "EvaluateOptions":
        if self.together == "yes" and self.flat_rho:
            raise ValueError(
                f"together 'yes' does not go with flat_rho {self.flat_rho:g}, whose step depends on the norm of one "
                "network's gradient; leave one of them out"
            )
        return self


FULL = {
    "experts": "trained as the experts are: their step size, batch size, epochs and augmentation, no decay",
    "strong": "SGD with momentum 0.9, step size 0.1 along a cosine, weight decay 5e-4, 200 epochs, batches of 128",
}
"""Recipes for training on all real images. `strong` is our choice, common practice for CIFAR."""

CANDIDATES = 720
"""Number of networks in the space of an architecture search (`satm.evaluation.search.candidates`)."""


class CandidateOptions(EvaluateOptions):
    """Training and testing of the candidates of an architecture search. Source of epochs and repeats: FTD A.3.4.

    The papers give no optimiser and step size; SGD with momentum and a constant step size of 0.01 are ours.
    """

    repeats: int = Field(3, ge=1)
    """Freshly initialised networks per candidate, one row each; candidates are ranked by the mean accuracy."""
    epochs: int = Field(200, ge=1)
    """Passes over the images, synthetic or real."""
    lr: float | Literal["learned"] = 0.01
    """Step size; `learned`: that of the synthetic set, for the proxy only."""
    decay_epoch: int | None = Field(None, ge=1)
    """Epochs after which the step size is divided by 10 and the optimiser's state is reset; None: never."""

    @model_validator(mode="after")
    def _never_searches(self) -> "CandidateOptions":
        refuse_idle(self, {"an architecture search; set lr": ("lr_grid", "lr_images", "lr_count", "train_steps")})
        return self


class SearchOptions(Options):
    """An architecture search with synthetic sets in place of the real images."""

    sample: int | None = Field(None, ge=1, le=CANDIDATES)
    """Number of the 720 candidates that are trained, a random choice; None: all that fit the images."""
    sample_seed: int = 0
    """Seed of the choice."""
    width_factor: float = Field(1.0, gt=0)
    """Factor on the width of every candidate, 32 to 256 filters, for a search in which wide ones take too long."""
    per_job: int = Field(20, ge=1)
    """Candidates that one job trains, one after another; does not change them."""
    proxy: CandidateOptions = CandidateOptions()
    """Training of the candidates on synthetic sets."""
    real: CandidateOptions = CandidateOptions()
    """Training of the candidates on all real images."""

    @field_validator("real")
    @classmethod
    def _has_a_rate(cls, value: CandidateOptions) -> CandidateOptions:
        if value.lr == "learned":
            raise ValueError("real images have no learned step size, so lr must be a number")
        return value

    def parts(self) -> list[str]:
        """Return the groups of candidates, `FIRST-LAST` by their places in the sample."""
        return grouped(self.sample or CANDIDATES, self.per_job)


class StepsOptions(Options):
    """Options for learning classes step by step (continual learning)."""

    steps: int = Field(5, ge=1, le=10_000)
    """Number of steps in which the classes are learned; earlier ones have one more class if uneven."""
    orders: int = Field(5, ge=1, le=10_000)
    """Number of class orders (`satm.config.class_order`)."""
    repeats: int = Field(3, ge=1)
    """Freshly initialised networks at each step of an order."""
    network: str = "convnet"
    """Network that is trained on the synthetic images in the replay buffer."""
    sets: Literal["sliced", "per-step"] = "sliced"
    """Images of a step: from one distillation of all classes (`sliced`), or of the step's classes (`per-step`)."""

    def sources(self, dataset: str) -> list[str]:
        """Return the datasets whose synthetic sets are used: the whole one, or each step of each order."""
        if self.sets == "sliced":
            return [dataset]
        places = itertools.product(range(self.orders), range(1, self.steps + 1))
        return [Step(dataset, order, step, self.steps).name for order, step in places]


class LearnOptions(StepsOptions, EvaluateOptions):
    """Options for learning classes step by step, and for training and testing a network at each step."""

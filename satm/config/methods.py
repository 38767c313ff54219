"""The options that methods of one family share. Nothing here imports torch: campaigns are checked against them."""

from typing import Literal

from pydantic import Field

from satm.config.base import Options


class MethodOptions(Options):
    """Options of every method."""

    step_size: float = Field(0.01, gt=0)
    """Step size of SGD that belongs to the synthetic set; the initial value if a method learns it."""


class IterativeOptions(MethodOptions):
    """Options of every method that learns its synthetic set in iterations."""

    iterations: int = Field(5000, ge=1)
    """Outer iterations."""
    init: Literal["real", "correct", "gaussian"] = "real"
    """Initial images: random real ones, real ones that an expert classifies correctly (both by class), or noise."""
    init_norm: float | None = Field(None, gt=0)
    """Norm that each image of Gaussian noise is scaled to; None: as drawn, with standard deviation 1."""
    labels: Literal["hard", "learned", "teacher"] = "hard"
    """Hard: the class of each image. Learned: soft labels, optimised as logits, that start from the experts' logits
    if there are experts. Teacher: the logits of the network at the segment's end, recomputed in each iteration."""
    confidence: float = Field(0.9, gt=0, lt=1)
    """Initial probability of an image's class, for learned labels without experts."""
    label_experts: int | None = Field(None, ge=1)
    """Number of experts, the first ones, from whose logits learned labels start; None: all. DATM's public code asks all
    for images chosen by `init: correct`, and one for `real` images."""
    outer: Literal["sgd", "adam"] = "sgd"
    """Outer optimiser: SGD with momentum, or Adam."""
    lr_images: float = Field(1000.0, gt=0)
    """Outer learning rate of the images."""
    momentum: float = Field(0.5, ge=0, lt=1)
    """Outer momentum of SGD, for images and step size. 0.5 as in the public code of MTT, FTD, TESLA, DATM."""
    lr_labels: float = Field(1.0, ge=0)
    """Outer learning rate of the logits of learned labels."""
    momentum_labels: float = Field(0.9, ge=0, lt=1)
    """Outer momentum of SGD, for learned labels. 0.9 as in DATM's public code."""
    lr_step_size: float = Field(1e-5, ge=0)
    """Outer learning rate of the inner step size."""
    ema: float | None = Field(None, ge=0, lt=1)
    """Decay of an exponential moving average of images and learned labels, which becomes the synthetic set; the raw set
    is stored and evaluated beside it. None: no average; 0: the average is the raw set."""
    skip_above: float | None = Field(None, gt=0)
    """Iterations with a larger loss change nothing. None: no iteration is skipped."""
    selection: Literal["last", "validation", "test"] = "last"
    """Selected iteration: the last, or the best on held-out or test images (`test`: optimistic, as published)."""
    watch: Literal["validation", "test"] | None = None
    """Record the accuracy on these real images without selecting by it; a `selection` other than last also records."""
    evaluate_every: int = Field(500, ge=1)
    """Iterations between two evaluations of `watch` or `selection`; the last iteration is always evaluated."""
    evaluate_networks: int = Field(1, ge=1)
    """Networks per evaluation."""
    snapshots: int = Field(0, ge=0)
    """Number of intermediate sets, evenly spaced from the start to the last iteration, that are stored with the result
    (`history`); 1: the start alone. They are raw sets, not averages."""
    explode: float = Field(100.0, gt=0)
    """A loss above this counts as exploded. A matching loss of 1 means no better than not training."""
    max_rollbacks: int = Field(10, ge=0)
    """Rollbacks, each with a lower learning rate, before the run gives up."""
    lower: float = Field(0.5, gt=0, lt=1)
    """Factor on the offending learning rate at each rollback."""


class MatchingOptions(IterativeOptions):
    """Options of every trajectory-matching method."""

    experts: str = "sgd"
    """Name of the experts."""
    inner_steps: int = Field(50, ge=1)
    """Steps of the student on the synthetic set (N in MTT)."""
    expert_epochs: int = Field(2, ge=1)
    """Epochs of the expert that the inner steps are matched to (M in MTT)."""
    min_start_epoch: int = Field(0, ge=0)
    """First epoch at which a segment may start (T- in ConTra)."""
    max_start_epoch: int = Field(20, ge=1)
    """One more than the last epoch at which a segment may start (T+ in ConTra)."""
    start_epoch: int | None = Field(None, ge=0)
    """Start of the sampled segment in every iteration; None: drawn at random."""
    monitor: int = Field(0, ge=0)
    """Number of monitored segments, which start at the first epochs. Their matching losses are recorded in the metrics,
    measured on the last expert, which is then never matched; 0: none. Source: ConTra section 4.2."""
    monitor_every: int = Field(10, ge=1)
    """Iterations between two of these measurements."""
    segments: Literal["uniform", "expanding"] = "uniform"
    """Segments start anywhere in the range, or in a part of it that grows from easy to hard."""
    expand_from: int | None = Field(None, ge=1)
    """`max_start_epoch` in the first iteration, for expanding segments."""
    expand_iterations: int = Field(1000, ge=1)
    """Iterations until the expanding range is complete."""
    concurrent: int = Field(0, ge=0)
    """Fixed segments that are matched in each iteration beside the sampled one (K in ConTra); 0: none."""
    distance: int | None = Field(None, ge=1)
    """Epochs between the starts of fixed segments (R in ConTra); None: the range divided by their number."""
    beta: float = Field(0.2, ge=0, le=1)
    """Weight of the sampled segment's loss with concurrent segments; the fixed ones share the rest equally."""
    start_noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on the student's initial weights (robust learning)."""
    batch_size: int | None = Field(None, ge=1)
    """Synthetic images of one inner step, drawn without replacement until all were used; None: all of them."""
    augment: bool = True
    """Augment the synthetic images in each inner step, by the dataset's options."""
    keep_divisor: int = Field(1, ge=1)
    """Differentiate through the last int(inner_steps / keep_divisor) steps of each unroll; 1: through all."""
    step_size_gradient: Literal["exact", "first-order", "fixed"] = "exact"
    """Gradient by which the inner step size is learned: exact, SATM's Eq. 12, or none."""
    engine: Literal["mixed", "reverse", "tesla"] = "mixed"
    """Computation of the hypergradient: exact in little memory (`mixed`), exact as an unrolled graph (`reverse`), or
    TESLA's formula, which is exact for one inner step only and needs the memory of one step."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of convolutions and matrix products in the hypergradient; all else is float32. The errors of each are
    in docs/running.md; float32 is the most accurate."""
    tesla_scale: Literal["paper", "code"] = "paper"
    """For the engine `tesla`: its formula as printed, or half of it for the images, as its public code computes it."""

    @property
    def kept(self) -> int:
        """Differentiated steps of an unroll."""
        return self.inner_steps // self.keep_divisor

    @property
    def spacing(self) -> int:
        """Epochs between the starts of concurrent segments.

        Source: rule: ConTra section 6.4, floor((T+ - T-) / K); Table 5 prints other values, which the presets give.
        """
        if self.distance is not None:
            return self.distance
        return (self.max_start_epoch - self.min_start_epoch) // max(1, self.concurrent)


class UnrolledOptions(IterativeOptions):
    """Options of every method of unrolled training. Source of the defaults: RaT-BPTT C.1, C.5."""

    network: str = "convnet"
    """Name of the network that is trained in the inner loop."""
    step_size: float = Field(0.001, gt=0)
    """Inner step size; the initial value if it is learned."""
    step_size_gradient: Literal["exact", "first-order", "fixed"] = "fixed"
    """Gradient by which the inner step size is learned: exact; first-order, minus the inner product of the outer loss's
    gradient and the sum of all steps' directions; or none."""
    init: Literal["real", "correct", "gaussian"] = "gaussian"
    """Initial images: random real images of each class, or Gaussian noise."""
    init_norm: float | None = Field(1.0, gt=0)
    """Norm of each initial image, noise or real; None: unchanged."""
    outer: Literal["sgd", "adam"] = "adam"
    """Outer optimiser: SGD with momentum, or Adam."""
    lr_images: float = Field(0.001, gt=0)
    """Outer learning rate of the images, or of the basis."""
    lr_labels: float = Field(0.001, ge=0)
    """Outer learning rate of the logits of learned labels."""
    inner_steps: int = Field(200, ge=1)
    """Steps of the network on the synthetic set (N)."""
    inner: Literal["adam", "sgd"] = "adam"
    """Inner optimiser: Adam without weight decay, or SGD."""
    inner_momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of the inner SGD; 0.9 in RaT-BPTT's public code, not given in the paper."""
    inner_weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the inner SGD; 5e-4 in RaT-BPTT's public code, not given in the paper."""
    milestones: tuple[int, ...] = ()
    """Inner steps after which the step size is multiplied by `factor`; 120 and 200 in RaT-BPTT's variant with SGD."""
    factor: float = Field(0.2, gt=0)
    """Factor on the step size at each milestone."""
    real_batch: int = Field(5000, ge=1)
    """Real images of the outer loss, or all if there are fewer."""
    batch_size: int | None = Field(None, ge=1)
    """Synthetic images of one inner step, drawn without replacement until all were used; None: all of them."""
    augment: bool = True
    """Augment the synthetic images in each inner step, by the dataset's options."""
    augment_real: bool = True
    """Augment the real images of the outer loss, by the dataset's options, with one draw for the batch."""
    engine: Literal["mixed", "reverse"] = "mixed"
    """Computation of the hypergradient, always exact: in little memory, or as an unrolled graph."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of convolutions and matrix products in the hypergradient; all else is float32. The errors of each are
    in docs/running.md; float32 is the most accurate."""
    clip: float | None = Field(2.0, gt=0)
    """Largest norm of the images' hypergradient, in units of its moving average up to now; None: unlimited."""
    clip_decay: float = Field(0.9, ge=0, lt=1)
    """Decay of that exponential moving average."""
    normalise: bool = False
    """Scale the hypergradient of the images to norm 1 in each iteration. Source: RaT-BPTT C.5."""
    basis: int = Field(0, ge=0)
    """Number of basis images, of which all synthetic images are weighted sums; 0: the images themselves are learned."""
    basis_images: int | None = Field(None, ge=1)
    """Images per class that are computed from the basis; None: ipc, which is the budget of stored numbers."""
    lr_weights: float = Field(0.001, ge=0)
    """Outer learning rate of the weights of a basis."""
    blocks: int = Field(1, ge=1)
    """Equal blocks of each class's images that are learned one after another, each in an equal share of the iterations
    and trained together with the earlier ones (boosting)."""
    boost: float = Field(0.0, ge=0, lt=1)
    """Factor on the outer step of earlier blocks; 0: they stay unchanged."""


class ClassMatchingOptions(IterativeOptions):
    """Options of every method that compares real and synthetic images class by class."""

    real_batch: int = Field(256, ge=1)
    """Real images of a class in each comparison, drawn without replacement; or all if the class has fewer."""
    augment: bool = True
    """Apply the same augmentation of the dataset to the real and the synthetic images of a class."""
    explode: float = Field(1e9, gt=0)
    """A loss above this counts as exploded. The losses here grow with the classes and the width of the network."""


class SelectionOptions(MethodOptions):
    """Options of every method that chooses real images by their features in an expert."""

    experts: str = "sgd"
    """Name of the experts; the first one's last snapshot computes the features."""

"""The problems of the benchmarks. Nothing here imports torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measuring:
    """How ways are measured, in turn."""

    rounds: int = 3
    """Measurements of each way."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads; None: torch's choice."""
    memory: bool = True
    """Also measure memory, in a process of its own for each way."""


@dataclass(frozen=True)
class Matching:
    """A problem of trajectory matching with random images and weights, for a ConvNet."""

    width: int = 128
    """Filters of each convolution."""
    depth: int = 3
    """Blocks."""
    size: int = 32
    """Height and width of the images in pixels."""
    classes: int = 10
    """Number of classes."""
    ipc: int = 1
    """Synthetic images per class."""
    batch: int | None = None
    """Synthetic images of one inner step; None: all."""
    steps: int = 50
    """Inner steps (N)."""
    kept: int | None = None
    """Differentiated steps at the end; None: all, or the method's share. Published loops differentiate all."""
    concurrent: int = 1
    """Segments that are matched at once, one after another."""
    augment: bool = True
    """Augment the images in each inner step."""

    @property
    def network(self) -> dict[str, object]:
        """Name and options of the network."""
        return {"network": "convnet", "width": self.width, "depth": self.depth}


@dataclass(frozen=True)
class Experts:
    """An epoch of experts on random images, for a ConvNet."""

    width: int = 128
    """Filters of each convolution."""
    depth: int = 3
    """Blocks."""
    size: int = 32
    """Height and width of the images in pixels."""
    classes: int = 10
    """Number of classes."""
    images: int = 2560
    """Training images."""
    batch: int = 256
    """Images of one step."""
    augment: bool = True
    """Augment the images."""
    networks: int = 1
    """Experts, each of which is trained for an epoch."""

    @property
    def network(self) -> dict[str, object]:
        """Name and options of the network."""
        return {"network": "convnet", "width": self.width, "depth": self.depth}


@dataclass(frozen=True)
class Evaluation:
    """Networks trained on a random synthetic set."""

    network: str = "convnet"
    """Name of a registered network."""
    options: tuple[str, ...] = ()
    """Options of the network, each as NAME=VALUE, such as width=32."""
    size: int = 32
    """Height and width of the images in pixels."""
    classes: int = 10
    """Number of classes."""
    ipc: int = 1
    """Synthetic images per class, up to 256 images in a step."""
    networks: int = 5
    """Networks of one evaluation."""
    epochs: int = 100
    """Epochs of each network."""


SETTINGS: dict[str, tuple[str, Matching | Experts | Evaluation, tuple[str, ...]]] = {
    "mtt": ("hypergradient", Matching(), ("mtt-loop", "mixed", "mixed:0")),
    "tesla": ("hypergradient", Matching(), ("tesla-loop", "mixed", "mixed:3")),
    "satm": ("distill", Matching(), ("mtt-loop", "mtt", "satm")),
    "ipc-10": ("hypergradient", Matching(ipc=10, steps=30, batch=100), ("mtt-loop", "mixed", "mixed:0")),
    "64-pixels": (
        "hypergradient",
        Matching(depth=4, size=64, classes=200, batch=200, steps=3),
        ("mtt-loop", "mixed", "mixed:0"),
    ),
    "experts": ("experts", Experts(images=1280), ("published", "ours")),
    "evaluate": ("evaluate", Evaluation(epochs=60), ("published", "one by one", "at once")),
}
"""The settings of `bench all` by name: kind of problem, problem, and ways, of which the first is a published loop."""

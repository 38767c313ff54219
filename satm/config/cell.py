"""The name of one synthetic set: what a distillation is of, and every stage after it."""

from typing import Any, NamedTuple


class Cell(NamedTuple):
    """One synthetic set of a campaign; the options of a method or an evaluation do not depend on its seed.

    Seeds of random generators derive from the four values in this order.
    """

    dataset: str
    """Name of a dataset."""
    ipc: int
    """Images per class; 0 stands for all real images."""
    method: str
    """Name of a method in the campaign."""
    seed: int = 0
    """Seed of the distillation."""

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Its part of paths."""
        return self.dataset, f"ipc-{self.ipc}", self.method, f"seed-{self.seed}"

    @property
    def axes(self) -> dict[str, Any]:
        """Its values by name: the columns of result files, the flags of commands."""
        return self._asdict()


PATTERN = Cell("{dataset}", "{ipc}", "{method}", "{seed}")  # type: ignore[arg-type]
"""Names in place of values: `Layout` makes Snakemake's patterns of it."""

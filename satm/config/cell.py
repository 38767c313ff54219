"""The name of a synthetic set."""

from typing import Any, NamedTuple


class Cell(NamedTuple):
    """One synthetic set of a campaign; options do not depend on its seed.

    Seeds of random generators derive from the four values in this order.
    """

    dataset: str
    """Name of a dataset."""
    ipc: int
    """Images per class; 0: all real images."""
    method: str
    """Name of a method in the campaign."""
    seed: int = 0
    """Seed of the distillation."""

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Nested folders of its files."""
        return self.dataset, f"ipc-{self.ipc}", self.method, f"seed-{self.seed}"

    @property
    def axes(self) -> dict[str, Any]:
        """The values by name, for columns of result files and flags of commands."""
        return self._asdict()


PATTERN = Cell("{dataset}", "{ipc}", "{method}", "{seed}")  # type: ignore[arg-type]
"""Wildcards in place of values, from which `Layout` builds Snakemake's patterns."""

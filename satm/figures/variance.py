"""Normalised variance of the hypergradient along the distillation."""

from typing import Literal

from satm.config import FIGURES, budgets
from satm.figures.base import AnalysisFigure, Drawn, cell_title
from satm.figures.curves import Line, Panel
from satm.tables.reader import Reader
from satm.tables.render import in_numbers
from satm.tables.statistics import spread

COLUMNS = ["dataset", "ipc", "method", "iteration", "mean", "std", "n"]


@FIGURES.named("variance")
class VarianceFigure(AnalysisFigure):
    """Normalised variance of the hypergradient along the distillation, a line per method."""

    kind: Literal["variance"] = "variance"
    """Variance of the hypergradient along the distillation."""

    def draw(self, reader: Reader) -> Drawn:
        """Draw a line per method, the mean over the seeds in a band of one standard deviation."""
        frames, panels, samples, counts = [], [], set(), set()
        for dataset, ipc in budgets(self.datasets):
            lines = []
            for method, rows in self.measured(reader, dataset, ipc):
                values = spread(rows["variance"], rows["iteration"]).reset_index()
                samples |= set(rows["samples"])
                counts |= set(values["n"])
                frames.append(values.assign(dataset=dataset, ipc=ipc, method=method))
                lines.append(Line(self.label(method), values["iteration"], values["mean"], values["std"]))
            panels.append(Panel(cell_title(dataset, ipc), "iteration", "normalised variance", lines, log_y=True))
        note = (
            f"Variance of the hypergradient over {' or '.join(map(str, sorted(samples)))} single real images, mean "
            f"over its entries, divided by its squared norm; mean over n = {in_numbers(counts, 'seed')}."
        )
        return self.drawn(reader, [panels], note, frames, COLUMNS)

"""Normalised variance of the hypergradient along the distillation."""

from functools import partial

import pandas

from satm.config import VarianceFigure
from satm.figures.base import Drawn, cell_title, counted, register
from satm.figures.curves import Line, Panel, draw_panels
from satm.tables.reader import Reader

COLUMNS = ["dataset", "ipc", "method", "iteration", "mean", "std", "n"]


@register("variance")
def draw(reader: Reader, options: VarianceFigure) -> Drawn:
    """Draw a line per method, the mean over the seeds in a band of one standard deviation."""
    frames, panels, samples, counts = [], [], set(), set()
    for dataset, ipcs in options.datasets.items():
        for ipc in ipcs:
            lines = []
            for method in options.methods:
                found = reader.attempt(partial(reader.analysis, "variance", options.cells_of(dataset, ipc, method)))
                if found is None:
                    continue
                samples |= set(found["samples"])
                grouped = found.groupby("iteration")["variance"].agg(["mean", "std", "count"])
                values = grouped.rename(columns={"count": "n"}).reset_index()
                counts |= set(values["n"])
                frames.append(values.assign(dataset=dataset, ipc=ipc, method=method))
                label = options.labels.get(method, method)
                lines.append(Line(label, values["iteration"], values["mean"], values["std"]))
            panels.append(Panel(cell_title(dataset, ipc), "iteration", "normalised variance", lines, log_y=True))
    note = (
        f"Variance of the hypergradient over {' or '.join(map(str, sorted(samples)))} single real images, mean over "
        f"its entries, divided by its squared norm; mean over {counted(counts, 'seed')}."
    )
    frame = pandas.concat(frames)[COLUMNS] if frames else pandas.DataFrame(columns=COLUMNS)
    return Drawn(draw_panels([panels], options.title, [note, *reader.notes]), frame)

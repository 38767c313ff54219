"""Accuracy against the value of an option, such as rho, beta or the number of concurrent segments."""

import pandas

from satm.config import Cell, SweepFigure
from satm.figures.base import Drawn, cell_title, counted, register
from satm.figures.curves import Level, Line, Panel, draw_panels
from satm.tables.accuracy import load_published
from satm.tables.reader import Reader

COLUMNS = ["dataset", "ipc", "series", "value", "method", "network", "mean", "std", "n"]


@register("sweep")
def draw(reader: Reader, options: SweepFigure) -> Drawn:
    """Draw a line per series, its points the mean over the networks of all seeds with one standard deviation."""
    rows, panels = [], []
    for dataset, ipcs in options.datasets.items():
        for ipc in ipcs:
            lines = []
            for label, values in options.series.items():
                points = []
                for value, named in sorted(values.items()):
                    found = _accuracy(reader, options, dataset, ipc, named)
                    if found is not None:
                        points.append({"value": value, **found})
                rows += [{"dataset": dataset, "ipc": ipc, "series": label, **point} for point in points]
                x, mean, std = ([float(point[key]) for point in points] for key in ("value", "mean", "std"))
                lines.append(Line(label, x, [100 * each for each in mean], [100 * each for each in std], bars=True))
            levels = []
            for method in options.references:
                found = _accuracy(reader, options, dataset, ipc, method)
                if found is not None:
                    rows.append({"dataset": dataset, "ipc": ipc, "series": "reference", **found})
                    levels.append(Level(method, 100 * float(found["mean"])))
            levels += _published(options, dataset, ipc)
            ticks = sorted({value for values in options.series.values() for value in values})
            title, log = cell_title(dataset, ipc), options.logarithmic
            panels.append(Panel(title, options.axis, "test accuracy, percent", lines, levels, log_x=log, ticks=ticks))
    counts = sorted({int(row["n"]) for row in rows})
    note = f"Points: mean over {counted(counts, 'network')}; bars: one standard deviation."
    frame = pandas.DataFrame(rows, columns=COLUMNS)
    return Drawn(draw_panels([panels], options.title, [note, *reader.notes]), frame)


def _accuracy(
    reader: Reader, options: SweepFigure, dataset: str, ipc: int, named: str
) -> dict[str, str | float | int] | None:
    """Return mean, std and n of what a value names; of averaged sets those of the averages."""
    method, network = options.place(named)

    def read() -> list[pandas.DataFrame]:
        return [reader.evaluation(Cell(dataset, ipc, method, seed), network) for seed in options.seeds]

    frames = reader.attempt(read)
    if frames is None:
        return None
    found = []
    for frame in frames:
        average = "ema" if (frame["average"] == "ema").any() else "raw"
        found.append(frame[(frame["split"] == "test") & (frame["average"] == average)])
    accuracy = pandas.concat(found)["accuracy"]
    return {"method": method, "network": network, "mean": accuracy.mean(), "std": accuracy.std(), "n": len(accuracy)}


def _published(options: SweepFigure, dataset: str, ipc: int) -> list[Level]:
    """Return what papers print for the references in this cell, the first number of each."""
    frame = load_published()
    kept = frame["dataset"].eq(dataset) & frame["ipc"].eq(ipc) & frame["metric"].eq("test_accuracy")
    frame = frame[kept & frame["eval_arch"].eq("convnet") & frame["value"].notna()]
    found = []
    for method in options.references:
        values = frame.loc[frame["method"] == method, "value"]
        found += [Level(f"{method}, published", float(values.iloc[0]), True)] if len(values) else []
    return found

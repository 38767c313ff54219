"""Cost of a campaign's jobs: time on devices by rule, and time in the queue beside running time."""

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas

from satm.config import ACCOUNTING, FIGURES, FigureOptions, Layout, Resolver, TableOptions
from satm.errors import UsageError
from satm.figures.base import Drawn, FigureKind
from satm.figures.style import PANEL, SIZES, bar_style, dress, grid_of_panels, legend
from satm.tables.reader import Reader
from satm.workflow.asked import cell_of
from satm.workflow.jobs import campaigns_of

if TYPE_CHECKING:
    from satm.cost.spent import Spent

COLUMNS = ["quantity", "rule", "of", "hours"]
"""quantity: `device`, `queue` or `run`; of: the device or the method, empty if a rule's jobs are counted together."""

LARGEST, LONGEST = 5, 42
"""Most methods with separate colours, and most characters of a name in the legend."""

SMALL = 0.005
"""Rules are grouped if each of their times is below this fraction of the longest rule's."""

OTHERS, SHARED, UNKNOWN, REST = "other methods", "no method of its own", "unknown device", "the rest"

GREYS = {OTHERS: "#cccccc", SHARED: "#777777", UNKNOWN: "#cccccc"}
"""Colours of groups of methods or devices."""

UNITS = {"hours": 1.0, "minutes": 60.0, "seconds": 3600.0}
"""Units of time, and the number of units in an hour."""

ROW, BELOW = 0.2, 0.42
"""Height of a rule's row, and distance from a panel to the legend below it, in inches."""

Parts = Mapping["Spent", Mapping[str, float]]
"""Seconds on devices of each job, by the part that has a separate colour."""


@FIGURES.named("accounting")
class AccountingFigure(FigureKind):
    """Cost of the campaign's jobs: hours on devices by rule, time in the queue and running time."""

    kind: Literal["accounting"] = "accounting"
    """Cost of the jobs."""

    @classmethod
    def standard(cls, tables: Mapping[str, TableOptions]) -> Mapping[str, FigureOptions]:
        """Return the figure `accounting`, which every campaign has."""
        return {ACCOUNTING: cls()}

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the accounting table, which is made after all jobs."""
        return [layout.table(ACCOUNTING)]

    def draw(self, reader: Reader) -> Drawn:
        """Draw time on devices above, by device or, if there is only one, by method; queue and run below."""
        from satm.cost.spent import spent

        resolver = reader.resolver
        if resolver.path is None:
            raise UsageError("accounting needs a campaign; name one with --config")
        jobs = [job for job in spent(campaigns_of(resolver.path), resolver.layout.root) if job.run is not None]
        devices = sorted({device for job in jobs for device in job.devices if device})
        frame = _frame(_by_device(jobs) if len(devices) > 1 else _by_method(resolver, jobs))
        longest = frame.groupby(["quantity", "rule"])["hours"].sum().max()
        unit = next((unit for unit, scale in UNITS.items() if longest * scale >= 1), "seconds")
        rules = list(dict.fromkeys(frame.loc[frame["quantity"] == "run", "rule"]))
        queued = bool((frame["quantity"] == "queue").any())
        notes = [
            f"Devices: {', '.join(devices) or 'none'}. Time on devices: running time of jobs on a GPU; for other jobs, "
            "time of all processors in sum. Unfinished jobs are counted until they were last seen. "
            f"{'Queue: waiting for SLURM.' if queued else 'No job was in the queue of SLURM.'}",
            *reader.notes,
        ]
        scaled = frame.assign(time=frame["hours"] * UNITS[unit])
        stacks = {part: _times(scaled, rules, "device", part) for part in dict.fromkeys(frame["of"]) if part}
        sides = {name: _times(scaled, rules, name) for name in (("run", "queue") if queued else ("run",))}
        height = max(1.0, ROW * len(rules) + 0.2)
        below = height + BELOW + 0.08 * len(stacks) - PANEL[1]
        figure, ((above,), (beneath,)) = grid_of_panels(2, 1, self.title, notes, below=below)
        _finish(above, rules, _bars(above, stacks, stacked=True), f"time on devices, {unit}")
        _finish(beneath, rules, _bars(beneath, sides, stacked=False), f"time{'' if queued else ' of running'}, {unit}")
        for axes in (above, beneath) if queued else (above,):
            legend(axes, BELOW / height)
        return Drawn(figure, frame)


def _by_device(jobs: "Sequence[Spent]") -> Parts:
    return {job: {device or UNKNOWN: seconds for device, seconds in job.devices.items()} for job in jobs}


def _by_method(resolver: Resolver, jobs: "Sequence[Spent]") -> Parts:
    """Return the time of each job by method; if there are many, by registered method, and of these the largest."""
    methods = {each: dict(each.job.names).get("method", "") for each in jobs}
    if len(set(methods.values()) - {""}) > LARGEST:
        for each, method in methods.items():
            methods[each] = resolver.method(cell_of(each.job.wildcards))["method"] if method else ""
    totals: dict[str, float] = defaultdict(float)
    for each, method in methods.items():
        totals[method] += sum(each.devices.values())
    largest = sorted(filter(None, totals), key=lambda method: -totals[method])[:LARGEST]
    names = {method: method if method in largest else OTHERS for method in totals} | {"": SHARED}
    return {each: {names[method]: sum(each.devices.values())} for each, method in methods.items()}


def _frame(parts: Parts) -> pandas.DataFrame:
    """Return the numbers that the figure shows, the largest part first; small rules are grouped at the end."""
    rows = [("device", each.job.rule, part, time) for each, shares in parts.items() for part, time in shares.items()]
    rows += [("run", each.job.rule, "", each.run or 0.0) for each in parts]
    queues = {(each.job.rule, slurm): waited for each in parts for slurm, waited in each.queue.items()}
    rows += [("queue", rule, "", waited) for (rule, _), waited in queues.items()]
    frame = pandas.DataFrame(rows, columns=COLUMNS).astype({"hours": float})
    times = frame.pivot_table("hours", "rule", "quantity", "sum", 0.0)
    small = times.index[(times < SMALL * times.max()).all(axis=1)]
    if len(small) > 1:
        frame["rule"] = frame["rule"].where(~frame["rule"].isin(small), REST)
    totals = frame.groupby("of")["hours"].sum()
    frame = frame.groupby(COLUMNS[:-1], as_index=False)["hours"].sum().assign(hours=lambda sums: sums["hours"] / 3600)
    rules = [*dict.fromkeys(each.job.rule for each in parts), REST]

    def order(row: Any) -> tuple[int, bool, float, str, int]:
        return (
            ("device", "run", "queue").index(row.quantity),
            row.of in GREYS,
            -totals[row.of],
            row.of,
            rules.index(row.rule),
        )

    return pandas.DataFrame(sorted(frame.itertuples(index=False), key=order), columns=COLUMNS)


def _times(frame: pandas.DataFrame, rules: Sequence[str], quantity: str, part: str = "") -> list[float]:
    """Return the time of each rule."""
    own = frame[(frame["quantity"] == quantity) & (frame["of"] == part)].set_index("rule")["time"]
    return [float(own.get(rule, 0.0)) for rule in rules]


def _bars(axes: Any, bars: Mapping[str, list[float]], stacked: bool) -> dict[float, float]:
    """Draw a bar per rule and name, stacked or side by side; return the end of each bar by its position."""
    step = 0.0 if stacked else 0.8 / len(bars)
    ends: dict[float, float] = {}
    for index, (name, times) in enumerate(bars.items()):
        style = bar_style(index)
        style |= {"color": GREYS[name], "hatch": ""} if name in GREYS else {"hatch": 2 * style["hatch"]}
        label = textwrap.shorten(name, LONGEST, placeholder="…")
        places = [place + (index - (len(bars) - 1) / 2) * step for place in range(len(times))]
        left = [ends.get(place, 0.0) for place in places]
        axes.barh(places, times, 0.75 if stacked else step * 0.95, left=left, label=label, linewidth=0.3, **style)
        ends |= {place: before + time for place, before, time in zip(places, left, times, strict=True)}
    return ends


def _finish(axes: Any, rules: Sequence[str], ends: Mapping[float, float], label: str) -> None:
    """Name the rules and write the value of each bar at its end."""
    from satm.cost.spent import number

    dress(axes, "", label, "")
    axes.set_yticks(range(len(rules)), rules, size=SIZES["tick"])
    axes.invert_yaxis()
    if not ends:
        middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "no job has run yet", size=SIZES["label"], **middle)
        return
    most = max(*ends.values(), 1e-9)
    axes.set_xlim(0, 1.15 * most)
    size = SIZES["note"] if len(ends) == len(rules) else SIZES["note"] - 1
    for place, end in ends.items():
        if end:
            text = number(end, 2) if end >= most / 1000 else f"< {number(most / 1000, 1)}"
            axes.annotate(text, (end, place), (2, 0), textcoords="offset points", va="center", size=size)

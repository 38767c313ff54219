"""What the jobs of a campaign have taken: time on devices by rule, and time in the queue beside time of running."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas

from satm.config import ACCOUNTING, FIGURES, FigureOptions, Layout, Resolver, TableOptions
from satm.errors import UsageError
from satm.figures.base import Drawn, FigureKind
from satm.figures.style import COLOURS, HATCHES, PANEL, SIZES, dress, grid_of_panels, legend
from satm.tables.reader import Reader
from satm.workflow.jobs import campaigns_of
from satm.workflow.rules import cell_of

if TYPE_CHECKING:
    from satm.cost.spent import Spent

COLUMNS = ["quantity", "rule", "of", "hours"]
"""quantity: `device`, `queue` or `run`; of: the device or the method, empty where the jobs of a rule count together."""

LARGEST = 5
"""Methods that have a colour of their own, at most."""

SMALL = 0.005
"""Rules of which every time is a smaller part than this of the longest rule's stand together."""

OTHERS, SHARED, UNKNOWN, REST = "other methods", "no method of its own", "unknown device", "the rest"

GREYS = {OTHERS: "#cccccc", SHARED: "#777777", UNKNOWN: "#cccccc"}
"""Colours of what is no single method or device."""

UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))

ROW = 0.2
"""Inches that a rule needs."""

BELOW = 0.42
"""Inches from a panel to the legend below it."""

LONGEST = 42
"""Characters of a name in the legend, at most."""

Parts = Mapping["Spent", Mapping[str, float]]
"""Seconds on devices of each job, by what has a colour of its own."""


@FIGURES.named("accounting")
class AccountingFigure(FigureKind):
    """What the jobs of the campaign have taken: hours on devices by rule, time in the queue and running."""

    kind: Literal["accounting"] = "accounting"
    """What the jobs have taken."""

    @classmethod
    def standard(cls, tables: Mapping[str, TableOptions]) -> Mapping[str, FigureOptions]:
        """Return the one of every campaign."""
        return {ACCOUNTING: cls()}

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the table of the same, which is made when all jobs have run."""
        return [layout.table(ACCOUNTING)]

    def draw(self, reader: Reader) -> Drawn:
        """Draw time on devices above, by device or, where there is only one, by method; queue and run below.

        Raises:
            UsageError: there is no campaign, or it cannot be used as it is.
        """
        from satm.cost.spent import spent

        resolver = reader.resolver
        if resolver.path is None:
            raise UsageError(
                "accounting is of the jobs of a campaign; name one with --config, such as config/demo.yaml"
            )
        found = [one for one in spent(campaigns_of(resolver.path), resolver.layout.root) if one.run is not None]
        devices = sorted({device for one in found for device in one.devices if device})
        frame = _frame(_of_devices(found) if len(devices) > 1 else _of_methods(resolver, found))
        rules = list(dict.fromkeys(frame.loc[frame["quantity"] == "run", "rule"]))
        queued = bool((frame["quantity"] == "queue").any())
        notes = [
            f"Devices: {', '.join(devices) or 'none'}. Time on devices: of GPUs, while a job that computes on one "
            "runs; of all processors in sum, where a job uses none. Unfinished jobs count until they were last seen. "
            f"{'Queue: of SLURM.' if queued else 'No job was in the queue of SLURM.'}",
            *reader.notes,
        ]
        stacks = {part: _hours(frame, rules, "device", part) for part in dict.fromkeys(frame["of"]) if part}
        sides = {name: _hours(frame, rules, name) for name in (("run", "queue") if queued else ("run",))}
        tall = max(1.0, ROW * len(rules) + 0.2)
        below = tall + BELOW + 0.08 * len(stacks) - PANEL[1]
        figure, panels = grid_of_panels(2, 1, self.title, notes, below=below)
        totals = map(sum, zip(*stacks.values(), strict=True))
        unit = _unit(max([*totals, *(hours for some in sides.values() for hours in some)], default=0.0))
        _stacked(panels[0][0], rules, stacks, unit, tall)
        _beside(panels[1][0], rules, sides, unit, tall)
        return Drawn(figure, frame)


def _of_devices(found: "Sequence[Spent]") -> Parts:
    return {one: {device or UNKNOWN: seconds for device, seconds in one.devices.items()} for one in found}


def _of_methods(resolver: Resolver, found: "Sequence[Spent]") -> Parts:
    """Return the method of each job; where there are many, the registered one below it, and of these the largest."""
    methods = {one: dict(one.job.names).get("method", "") for one in found}
    if len(set(methods.values()) - {""}) > LARGEST:
        for one, method in methods.items():
            names = one.job.wildcards
            methods[one] = resolver.method(cell_of(names))["method"] if method else ""
    totals: dict[str, float] = {}
    for one, method in methods.items():
        if method:
            totals[method] = totals.get(method, 0.0) + sum(one.devices.values())
    largest = sorted(totals, key=lambda method: -totals[method])[:LARGEST]
    named = {method: method if method in largest else OTHERS for method in totals} | {"": SHARED}
    return {one: {named[method]: sum(one.devices.values())} for one, method in methods.items()}


def _frame(parts: Parts) -> pandas.DataFrame:
    """Return the numbers that the figure shows; small rules as one, the last, and the largest part first."""
    times: dict[tuple[str, str, str], float] = {}
    queues: dict[tuple[str, tuple[str, str]], float] = {}

    def add(quantity: str, rule: str, part: str, seconds: float) -> None:
        times[quantity, rule, part] = times.get((quantity, rule, part), 0.0) + seconds

    for one, shares in parts.items():
        for part, seconds in shares.items():
            add("device", one.job.rule, part, seconds)
        add("run", one.job.rule, "", one.run or 0.0)
        queues |= {(one.job.rule, slurm): waited for slurm, waited in one.queue.items()}
    for (rule, _), waited in queues.items():
        add("queue", rule, "", waited)

    rules = _with_rest(times)
    totals: dict[str, float] = {}
    joined: dict[tuple[str, str, str], float] = {}
    for (quantity, rule, part), seconds in times.items():
        totals[part] = totals.get(part, 0.0) + seconds
        key = (quantity, part, rules[rule])
        joined[key] = joined.get(key, 0.0) + seconds
    shown = [*dict.fromkeys(name for name in rules.values() if name != REST), REST]

    def order(key: tuple[str, str, str]) -> tuple[int, bool, float, str, int]:
        quantity, part, rule = key
        return ("device", "run", "queue").index(quantity), part in GREYS, -totals[part], part, shown.index(rule)

    rows = [
        [quantity, rule, part, joined[quantity, part, rule] / 3600]
        for quantity, part, rule in sorted(joined, key=order)
    ]
    return pandas.DataFrame(rows, columns=COLUMNS)


def _with_rest(times: Mapping[tuple[str, str, str], float]) -> dict[str, str]:
    """Return what each rule is called: its name, or where it is one of several small ones `REST`."""
    sums: dict[str, dict[str, float]] = {}
    for (quantity, rule, _), seconds in times.items():
        own = sums.setdefault(quantity, {})
        own[rule] = own.get(rule, 0.0) + seconds
    rules = dict.fromkeys(rule for _, rule, _ in times)
    small = [rule for rule in rules if all(own.get(rule, 0.0) < SMALL * max(own.values()) for own in sums.values())]
    return {rule: REST if len(small) > 1 and rule in small else rule for rule in rules}


def _hours(frame: pandas.DataFrame, rules: Sequence[str], quantity: str, part: str = "") -> list[float]:
    own = frame[(frame["quantity"] == quantity) & (frame["of"] == part)].set_index("rule")["hours"]
    return [float(own.get(rule, 0.0)) for rule in rules]


def _unit(most: float) -> tuple[str, float]:
    """Return the unit in which the longest bar has a readable number, and how many of it are an hour."""
    return next(((name, 3600 / seconds) for name, seconds in UNITS if most * 3600 >= seconds), ("seconds", 3600.0))


def _stacked(
    axes: Any, rules: Sequence[str], stacks: Mapping[str, list[float]], unit: tuple[str, float], tall: float
) -> None:
    """Draw a bar per rule, of the parts that it consists of."""
    left = [0.0] * len(rules)
    for index, (name, hours) in enumerate(stacks.items()):
        label = textwrap.shorten(name, LONGEST, placeholder="…")
        look = {"color": GREYS.get(name, COLOURS[index]), "hatch": "" if name in GREYS else 2 * HATCHES[index]}
        values = [unit[1] * each for each in hours]
        axes.barh(range(len(rules)), values, 0.75, left=left, label=label, edgecolor="white", linewidth=0.3, **look)
        left = [before + value for before, value in zip(left, values, strict=True)]
    _finish(axes, rules, dict(zip(range(len(rules)), left, strict=True)), f"time on devices, {unit[0]}")
    legend(axes, BELOW / tall)


def _beside(
    axes: Any, rules: Sequence[str], sides: Mapping[str, list[float]], unit: tuple[str, float], tall: float
) -> None:
    """Draw a bar per rule and side."""
    wide = 0.8 / len(sides)
    ends: dict[float, float] = {}
    for index, (name, hours) in enumerate(sides.items()):
        places = [place + (index - (len(sides) - 1) / 2) * wide for place in range(len(rules))]
        values = [unit[1] * each for each in hours]
        ends |= dict(zip(places, values, strict=True))
        look = {"color": COLOURS[index], "hatch": 2 * HATCHES[index], "edgecolor": "white", "linewidth": 0.3}
        axes.barh(places, values, wide * 0.95, label=name, **look)
    _finish(axes, rules, ends, f"time{'' if len(sides) > 1 else ' of running'}, {unit[0]}")
    if len(sides) > 1:
        legend(axes, BELOW / tall)


def _finish(axes: Any, rules: Sequence[str], ends: Mapping[float, float], label: str) -> None:
    """Name the rules and write what each bar stands for at its end."""
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

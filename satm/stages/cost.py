"""The stage `cost`: what a campaign takes, before it starts."""

import math
from pathlib import Path

from satm.config import root_of
from satm.cost.forecast import Pace, cost, cost_grid
from satm.errors import UsageError
from satm.results.columns import PACE
from satm.results.rows import read_rows
from satm.run.progress import Progress
from satm.version import CHECKOUT
from satm.workflow.jobs import campaigns_of, jobs

PACE_FILE = CHECKOUT / "results" / "reference" / "pace" / "h200.parquet"
"""The measured pace in a checkout."""


def predict_cost(config: Path, pace: Path, start_seconds: float) -> None:
    """Show what all tables and figures of a campaign take on the machine that a pace was measured on.

    Raises:
        UsageError: the campaign or the file of the pace cannot be used, or the seconds are negative.
    """
    if not (start_seconds >= 0 and math.isfinite(start_seconds)):
        raise UsageError(f"start-seconds must be a number from 0, got {start_seconds:g}")
    campaigns, root = campaigns_of(config), root_of(config)
    resolver = campaigns.of(root)
    rows = read_rows(pace, PACE)
    if rows.empty:
        raise UsageError(f"{pace} has no measurements; make it with `python -m satm bench pace --config {config}`")
    measured = Pace(rows)
    # A processor is just `cpu`; any other name is that of a GPU.
    forecast = cost(resolver, jobs(campaigns, root), measured, at_once=measured.device != "cpu")
    grid, console = cost_grid(f"{config}: what it takes", forecast, measured, start_seconds), Progress.console()
    grid.show(console)
    for note in grid.notes:
        console.print(note)

"""Every job of a campaign, without Snakemake. Nothing here imports torch."""

from pathlib import Path

from satm.workflow.campaigns import Campaigns
from satm.workflow.graph import Graph, Job


def jobs(campaigns: Campaigns, root: str) -> list[Job]:
    """Return every job of all tables and figures of the campaign below `root`, sorted; their files need not exist.

    Raises:
        UsageError: the campaign is unusable.
    """
    return sorted(Graph(campaigns).behind(campaigns.targets(root)))


def campaigns_of(path: Path) -> Campaigns:
    """Return a campaign without those of a checkout, which need not be there."""
    return Campaigns(None, [path])

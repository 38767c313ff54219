"""What a Snakemake that was killed left behind, for the next one. Nothing here imports torch.

Its jobs go on, or wait in the queue, and what they have finished it did not see. Snakemake makes all of that again, and
the first thing that it does to a job is to delete what is there. Jobs therefore keep second names of their results
(`satm.run.lock.KEPT`) and put them back when they are made again, until the workflow has succeeded. Experts are kept
one by one; images, tables and pictures take little. Jobs that only wait are taken out of the queue.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from satm.config import Layout, place_of
from satm.run.lock import KEPT
from satm.workflow.rules import RULES
from satm.workflow.slurm import cancel_waiting


def follow_up(workflow: Any) -> None:
    """Take jobs of an earlier Snakemake that only wait out of the queue, for `onstart`.

    Where the user forces jobs, what was kept of them is dropped, so that they are made again.

    Args:
        workflow: Snakemake's object of that name.
    """
    settings = workflow.dag_settings
    jobs = list(workflow.dag.needrun_jobs())
    if settings.forceall or settings.forcetargets or settings.forcerun:
        _forget(jobs)
    if waiting := {number for job in jobs for number in workflow.persistence.external_jobids(job)}:
        cancel_waiting(waiting)


def forget_results(workflow: Any) -> None:
    """Remove what was kept, for `onsuccess`."""
    _forget(workflow.dag.jobs)


def _forget(jobs: Iterable[Any]) -> None:
    for job in jobs:
        if (rule := RULES.get(job.rule.name)) and rule.keeps and not rule.gathers:
            names = job.wildcards_dict
            folder = Path(Layout(names["root"]).state(*place_of(job.rule.name, **names), KEPT))
            shutil.rmtree(folder, ignore_errors=True)
            _remove_empty(folder.parents)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # something is in it
            return

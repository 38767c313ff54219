"""Recovery from a killed Snakemake. Nothing here imports torch.

Its jobs continue, or wait in the queue, but nobody records their results. The next Snakemake runs them again, and first
deletes their outputs. Jobs therefore keep hard links to their results (`satm.run.lock.KEPT`) until the workflow has
succeeded, and restore them when run again. Experts are kept one by one; images, tables and figures are quickly made.
Jobs that only wait are cancelled.
"""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from satm.config import Layout, place_of
from satm.run.lock import KEPT
from satm.workflow.rules import RULES
from satm.workflow.slurm import cancel_waiting


def follow_up(workflow: Any) -> None:
    """Cancel waiting jobs of an earlier Snakemake, for `onstart`; drop the kept results of jobs that the user forces.

    `workflow` is Snakemake's object of that name.
    """
    settings = workflow.dag_settings
    jobs = list(workflow.dag.needrun_jobs())
    if settings.forceall or settings.forcetargets or settings.forcerun:
        _forget(jobs)
    if waiting := {number for job in jobs for number in workflow.persistence.external_jobids(job)}:
        cancel_waiting(waiting)


def forget_results(workflow: Any) -> None:
    """Remove the kept results, for `onsuccess`."""
    _forget(workflow.dag.jobs)


def _forget(jobs: Iterable[Any]) -> None:
    for job in jobs:
        if (rule := RULES.get(job.rule.name)) and rule.keeps and not rule.gathers:
            names = job.wildcards_dict
            folder = Path(Layout(names["root"]).state(*place_of(job.rule.name, **names), KEPT))
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # a folder that is not empty
                for parent in folder.parents:
                    parent.rmdir()

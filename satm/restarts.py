"""What a Snakemake that was killed left behind, for the next one. Nothing here imports torch.

Its jobs go on, or wait in the queue, and what they have finished it did not see. Snakemake makes all of that again, and
the first thing that it does to a job is to delete what is there. So before it begins, jobs that only wait are taken out
of the queue, and what is finished is linked into the folder in which its job is resumed (`satm.lock.FINISHED`), as is
what a job that still runs finishes later. There the job that should make it finds it, and if it is of the same run,
puts it back.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from satm.config import Layout
from satm.lock import FINISHED, link
from satm.plan import Job, place
from satm.slurm import cancel_waiting

KEPT = (
    *("distill", "evaluate", "variants", "full", "continual", "nas", "nas_real"),
    *("difficulty", "analysis", "expert_sharpness"),
)
"""Rules whose jobs have their results in one go and know them again. Experts are kept one by one as it is; data, tables
and pictures take little."""


def keep_results(workflow: Any) -> None:
    """Keep what jobs of an earlier Snakemake have finished or will finish, for `onstart`.

    Where the user forces jobs, they are made again.

    Args:
        workflow: Snakemake's object of that name.
    """
    settings = workflow.dag_settings
    forced = settings.forceall or settings.forcetargets or settings.forcerun
    waiting = set()
    for job in workflow.dag.needrun_jobs():
        submitted = workflow.persistence.external_jobids(job)
        waiting.update(submitted)
        if forced or job.rule.name not in KEPT:
            continue
        results, folder = [Path(each) for each in job.output], _finished(job)
        # Snakemake forces what is there and was begun by a Snakemake that did not see it end.
        unseen = workflow.dag.forcefiles.issuperset(job.output) and all(each.is_file() for each in results)
        if unseen or submitted:
            folder.mkdir(parents=True, exist_ok=True)
        for each in results if unseen else ():
            link(each, folder / each.name)
    if waiting:
        cancel_waiting(waiting)


def forget_results(workflow: Any) -> None:
    """Remove what was kept, for `onsuccess`."""
    for job in workflow.dag.jobs:
        if job.rule.name in KEPT:
            shutil.rmtree(folder := _finished(job), ignore_errors=True)
            _remove_empty(folder.parents)


def _finished(job: Any) -> Path:
    """Return the folder in which a job's results are kept."""
    names = job.wildcards_dict
    return Path(Layout(names["root"]).state(*place(Job(job.rule.name, tuple(names.items()))), FINISHED))


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # something is in it
            return

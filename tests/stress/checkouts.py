"""Copies of what a fresh clone holds of the workflow, for tests that run Snakemake."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def make_checkout(folder: Path) -> Path:
    """Copy everything that a run needs into a folder; the names of the cluster of this checkout stay behind."""
    folder.mkdir(exist_ok=True)
    for name in ("Snakefile", "workflow", "config", "satm", "slurm", "local"):
        source = ROOT / name
        if source.is_symlink():
            (folder / name).symlink_to(source.readlink())
        elif source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "site.yaml"))
        else:
            shutil.copy(source, folder / name)
    return folder

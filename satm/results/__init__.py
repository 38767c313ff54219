"""What runs leave behind: tidy rows as parquet with the run's circumstances, and synthetic sets as safetensors."""

from satm.results.circumstances import run_metadata
from satm.results.columns import (
    BOUNDS,
    CONTINUAL,
    EVALUATION,
    EXPERT_SHARPNESS,
    METRICS,
    NAS,
    PACE,
    SHARPNESS,
    TRAJECTORY,
    VARIANCE,
    Columns,
)
from satm.results.distilled import DistilledDataset, History, load_distilled, save_distilled
from satm.results.rows import METADATA_KEY, read_rows, read_rows_metadata, read_run, write_rows

__all__ = [
    "BOUNDS",
    "CONTINUAL",
    "EVALUATION",
    "EXPERT_SHARPNESS",
    "METADATA_KEY",
    "METRICS",
    "NAS",
    "PACE",
    "SHARPNESS",
    "TRAJECTORY",
    "VARIANCE",
    "Columns",
    "DistilledDataset",
    "History",
    "load_distilled",
    "read_rows",
    "read_rows_metadata",
    "read_run",
    "run_metadata",
    "save_distilled",
    "write_rows",
]

"""The circumstances of a run, stored with its results."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from satm.run import record
from satm.run.machine import device_name
from satm.version import CHECKOUT, __version__


def run_metadata(options: Mapping[str, Any], device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return options, commit, versions, device, host and time (UTC) of a run, and its cost if that is recorded.

    `options` are resolved, as JSON values; the cost is that of each attempt so far (`satm.run.record`).
    """
    attempts = record.attempts()
    return {
        "options": dict(options),
        "commit": commit_of(CHECKOUT),
        "versions": {"satm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": device_name(torch.device(device)),
        "host": platform.node(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **({} if attempts is None else {"accounting": attempts}),
    }


def commit_of(root: Path) -> str | None:
    """Return a checkout's commit, with `-dirty` when tracked files differ from it; None for any other folder."""
    # An installed package may lie inside the checkout of another project, whose commit would mislead.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

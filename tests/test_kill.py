"""A few random kills of each kind of stage; `python tests/stress/kill.py` makes many."""

import subprocess
import sys
from pathlib import Path


def test_killed_runs_end_at_the_same_bytes() -> None:
    script = Path(__file__).parent / "stress" / "kill.py"
    command = [sys.executable, str(script), "--kills", "3", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every run ended at the bytes of the undisturbed one" in done.stdout

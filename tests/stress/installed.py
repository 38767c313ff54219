"""Run the tests against an installed package, from an empty folder: `python tests/stress/installed.py`.

A wheel of this checkout is built and unpacked, and the tests import `satm` from there. Nothing may be left in the empty
folder. Arguments are those of pytest. Tests of the workflow run Snakemake in copies of the checkout, which it needs.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def install(folder: Path) -> Path:
    """Build a wheel in a folder and return where it is unpacked, as on an installation's import path."""
    command = [sys.executable, "-P", "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "installed")
    return folder / "installed"


def environment(installed: Path) -> dict[str, str]:
    """Return the variables under which Python, called with `-P`, imports that `satm` and not the one of a checkout."""
    rest = [
        each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each and not Path(each, "satm").exists()
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *rest])}


def start() -> int:
    """Run pytest on the unpacked wheel."""
    with tempfile.TemporaryDirectory() as folder:
        here, empty = install(Path(folder)), Path(folder, "empty")
        empty.mkdir()
        command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
        arguments = sys.argv[1:] or [str(ROOT / "tests")]
        code = subprocess.run([*command, *arguments], cwd=empty, env=environment(here), check=False).returncode
        if left := sorted(path.name for path in empty.iterdir()):
            print(f"the tests left in the current folder: {', '.join(left)}")
            return 1
        return code


if __name__ == "__main__":
    sys.exit(start())

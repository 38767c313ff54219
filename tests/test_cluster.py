"""The workflow on a real SLURM cluster, started for these tests: `python -m pytest -m cluster`."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import cluster
import pytest

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    if why := cluster.lacking():
        pytest.skip(why)
    try:
        cluster.start()
        yield
    finally:
        cluster.stop()


def test_jobs_get_gpus_of_their_own(tmp_path: Path) -> None:
    for index in range(4):
        command = ["sbatch", "--gpus=1", f"--output={tmp_path}/{index}"]
        told = 'echo "$SLURM_JOB_NODELIST gpu $CUDA_VISIBLE_DEVICES"; sleep 2'
        subprocess.run([*command, f"--wrap={told}"], check=True, capture_output=True)
    until = time.monotonic() + 60
    while subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout:
        assert time.monotonic() < until, "the jobs do not end"
        time.sleep(0.2)
    found = sorted((tmp_path / str(index)).read_text().strip() for index in range(4))
    assert found == ["node1 gpu 0", "node1 gpu 1", "node2 gpu 0", "node2 gpu 1"]

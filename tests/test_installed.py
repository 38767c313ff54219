"""The package without its checkout: what a wheel holds, and every command from an empty folder."""

import subprocess
import sys
from pathlib import Path

import pytest
from installed import ROOT, environment, install

pytest.importorskip("hatchling", reason="builds the wheel")

CAMPAIGN = """
networks:
  small: {network: convnet, depth: 1, width: 4}
experts:
  sgd: {count: 1, epochs: 2, lr: 0.05, batch_size: 256}
settings:
  - {stage: network, network: convnet, options: {depth: 1, width: 4}}
  - {stage: evaluate, options: {repeats: 2, epochs: 2, decay_epoch: 1}}
  - method: [mtt, satm]
    options: {iterations: 2, inner_steps: 2, expert_epochs: 1, max_start_epoch: 1, lr_images: 1, step_size: 0.05}
tables:
  table2: {datasets: {digits: [1]}, methods: [random, mtt]}
  two: {kind: continual, datasets: {digits: [1]}, methods: [mtt], steps: 2, orders: 1, repeats: 1}
  found: {kind: search, datasets: {digits: [1]}, methods: [mtt], sample: 2, proxy: {epochs: 1}, real: {epochs: 1}}
"""

CELL = "--config mine.yaml --dataset digits --ipc 1 --method mtt"

COMMANDS = f"""
cost --config mine.yaml
explain table2 --config mine.yaml
bench pace --config mine.yaml --out pace.parquet --seconds 0.1 --device cpu
data --config mine.yaml --dataset digits
experts --config mine.yaml --dataset digits
distill {CELL}
evaluate {CELL}
evaluate {CELL} --network small
analyse {CELL} --what sharpness
analyse {CELL} --what trajectory
continual {CELL} --protocol two --epochs 1
nas {CELL} --search found
table --config mine.yaml --name table2 --partial
table --config mine.yaml --name overview
table --config mine.yaml --name accounting
figure --config mine.yaml --name accounting
figure --config mine.yaml --name synthetic-digits-ipc-1 --partial
"""

EVERY_COMMAND = """
import shlex, sys
from pathlib import Path
import satm
from satm.cli import main
assert Path(satm.__file__).is_relative_to(sys.argv[1]), satm.__file__
for line in sys.argv[2].strip().splitlines():
    print("$", line, flush=True)
    assert main(shlex.split(line)) == 0, line
for name in satm.__all__:
    getattr(satm, name)
found = satm.load_distilled("results/mine/distilled/digits/ipc-1/mtt/seed-0/distilled.safetensors")
assert found.pixels().shape == (10, 1, 8, 8)
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


def python(installed: Path, *arguments: str) -> str:
    """Run Python on the installed package; it must end well."""
    variables = {**environment(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_wheel_holds_what_the_commands_read(installed: Path) -> None:
    package = installed / "satm"
    files = {
        path.relative_to(ROOT / "satm")
        for path in (ROOT / "satm").rglob("*")
        if path.suffix in (".py", ".csv", ".typed")
    }
    assert {path for path in files if not (package / path).exists()} == set()
    presets = {path.name for path in (ROOT / "config/presets").iterdir()}
    assert {path.name for path in (package / "presets").iterdir()} == presets
    assert (package / "paper.yaml").is_file() and (package / "pace/h200.parquet").is_file()


def test_every_command_runs_in_an_empty_folder(installed: Path, empty: Path) -> None:
    (empty / "mine.yaml").write_text(CAMPAIGN)
    told = python(installed, "-c", EVERY_COMMAND, str(installed), COMMANDS)
    assert "NVIDIA H200" in told and "check the disk" not in told
    assert {path.name for path in empty.iterdir()} == {"mine.yaml", "pace.parquet", "results"}


def test_the_schema_is_written_where_there_is_no_checkout(installed: Path, empty: Path) -> None:
    assert python(installed, "-m", "satm.workflow.schema").strip() == "campaign.schema.json"
    assert python(installed, "-m", "satm.workflow.schema", "new/there.json").strip() == "new/there.json"
    assert (empty / "campaign.schema.json").read_text() == (empty / "new/there.json").read_text()
    assert {path.name for path in installed.iterdir()} == {
        "satm",
        *(path.name for path in installed.glob("*.dist-info")),
    }

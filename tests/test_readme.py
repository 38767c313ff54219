"""The commands of the README, run as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from satm.config import Campaign, Cell, Resolver, load_campaign
from satm.methods import METHODS, resolve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), ROOT / "results/reference/README.md"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(program: str) -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(program)]


@pytest.fixture(scope="session")
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages by hand, in a folder of their own, exactly as written."""
    folder = tmp_path_factory.mktemp("quick-start")
    found = commands("python -m satm")
    assert [shlex.split(line)[3] for line in found] == ["data", "experts", *("distill", "evaluate") * 2]
    for line in found:
        program = [sys.executable, *shlex.split(line)[1:]]
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads of several tests at once would wait for each other
        done = subprocess.run(program, cwd=folder, env=alone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder


def test_quick_start_beats_chance(quick_start: Path) -> None:
    log = (quick_start / "results/hand/default/logs/evaluate/digits/ipc-1/mtt/seed-0/convnet.log").read_text()
    found = re.search(r"mean test accuracy of 5 networks ([\d.]+)", log)
    assert found and float(found[1]) > 0.5


def test_python_examples_run(quick_start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quick_start)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)
    assert tuple(names["image"].shape) == (1, 8, 8)
    assert tuple(names["gradient"].images.shape) == (6, 4)


@pytest.mark.parametrize("line", commands("make"))
def test_make_targets_exist(line: str) -> None:
    done = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.workflow
@pytest.mark.parametrize("line", [line for line in commands("snakemake") if " -n " not in line])
def test_snakemake_plans_what_the_readme_asks_for(line: str) -> None:
    program = [sys.executable, "-m", *shlex.split(line), "-n", "--quiet"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"`((?:satm|config|workflow)/[\w./-]*)`", README)) | set(
        re.findall(r"\]\(([\w./]+)\)", README)
    )
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^()\s]+)\)", page.read_text()) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_the_page_of_methods_names_every_one() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    assert [name for name in METHODS if f"`{name}`" not in page] == []


def test_the_variants_on_the_page_of_methods_can_be_used() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    examples = YAML(typ="safe", pure=True).load(re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)[0])
    resolver = Resolver(Campaign.model_validate(examples), load_campaign(None).settings, "results")
    assert len(examples["methods"]) > 4
    for name in examples["methods"]:
        resolve(resolver.method(Cell("cifar10", 10, name)))

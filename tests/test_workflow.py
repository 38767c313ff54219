"""The workflow: what is planned, what a change repeats, and one whole run, each with the real Snakemake."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkouts import make_checkout
from hypothesis import given
from hypothesis import strategies as st

from satm import config
from satm.cli import main
from satm.errors import UsageError
from satm.results.exhibits import page_metadata
from satm.workflow import asked, rules
from satm.workflow.campaigns import Campaigns
from satm.workflow.provenance import Provenance

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).parent.parent
TINY = """
datasets:
  digits: {source: digits, augment: crop_scale_rotate}
experts:
  sgd: {count: 2, epochs: 2, per_job: 1}
settings:
  - method: [mtt, satm]
    options: {iterations: 2, inner_steps: 4, expert_epochs: 1, max_start_epoch: 2}
  - stage: evaluate
    options: {repeats: 1, epochs: 2, decay_epoch: 2}
methods:
  mtt-long: {method: mtt, inner_steps: 5}
tables:
  table2:
    datasets: {digits: [1]}
    methods: [random, mtt, mtt-long]
"""


def snakemake(folder: Path, *arguments: str, programs: str = "") -> subprocess.CompletedProcess[str]:
    """Run Snakemake as a user does who has not activated its environment; `programs`: a folder of other commands."""
    environment = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin", "XDG_CACHE_HOME": str(folder / ".cache")}
    command = [sys.executable, "-m", "snakemake", *arguments]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, cwd=folder, env=environment, timeout=300, **both)


def planned(folder: Path, *arguments: str) -> list[tuple[str, dict[str, str]]]:
    """Return (rule, wildcards) of every job that would run."""
    done = snakemake(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout
    jobs = []
    for block in re.split(r"\n(?=(?:local)?rule \w+:)", done.stdout)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", block)
        wildcards = re.search(r"^    wildcards: (.*)$", block, re.MULTILINE)
        assert rule is not None
        pairs = wildcards.group(1).split(", ") if wildcards else []
        jobs.append((rule.group(1), dict(pair.split("=", 1) for pair in pairs)))
    return jobs


def counts(folder: Path, *arguments: str) -> dict[str, int]:
    return dict(Counter(rule for rule, _ in planned(folder, *arguments)))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which nothing was made; tests do not change it."""
    return make_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the campaign `tiny` was made, without Snakemake; tests restore its file."""
    folder = make_checkout(tmp_path_factory.mktemp("finished"))
    (folder / "config" / "tiny.yaml").write_text(TINY)
    given = ["--config", "config/tiny.yaml", "--dataset", "digits"]
    cells = [[*given, "--ipc", "1", "--method", method] for method in ("random", "mtt", "mtt-long")]
    sets = [[stage, *cell] for stage in ("distill", "evaluate") for cell in cells]
    with contextlib.chdir(folder):
        for stage in (["data", *given], ["experts", *given], *sets, ["table", *given[:2], "--name", "table2"]):
            assert main(stage) == 0, stage
    done = snakemake(folder, "--profile", "local", "--touch", "--forceall", "results/tiny/table2.csv")
    assert done.returncode == 0, done.stdout
    return folder


def replanned(folder: Path, old: str, new: str) -> list[tuple[str, dict[str, str]]]:
    """Return the jobs that an edit of the campaign `tiny` schedules."""
    assert old in TINY
    path = folder / "config" / "tiny.yaml"
    path.write_text(TINY.replace(old, new))
    try:
        return planned(folder, "--profile", "local", "results/tiny/table2.csv")
    finally:
        path.write_text(TINY)


def test_the_table_of_jobs_alone_states_paths() -> None:
    """Each rule takes its files from its own entry, and no Snakefile or module beside the layout writes a path."""
    texts = {path: path.read_text() for path in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]}
    found: dict[str, str] = {}
    for path, text in texts.items():
        assert not re.search(r"layout|results/|\.(parquet|safetensors|json|csv|png)\b", text), path
        for block in re.split(r"\n(?=rule )", text):
            if (rule := re.match(r"rule (\w+):", block)) and "shell:" in block:
                found[rule[1]] = block
    assert set(found) == set(rules.RULES) == set(config.PLACES) - {"data"}
    for rule, block in found.items():
        for directive in ("input", "output", "log", "benchmark", "params"):
            held = re.search(rf"\n    {directive}:\n((?: {{8}}.*\n)+)", block)
            assert held is not None or (directive == "input" and not rules.RULES[rule].inputs)
            assert held is None or set(re.findall(r"jobs\.(\w+)", held[1])) == {rule}, (rule, directive)
        for name in re.findall(r'outputs\["(\w+)"\]', block):
            assert name in rules.RULES[rule].outputs
    folders = r"""["'/](data|distilled|evaluation|variants|continual|nas|analysis|logs|benchmarks|state|figures)/\{"""
    modules = [path for path in (ROOT / "satm").rglob("*.py") if path.name != "layout.py"]
    assert not [path for path in modules if re.search(folders, path.read_text())]


def test_lint(checkout: Path) -> None:
    done = snakemake(checkout, "--lint")
    assert done.returncode == 0, done.stdout


def test_format() -> None:
    pytest.importorskip("snakefmt", reason="snakefmt comes with the extra `dev`")
    command = [sys.executable, "-m", "snakefmt", "--check", "Snakefile", "workflow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_fresh_clone_plans_every_cell_of_the_papers_table_2_on_slurm(checkout: Path) -> None:
    jobs = planned(checkout, "--profile", "slurm", "results/table2.csv")
    cells = {"cifar10": (1, 3, 10, 50), "cifar100": (1, 3, 10, 50), "tiny-imagenet": (1, 3, 10)}
    expected = {
        (dataset, str(ipc), method)
        for dataset, ipcs in cells.items()
        for ipc in ipcs
        for method in ("random", "mtt", "satm")
    }
    plain = {("cifar10", "50", "mtt"), ("cifar100", "10", "mtt")} | {
        ("tiny-imagenet", ipc, "mtt") for ipc in ("1", "10")
    }
    expected = expected - plain | {(f"{dataset}-plain", ipc, method) for dataset, ipc, method in plain}
    for stage in ("distill", "evaluate"):
        found = [(wild["dataset"], wild["ipc"], wild["method"]) for rule, wild in jobs if rule == stage]
        assert len(found) == len(expected) == 33
        assert set(found) == expected
    rest = Counter(rule for rule, _ in jobs if rule not in ("distill", "evaluate"))
    assert rest == {"images": 6, "zca": 3, "experts_part": 60, "experts": 6, "table": 1}
    assert all(wild["root"] == "results" for _, wild in jobs)


SET = "results/demo/evaluation/digits/ipc-1/mtt/seed-0/convnet.parquet"
SITE = """
gpu_partition: max
cpu_partition: all
account: 12345
constraint: a100|h100
resources: {distill: {runtime: 90}}
"""


def held(folder: Path) -> dict[str, str]:
    """Return the resources of the jobs of a synthetic set and its evaluation on SLURM, by rule."""
    done = snakemake(folder, "--dry-run", "--profile", "slurm", SET)
    return dict(re.findall(r"^rule (\w+):.*?^    resources: (.*?)$", done.stdout, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_the_workflow_is_read_without_torch_and_matplotlib(
    checkout: Path, tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} is imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = snakemake(checkout, "--dry-run", "--profile", profile, SET, "results/demo/figures/all")
    assert done.returncode == 0, done.stdout


def test_the_profile_gives_a_gpu_to_the_stages_that_train(checkout: Path) -> None:
    found = held(checkout)
    assert {rule for rule, text in found.items() if "gpu=1" in text} == {"experts_part", "distill", "evaluate"}
    assert all("gpu=0" in found[rule] for rule in ("images", "experts"))
    assert not any(re.search("partition|account|qos|constraint", text) for text in found.values())


def test_the_profile_reads_the_settings_of_a_cluster(tmp_path: Path) -> None:
    folder = make_checkout(tmp_path)
    (folder / "slurm" / "site.yaml").write_text(SITE)
    found = held(folder)
    assert all("slurm_account=12345" in text for text in found.values())
    assert "slurm_partition=all" in found["images"] and "constraint" not in found["images"]
    distill = set(found["distill"].split(", "))
    assert {"slurm_partition=max", "constraint=a100|h100", "runtime=90", "mem_mb=32000", "gpu=1"} <= distill


def test_a_mistake_in_the_settings_of_a_cluster_is_one_line(tmp_path: Path) -> None:
    folder = make_checkout(tmp_path)
    (folder / "slurm" / "site.yaml").write_text("gpu_partitions: gpu")
    done = snakemake(folder, "--profile", "slurm", SET)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and lines[1].startswith("satm: error: slurm/site.yaml: unknown option 'gpu_partitions'")


def test_an_old_plugin_is_reported_before_the_usage_message(tmp_path: Path) -> None:
    """What pip says of another version lies first on the path."""
    folder = make_checkout(tmp_path)
    about = folder / "snakemake_executor_plugin_slurm-2.0.0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: snakemake-executor-plugin-slurm\nVersion: 2.0.0\n")
    done = snakemake(folder, "--dry-run", "--profile", "slurm", SET)
    assert done.returncode == 2
    assert "snakemake-executor-plugin-slurm >=2.8,<2.9, got 2.0.0; install it with" in done.stdout.splitlines()[1]


def play(folder: Path, refusal: str) -> Path:
    """Write commands of SLURM that note how they were called; sbatch ends as told."""
    folder.mkdir()
    for name, answer in {
        "sinfo": "",
        "squeue": "",
        "scontrol": "",
        "sacctmgr": "echo 12345",
        "sbatch": refusal,
    }.items():
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/asked\n{answer}\n')
        (folder / name).chmod(0o755)
    return folder


def submitted(programs: Path) -> list[str]:
    return [call for call in (programs / "asked").read_text().splitlines() if call.startswith("sbatch ")]


def test_jobs_that_slurm_refuses_are_reported_before_submission(tmp_path: Path) -> None:
    folder = make_checkout(tmp_path / "checkout")
    programs = play(tmp_path / "bin", "echo 'allocation failure: Invalid qos specification' >&2; exit 1")
    done = snakemake(folder, "--profile", "slurm", SET, programs=str(programs))
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if "(Invalid" in line)
    assert line.startswith("SLURM refuses jobs of ") and "(Invalid qos specification): --time=" in line
    assert line.endswith("; change that in slurm/site.yaml")
    assert "Traceback" not in done.stdout
    assert len(submitted(programs)) == 1 and "--test-only" in submitted(programs)[0]
    assert not (folder / "results").exists()


def test_a_job_is_submitted_with_what_its_rule_and_the_cluster_say_and_again_with_more_memory(tmp_path: Path) -> None:
    folder = make_checkout(tmp_path / "checkout")
    (folder / "slurm" / "site.yaml").write_text(SITE)
    programs = play(tmp_path / "bin", 'case "$*" in *--test-only*) ;; *) exit 1 ;; esac')
    images = "results/demo/data/digits/images.safetensors"
    quick = ["--max-jobs-per-timespan", "9/1s", "--slurm-init-seconds-before-status-checks", "1"]
    quick += ["--slurm-exclude-failed-nodes", "n7"]
    done = snakemake(folder, "--profile", "slurm", *quick, "--", images, programs=str(programs))
    assert done.returncode == 1, done.stdout
    first, *calls = submitted(programs)
    assert (
        first
        == "sbatch --test-only --partition=all --account=12345 --time=120 --mem=8000 --cpus-per-task=1 --wrap=true"
    )
    assert [re.findall(r"--mem (\d+)", call) for call in calls] == [["8000"], ["16000"]]
    for call in calls:
        expected = (" -A 12345 ", " -p all ", " -t 120 ", " --requeue ", " --exclude=n7 ")
        assert all(part in call for part in expected), call
        assert "--gpus" not in call


def test_a_path_decides_the_campaign(checkout: Path) -> None:
    found = counts(checkout, "--profile", "local", "results/demo/table2.csv")
    assert found == {
        "images": 1,
        "experts_part": 2,
        "experts": 1,
        "distill": 27,
        "evaluate": 27,
        "analysis": 18,
        "table": 1,
    }


def test_the_picture_in_the_readme_is_of_these_rules(checkout: Path) -> None:
    done = snakemake(checkout, "results/tables/all", "results/figures/all", "--rulegraph", "dot")
    names = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)"', done.stdout, re.MULTILINE))
    edges = {(names[one], names[two]) for one, two in re.findall(r"^\s*(\d+) -> (\d+)", done.stdout, re.MULTILINE)}
    drawn = (ROOT / "docs" / "workflow.svg").read_text()
    shown = dict(re.findall(r"<title>(\d+)</title>.*?<text[^>]*>(\w+)</text>", drawn, re.DOTALL))
    arrows = {(shown[one], shown[two]) for one, two in re.findall(r"<title>(\d+)&#45;&gt;(\d+)</title>", drawn)}
    assert len(edges) > 30 and arrows == edges, "draw it again with: make picture"


def test_random_waits_for_no_experts(checkout: Path) -> None:
    target = "results/demo/distilled/digits/ipc-1/random/seed-0/distilled.safetensors"
    assert counts(checkout, target) == {"images": 1, "distill": 1}


def test_without_a_target_all_tables_and_figures_of_the_paper_are_made(checkout: Path) -> None:
    jobs = planned(checkout)
    paper = config.load_campaign(ROOT / "config" / "paper.yaml")
    made = {rule: Counter(wild[rule] for name, wild in jobs if name == rule) for rule in ("table", "figure")}
    assert made == {"table": Counter(list(paper.campaign.tables)), "figure": Counter(list(paper.figures))}
    assert {wild["root"] for rule, wild in jobs if rule != "all"} == {"results"}
    assert len(made["table"]) == 35 and {"figure2", "contra-figure1", "figure2-cifar10"} <= set(made["figure"])


def test_a_configfile_is_the_default_and_a_broken_one_breaks_only_itself(tmp_path: Path) -> None:
    folder = make_checkout(tmp_path)
    (folder / "config" / "broken.yaml").write_text("tables: {table2: {")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "mine.yaml").write_text(TINY)
    found = planned(folder, "--configfile", "elsewhere/mine.yaml")
    assert {wild["root"] for rule, wild in found if rule != "all"} == {"results/mine"}
    assert Counter(rule for rule, _ in found)["evaluate"] == 3
    done = snakemake(folder, "--dry-run", "results/broken/table2.csv")
    assert done.returncode == 1
    assert "config/broken.yaml is not usable YAML" in done.stdout


def placeholders() -> set[str]:
    """Return what stands in braces in the commands of all rules."""
    texts = [path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk")]
    commands = [block for text in texts for block in re.findall(r"shell:\n((?: +[\"'].*\n)+)", text)]
    assert len(commands) == sum(text.count("shell:") for text in texts) > 15
    return {name for command in commands for name in re.findall(r"\{([^{}]+)\}", command)}


@given(st.data())
def test_every_value_in_a_command_is_quoted_or_needs_no_quotes(data: st.DataObject) -> None:
    constraints = Campaigns(ROOT).constraints()
    for name in placeholders() - {"threads", "params.partial"}:
        if name == "log":  # made of the root and of names
            name = "wildcards.root"
        if not name.endswith(":q"):
            kind, _, wildcard = name.partition(".")
            assert kind == "wildcards", f"{{{name}}} may hold anything; write {{{name}:q}}"
            value = data.draw(st.from_regex(constraints[wildcard], fullmatch=True))
            assert shlex.quote(value) == value and "/.." not in f"/{value}"
    params = [Campaigns(ROOT, partial=partial).rules().table.params["partial"] for partial in (True, False)]
    assert params == ["--partial", ""]


def test_a_campaign_in_a_folder_with_an_odd_name(checkout: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it's a; {folder} $HOME"
    folder.mkdir()
    path = folder / "mine.yaml"
    path.write_text(TINY)
    done = snakemake(checkout, "--dry-run", "--printshellcmds", "--configfile", str(path))
    assert done.returncode == 0, done.stdout
    commands = re.findall(r"Shell command: .*?(python -m satm .*)", done.stdout)
    assert len(commands) > 8
    for command in commands:
        assert shlex.split(command)[5] == str(path), command


PAGE, SHOWN = (
    Path("results/tiny/table2.html"),
    Path("results/tiny/distilled/digits/ipc-1/mtt/seed-0/distilled.safetensors"),
)


def rename_methods() -> None:
    Path("tiny.yaml").write_text(TINY.replace("methods: [random, mtt, mtt-long]", "methods: [random, mtt]"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda: None, ""),
        (SHOWN.unlink, f"{SHOWN} is missing"),
        (lambda: SHOWN.write_text("other"), "the results that it shows are others now"),
        (rename_methods, "entry.methods: expected ['random', 'mtt'], found ['random', 'mtt', 'mtt-long']"),
        (lambda: PAGE.write_text("<!DOCTYPE html>"), f"{PAGE} does not state what it shows"),
        (PAGE.unlink, ""),
    ],
    ids=["nothing", "a set is gone", "a set is another", "another entry", "an early version", "an output is gone"],
)
def test_a_table_that_differs_from_one_made_now_is_made_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[], object],
    told: str,
) -> None:
    """Snakemake itself compares neither the inputs of a table that exists nor one that it has no record of."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    names = {"root": "results/tiny", "table": "table2"}
    outputs = [pattern.format(**names) for pattern in rules.RULES["table"].outputs.values()]
    campaigns = Campaigns(ROOT, [Path("tiny.yaml")])
    inputs = [path for paths in campaigns.inputs("table", SimpleNamespace(**names)).values() for path in paths]
    for path in map(Path, (*outputs, *inputs)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    made = Provenance(campaigns.of("results/tiny")).of_exhibit("table", "table2", partial=False)
    PAGE.write_text(page_metadata(made))
    change()
    planned, forced = Campaigns(ROOT, [Path("tiny.yaml")]), list[str]()
    planned.force = forced.extend
    planned.planned_inputs("table", SimpleNamespace(**names, items=names.items))
    assert forced == (outputs if told else [])
    assert told in capsys.readouterr().err
    forced.clear()
    incomplete = Campaigns(ROOT, [Path("tiny.yaml")], partial=True)
    incomplete.force = forced.extend
    incomplete.planned_inputs("table", SimpleNamespace(**names, items=names.items))
    assert bool(forced) == PAGE.exists(), "a whole table is not the one of existing results"


def test_a_number_in_a_path_is_written_in_one_way() -> None:
    constraints = Campaigns(ROOT).constraints()
    for name, form in (("ipc", "{}"), ("seed", "{}"), ("part", "{}-{}")):
        assert all(re.fullmatch(constraints[name], form.format(number, number)) for number in (0, 7, 10, 2**63))
        for number in ("01", "00", "\u0663", "1_0", "+1", "-1", ""):
            assert re.fullmatch(constraints[name], form.format(number, number)) is None


def test_a_misspelt_option_stops_the_run_in_one_line(tmp_path: Path) -> None:
    folder = make_checkout(tmp_path)
    (folder / "config" / "tiny.yaml").write_text(TINY.replace("inner_steps: 5", "inner_step: 5"))
    done = snakemake(folder, "--cores", "1", "results/tiny/table2.csv")
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if "tiny.yaml" in line)
    assert "methods.mtt-long: method mtt: unknown option 'inner_step'" in line
    assert line.endswith("Did you mean 'inner_steps'?")
    assert not (folder / "results").exists()


def test_a_value_that_would_be_ignored_is_refused(checkout: Path) -> None:
    done = snakemake(checkout, "--dry-run", "results/demo/table2.csv", "--config", "iterations=3")
    assert done.returncode == 1
    assert "--config accepts only partial=true or partial=false" in done.stdout


def test_an_unknown_name_in_a_path_is_refused(checkout: Path) -> None:
    done = snakemake(checkout, "--dry-run", "results/demo/distilled/digts/ipc-1/mtt/seed-0/metrics.parquet")
    assert done.returncode == 1
    assert (
        "unknown dataset 'digts'; known: cifar10, cifar10-plain, cifar10-standardised, cifar100, cifar100-plain, "
        "cifar100-standardised, digits, tiny-imagenet, tiny-imagenet-plain, tiny-imagenet-standardised. Did you mean "
        "'digits'?" in done.stdout
    )


def test_nothing_runs_twice(finished: Path) -> None:
    assert replanned(finished, "tables:", "# a comment\ntables:") == []


def test_an_added_method_schedules_only_its_own_jobs(finished: Path) -> None:
    jobs = replanned(finished, "mtt-long]", "mtt-long, satm]")
    assert sorted((rule, wild.get("method")) for rule, wild in jobs) == [
        ("distill", "satm"),
        ("evaluate", "satm"),
        ("table", None),
    ]


def test_an_option_reschedules_only_what_uses_it(finished: Path) -> None:
    jobs = replanned(finished, "inner_steps: 5", "inner_steps: 6")
    assert sorted((rule, wild.get("method")) for rule, wild in jobs) == [
        ("distill", "mtt-long"),
        ("evaluate", "mtt-long"),
        ("table", None),
    ]
    jobs = replanned(finished, "repeats: 1", "repeats: 2")
    assert Counter(rule for rule, _ in jobs) == {"evaluate": 3, "table": 1}


def test_more_experts_leave_those_that_exist(finished: Path) -> None:
    jobs = replanned(finished, "count: 2", "count: 3")
    assert [wild["part"] for rule, wild in jobs if rule == "experts_part"] == ["2-2"]
    assert {wild["method"] for rule, wild in jobs if rule == "distill"} == {"mtt", "mtt-long"}


# The same without Snakemake, where every case can be afforded


def campaigns(tmp_path: Path, text: str) -> Campaigns:
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    return Campaigns(ROOT, [path])


WILDCARDS = SimpleNamespace(
    root="results/tiny",
    dataset="digits",
    ipc="1",
    method="mtt",
    seed="0",
    network="convnet",
    experts="sgd",
    table="table2",
    what="sharpness",
)
RULES = ("images", "zca", "experts", "distill", "analysis", "evaluate", "table")


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("tables:", "networks: {wide: {network: convnet, width: 64}}\ntables:", ""),
        ("  mtt-long", "  mtt-longer: {method: mtt, inner_steps: 9}\n  mtt-long", ""),
        ("  sgd:", "  other: {lr: 0.5}\n  sgd:", ""),
        ("count: 2", "count: 3", ""),
        ("per_job: 1", "per_job: 2", ""),
        ("epochs: 2, per_job", "epochs: 3, per_job", "experts"),
        ("iterations: 2", "iterations: 3", "distill analysis"),
        ("repeats: 1", "repeats: 2", "evaluate"),
        ("  mtt-long", "  satm: {rho: 0.5}\n  mtt-long", "analysis"),
        ("augment: crop_", "augment: ", "experts distill analysis evaluate"),
        ("augment: crop_", "size: 8, augment: crop_", "images"),
        ("augment: crop_", "validation: 5, augment: crop_", "images"),
        ("tables:", "networks: {convnet: {width: 64}}\ntables:", "experts distill evaluate"),
        ("methods: [random, mtt", "methods: [mtt", "table"),
    ],
)
def test_parameters_hold_only_what_a_stage_uses(tmp_path: Path, old: str, new: str, changed: str) -> None:
    assert TINY.count(old) == 1
    before, after = campaigns(tmp_path, TINY), campaigns(tmp_path, TINY)
    held = {rule: before.options(rule, WILDCARDS) for rule in RULES}
    (tmp_path / "tiny.yaml").write_text(TINY.replace(old, new))
    now = {rule: after.options(rule, WILDCARDS) for rule in RULES}
    assert [rule for rule in RULES if held[rule] != now[rule]] == changed.split()


def test_the_options_named_in_the_workflow_exist() -> None:
    assert set(config.DatasetOptions.model_fields) >= asked.DECODING | {f"zca_{name}" for name in asked.WHITENING}
    assert set(config.ExpertsOptions.model_fields) >= asked.SHARING | asked.UNSTATED


def test_a_job_does_not_check_again_what_its_plan_has_checked(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("inner_steps: 5", "inner_step: 5"))
    with pytest.raises(UsageError, match="unknown option 'inner_step'"):
        Campaigns(ROOT, [path]).of("results/tiny")
    assert Campaigns(ROOT, [path], checked=True).of("results/tiny").layout.root == "results/tiny"


def test_a_dataset_with_zca_schedules_its_whitening(tmp_path: Path) -> None:
    held = campaigns(tmp_path, TINY)
    cifar = SimpleNamespace(root="results/tiny", dataset="cifar10")
    assert held.inputs("full", WILDCARDS)["data"] == ["results/tiny/data/digits/images.safetensors"]
    assert held.inputs("full", cifar)["data"][1:] == ["results/tiny/data/cifar10/zca.safetensors"]


def test_a_method_names_its_experts(tmp_path: Path) -> None:
    text = TINY.replace("  mtt-long", "  mtt-other: {method: mtt, experts: other}\n  mtt-long").replace(
        "  sgd", "  other: {}\n  sgd"
    )
    held = campaigns(tmp_path, text)
    manifests = [
        held.inputs("distill", SimpleNamespace(**{**vars(WILDCARDS), "method": method}))["experts"]
        for method in ("random", "satm", "mtt-long", "mtt-other")
    ]
    sgd, other = ([f"results/tiny/experts/digits/{name}/manifest.json"] for name in ("sgd", "other"))
    assert manifests == [[], sgd, sgd, other]


def test_a_trajectory_can_follow_experts_that_the_method_did_not_match(tmp_path: Path) -> None:
    more = "settings:\n  - {stage: analyse, method: satm, options: {experts: other}}\n"
    held = campaigns(tmp_path, TINY.replace("  sgd", "  other: {}\n  sgd").replace("settings:\n", more))
    found = [
        held.inputs("analysis", SimpleNamespace(**{**vars(WILDCARDS), "method": method, "what": what}))["experts"]
        for method, what in (("mtt", "trajectory"), ("satm", "trajectory"), ("satm", "sharpness"))
    ]
    sgd, other = ([f"results/tiny/experts/digits/{name}/manifest.json"] for name in ("sgd", "other"))
    assert found == [sgd, other, sgd]


def test_two_campaigns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(TINY)
    with pytest.raises(UsageError, match=r"would both write to results/demo; rename one of them"):
        Campaigns(ROOT, [tmp_path / "demo.yaml"])
    assert Campaigns(ROOT, [ROOT / "config" / "demo.yaml"]).paths["results/demo"].name == "demo.yaml"


def test_a_picture_needs_a_cell_of_a_table(tmp_path: Path) -> None:
    held = campaigns(tmp_path, TINY)
    drawn = [SimpleNamespace(root="results/tiny", figure=f"synthetic-digits-ipc-{ipc}") for ipc in (1, 7)]
    assert len(held.inputs("figure", drawn[0])["measured"]) == 3
    with pytest.raises(UsageError, match=r"unknown figure 'synthetic-digits-ipc-7' in .*tiny.yaml; known: .*-ipc-1"):
        held.inputs("figure", drawn[1])


def test_the_path_of_a_campaign_does_not_depend_on_where_the_checkout_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert Campaigns(ROOT).config(SimpleNamespace(root="results/demo")) == "config/demo.yaml"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder for temporary files, with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_a_whole_run_from_another_folder(tmp_path: Path, temporary: Path) -> None:
    """Experts to table and picture; the checkout is not the working folder. Then there is nothing to do.

    The jobs fork from one process for each number of threads.
    """
    table = "methods: [random, satm]\n    sharpness: [satm]"
    text = TINY.replace("per_job: 1", "per_job: 2").replace("methods: [random, mtt, mtt-long]", table)
    (tmp_path / "tiny.yaml").write_text(text)
    command = ["--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "--configfile", "tiny.yaml"]
    threads = ["--set-threads", *(f"{rule}=1" for rule in ("experts_part", "distill", "evaluate", "analysis"))]
    ended, sockets = threading.Event(), set()

    def watch() -> None:
        while not ended.wait(0.05):
            sockets.update(path for path in temporary.glob("satm-*/*") if path.is_socket())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        done = snakemake(tmp_path, *command, *threads)
    finally:
        ended.set()
        watcher.join()
    logs = "\n".join(path.read_text() for path in (tmp_path / "results").rglob("*.log"))
    assert done.returncode == 0, done.stdout + logs
    made = (tmp_path / "results/tiny/table2.csv").read_text()
    assert ",random," in made
    assert ",satm," in made
    assert (tmp_path / "results/tiny/figures/synthetic-digits-ipc-1.png").stat().st_size > 1000
    assert planned(tmp_path, *command) == []
    if hasattr(os, "pidfd_open"):
        assert len(sockets) == 1 and not any(path.parent.exists() for path in sockets)

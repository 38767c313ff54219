"""What a campaign has taken, added up by hand: from records, from benchmarks, and where nothing is known."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from conftest import Refuse

from satm.cli import main
from satm.config import Cell, Layout, load_campaign
from satm.cost.spent import accounting, number, of_job, spent
from satm.figures.base import figure_of
from satm.results.columns import EVALUATION, METRICS
from satm.results.rows import write_rows
from satm.run.record import Attempt, Record, find_record
from satm.tables.reader import Reader
from satm.workflow.graph import Job
from satm.workflow.jobs import campaigns_of, jobs
from satm.workflow.rules import RULES

ROOT = Path(__file__).parent.parent
SMALL = """
experts:
  sgd: {count: 2, per_job: 1}
tables:
  table2: {datasets: {digits: [1]}, methods: [random, mtt, satm]}
  other: {datasets: {digits: [1, 3]}, methods: [mtt]}
"""
LAYOUT = Layout("results/small")
ATTEMPT = Attempt(
    id="a", began="", ended="", seconds=3600, cpu_seconds=1800, device="cpu", peak_host_bytes=10**9, peak_device_bytes=0
)
GPU = replace(ATTEMPT, device="NVIDIA Something", gpus=1, peak_device_bytes=5 * 10**9)


def slurm(job: str, submitted: str, started: str) -> dict[str, str | None]:
    return {"job": job, "submitted": f"2026-01-01T{submitted}+00:00", "started": f"2026-01-01T{started}+00:00"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Job]:
    """A current folder with a campaign in which nothing was run; its jobs by their texts."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    return {str(job): job for job in jobs(campaigns_of(Path("small.yaml")), "results/small")}


PART = "experts_part dataset digits experts sgd part 0-0"
MTT = "distill dataset digits ipc 1 method mtt seed 0"
MTT_3 = "distill dataset digits ipc 3 method mtt seed 0"
SATM = "distill dataset digits ipc 1 method satm seed 0"
TESTED = "evaluate dataset digits ipc 1 method mtt network convnet seed 0"
IMAGES = "images dataset digits"


def touch(job: Job) -> None:
    """Let a job count as done, by files that tell nothing."""
    for path in job.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def keep(job: Job, *attempts: Attempt, done: bool = True) -> None:
    """Leave the record of a job, and if it is done its files."""
    path = Path(LAYOUT.account(*job.place))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Record(list(attempts), done).text())
    if done:
        touch(job)


def benchmark(job: Job, text: str) -> None:
    path = Path(LAYOUT.benchmark(*job.place))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    touch(job)


HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
LINE = "7200.0\t2:00:00\t1000.00\t4693.70\t505.01\t644.72\t2.52\t0.06\t63.92\t5400\n"


def frame() -> pandas.DataFrame:
    return accounting(campaigns_of(Path("small.yaml")), "results/small").frame


def rule(name: str) -> dict[str, Any]:
    found = frame()
    return found[(found["rule"] == name) & (found["part"] != "cell")].iloc[0].to_dict()


def cells() -> pandas.DataFrame:
    found = frame()
    return found[found["part"] == "cell"].set_index(["table", "dataset", "ipc", "method"])


def notes() -> str:
    return " ".join(accounting(campaigns_of(Path("small.yaml")), "results/small").rules.notes)


def test_a_new_campaign_has_an_empty_account(small: dict[str, Job]) -> None:
    whole = rule("all")
    assert whole["done"] == whole["unfinished"] == whole["unknown"] == 0 and whole["planned"] == len(small) - 2
    for column in ("gpu_hours", "cpu_hours", "run_hours", "queue_hours", "peak_host_gb", "attempts"):
        assert pandas.isna(whole[column]), column
    assert main(["table", "--config", "small.yaml", "--name", "accounting"]) == 0
    assert main(["figure", "--config", "small.yaml", "--name", "accounting"]) == 0
    text = Path("results/small/accounting.md").read_text()
    assert "| distill | 0 of 4 |" in text and "nan" not in text.lower()
    assert sorted(path.name for path in Path("results/small").glob("accounting.*")) == [
        *("accounting.csv", "accounting.html", "accounting.md", "accounting.tex")
    ]
    assert Path("results/small/figures/accounting.pdf").read_bytes().startswith(b"%PDF")
    assert not {"data", "experts", "distilled"} & {path.name for path in Path("results/small").iterdir()}


def test_attempts_of_a_job_are_added_up(small: dict[str, Job]) -> None:
    queued = [slurm("1", "00:00:00", "00:30:00"), slurm("2", "02:00:00", "03:30:00")]
    keep(small[MTT], replace(GPU, slurm=queued[0]), replace(GPU, seconds=1800, slurm=queued[1], peak_device_bytes=9e9))
    found = rule("distill")
    assert (found["planned"], found["done"], found["attempts"]) == (4, 1, 2)
    assert found["run_hours"] == found["gpu_hours"] == found["longest_hours"] == 1.5
    assert found["queue_hours"] == 2 and found["cpu_hours"] == 1
    assert found["peak_device_gb"] == 9 and found["peak_host_gb"] == 1
    assert found["devices"] == "NVIDIA Something" and found["longest_job"] == MTT


def test_jobs_that_share_a_slurm_job_waited_once(small: dict[str, Job]) -> None:
    for name in (MTT, SATM, TESTED):
        keep(small[name], replace(ATTEMPT, slurm=slurm("1", "00:00:00", "00:30:00")))
    assert rule("distill")["queue_hours"] == rule("evaluate")["queue_hours"] == rule("all")["queue_hours"] == 0.5
    assert rule("distill")["run_hours"] == 2 and rule("distill")["gpu_hours"] == 0


def test_a_requeued_slurm_job_waits_from_the_end_of_its_attempt(small: dict[str, Job]) -> None:
    first = replace(ATTEMPT, ended="2026-01-01T02:00:00+00:00", slurm=slurm("1", "00:00:00", "01:00:00"))
    keep(small[MTT], first, replace(first, slurm=slurm("1", "00:00:00", "02:30:00")))
    assert rule("distill")["queue_hours"] == 1.5


@pytest.mark.parametrize("times", [("", "soon"), ("2026-01-01T00:00:00", "2026-01-01T00:30:00+00:00")])
def test_unusable_times_leave_the_queue_unknown(small: dict[str, Job], times: tuple[str, str]) -> None:
    keep(small[MTT], replace(ATTEMPT, slurm={"job": "1", "submitted": times[0], "started": times[1]}))
    assert rule("distill")["run_hours"] == 1 and not rule("distill")["queue_hours"] > 0


def test_an_unfinished_job_counts_until_its_last_heartbeat(small: dict[str, Job]) -> None:
    keep(small[MTT], ATTEMPT, done=False)
    found = rule("distill")
    assert (found["done"], found["unfinished"], found["run_hours"]) == (0, 1, 1)
    assert "Unfinished, counted until last seen: 1 job." in notes()


def test_attempts_in_a_result_replace_the_record_beside_the_log(small: dict[str, Job]) -> None:
    keep(small[MTT], ATTEMPT)
    path = Path(LAYOUT.metrics(Cell("digits", 1, "mtt", 0)))
    write_rows(
        path, [], METRICS, {"device": "cpu", "accounting": [vars(ATTEMPT), vars(replace(ATTEMPT, seconds=7200))]}
    )
    assert rule("distill")["run_hours"] == 3 and rule("distill")["attempts"] == 2


@pytest.mark.parametrize(
    ("device", "gpu", "memory"), [("cpu", 0.0, None), ("NVIDIA Something", 2.0, 3e9)], ids=["cpu", "gpu"]
)
def test_benchmarks_account_for_files_of_earlier_versions(
    small: dict[str, Job], device: str, gpu: float, memory: float | None
) -> None:
    benchmark(small[TESTED], HEAD + LINE)
    row: dict[str, Any] = {"dataset": "digits", "ipc": 1, "method": "mtt", "seed": 0, "network": "convnet"}
    row |= {"repeat": 0, "labels": "hard", "split": "test", "selection": "last", "average": "raw", "labelled": "own"}
    row |= {"augmented": "yes", "step_size": "learned", "rate": 0.1, "accuracy": 0.5, "loss": 1.0, "epochs": 1}
    row |= {"seconds": 1.0, "peak_memory_bytes": 3 * 10**9}
    write_rows(Path(LAYOUT.evaluation(Cell("digits", 1, "mtt", 0), "convnet")), [row], EVALUATION, {"device": device})
    found = of_job(small[TESTED])
    assert (found.source, found.attempts, found.run, found.cpu) == ("benchmark", None, 7200, 5400)
    assert found.gpu == gpu * 3600 and found.device_bytes == memory and list(found.devices) == [device]
    assert found.host_bytes == 1000 * 2**20
    row = rule("evaluate")
    assert (
        row["run_hours"] == 2 and row["cpu_hours"] == 1.5 and row["gpu_hours"] == gpu and pandas.isna(row["attempts"])
    )
    assert "Finished jobs with a record: 0 of 1; with Snakemake's benchmark only" in notes()


def test_unusable_numbers_of_a_benchmark_are_unknown(small: dict[str, Job]) -> None:
    benchmark(small[IMAGES], HEAD + "0.5\t0:00:00\t-\t-\t-\t-\tNA\tNA\t0.00\tnan\n")
    found = of_job(small[IMAGES])
    assert (found.run, found.cpu, found.host_bytes, list(found.devices)) == (0.5, None, None, ["cpu"])
    benchmark(small[PART], HEAD + LINE)
    assert of_job(small[PART]).gpu is None and of_job(small[PART]).devices == {"": 5400}
    assert pandas.isna(rule("experts_part")["gpu_hours"]) and rule("experts_part")["devices"] == ""
    for broken in ("", HEAD, "x\ny\n", HEAD + "-\t-\n"):
        benchmark(small[MTT], broken)
        assert of_job(small[MTT]).source == ""
    assert rule("distill")["unknown"] == 1
    assert "unknown and not counted: 1 (1 distill)." in notes()


def test_experts_count_once_by_rule_and_in_shares_by_cell(small: dict[str, Job]) -> None:
    keep(small[PART], ATTEMPT)
    keep(small[PART.replace("0-0", "1-1")], replace(ATTEMPT, seconds=1800))
    keep(small[MTT], ATTEMPT)
    keep(small[MTT_3], replace(ATTEMPT, seconds=7200))
    keep(small[TESTED], replace(ATTEMPT, seconds=900))
    keep(small[IMAGES], ATTEMPT)
    assert rule("experts_part")["run_hours"] == 1.5 and rule("experts_part")["done"] == 2
    assert rule("all")["run_hours"] == 1.5 + 1 + 2 + 0.25 + 1
    found = cells()
    times = ["experts_hours", "distillation_hours", "evaluation_hours", "run_hours"]
    for table in ("table2", "other"):
        assert found.loc[(table, "digits", 1, "mtt"), times].tolist() == [0.5, 1, 0.25, 1.75]
    assert found.loc[("other", "digits", 3, "mtt"), times[:2]].tolist() == [0.5, 2]
    assert found.loc[("table2", "digits", 1, "satm"), "experts_hours"] == 0.5
    assert pandas.isna(found.loc[("table2", "digits", 1, "random"), "experts_hours"])
    named = found["experts"].to_dict()
    assert (
        named["table2", "digits", 1, "mtt"] == "sgd, shared by 3 cells" and named["table2", "digits", 1, "random"] == ""
    )
    assert (found.loc[("table2", "digits", 1, "mtt"), ["done", "planned"]]).tolist() == [4, 5]


def test_the_account_of_a_real_campaign(campaign: Path) -> None:
    """The jobs of this one were run by hand, several of them by one command."""
    assert main(["table", "--config", "tiny.yaml", "--name", "accounting"]) == 0
    found = pandas.read_csv("results/tiny/accounting.csv")
    rules = found[found["part"] == "rule"].set_index("rule")
    done = {"images": 1, "experts_part": 2, "experts": 1, "distill": 1, "evaluate": 1}
    assert rules.loc[list(done), "done"].to_dict() == done and rules["unknown"].sum() == 0
    kept = find_record(Path("results/tiny/logs/evaluate/digits/ipc-1/satm/seed-0/convnet.json"))
    assert kept is not None and kept.attempts[0].seconds is not None
    # The copy in the result was written before the job ended.
    assert rules.loc["evaluate", "run_hours"] == pytest.approx(kept.attempts[0].seconds / 3600, rel=0.5)
    assert rules.loc["evaluate", "peak_host_gb"] > 0.01 and set(rules["devices"].dropna()) == {"cpu"}
    text = Path("results/tiny/accounting.md").read_text()
    assert "Finished jobs with a record: 6 of 6." in text and "| table2 | digits | 1 | satm |" in text
    page = Path("results/tiny/accounting.html").read_text()
    assert page.count("<table>") == 2 and page.count("<h1>") == 1
    assert Path("results/tiny/accounting.tex").read_text().count(r"\begin{tabular}") == 2


def drawn() -> pandas.DataFrame:
    resolver = load_campaign(Path("small.yaml"))
    return figure_of(resolver, "accounting").draw(Reader(resolver)).frame


def test_the_figure_shows_methods_on_one_device_and_devices_where_there_are_several(small: dict[str, Job]) -> None:
    keep(small[MTT], replace(ATTEMPT, cpu_seconds=3600))
    keep(small[SATM], ATTEMPT)
    keep(small[PART], ATTEMPT)
    hours = drawn().set_index(["quantity", "of", "rule"])["hours"].to_dict()
    assert hours == {
        ("device", "mtt", "distill"): 1,
        ("device", "satm", "distill"): 0.5,
        ("device", "no method of its own", "experts_part"): 0.5,
        ("run", "", "experts_part"): 1,
        ("run", "", "distill"): 2,
    }
    waited = slurm("1", "00:00:00", "02:00:00")
    keep(small[MTT], replace(GPU, device="A", slurm=waited), replace(GPU, device="B", seconds=1800, slurm=waited))
    hours = drawn().set_index(["quantity", "of", "rule"])["hours"].to_dict()
    assert {key: value for key, value in hours.items() if key[2] == "distill"} == {
        ("device", "A", "distill"): 1,
        ("device", "B", "distill"): 0.5,
        ("device", "cpu", "distill"): 0.5,
        ("run", "", "distill"): 2.5,
        ("queue", "", "distill"): 2,
    }


def test_the_figure_shows_the_largest_methods_and_small_rules_together(small: dict[str, Job]) -> None:
    methods = ["mtt", "mtt-half", "mtt-sam", "ftd", "satm", "datm", "dm", "random"]
    text = SMALL + f"  many: {{datasets: {{digits: [1]}}, methods: {methods}}}\n"
    Path("small.yaml").write_text(text + "methods: {mtt-half: {method: mtt}}\n")
    for place_of, method in enumerate(methods):
        job = Job(
            "distill",
            (("dataset", "digits"), ("ipc", "1"), ("method", method), ("root", "results/small"), ("seed", "0")),
        )
        keep(job, replace(ATTEMPT, cpu_seconds=3600 * (place_of + 1)))
    for name in (IMAGES, PART):
        keep(small[name], replace(ATTEMPT, seconds=10, cpu_seconds=10))
    found = drawn()
    device = found[found["quantity"] == "device"].set_index("of")["hours"].to_dict()
    assert device == {
        **{"random": 8, "dm": 7, "datm": 6, "satm": 5, "ftd": 4},  # `mtt` and `mtt-half` are one, and less than these
        **{"other methods": 6, "no method of its own": pytest.approx(20 / 3600)},
    }
    assert list(dict.fromkeys(found["rule"])) == ["distill", "the rest"]
    assert main(["figure", "--config", "small.yaml", "--name", "accounting"]) == 0


def test_accounting_is_a_reserved_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refuse) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "it.yaml"
    for section, entry in (
        ("tables", "{datasets: {digits: [1]}, methods: [mtt]}"),
        ("tables", "{kind: continual, datasets: {digits: [1]}, methods: [mtt]}"),
        ("figures", "{kind: costs, datasets: {digits: [1]}, methods: [mtt]}"),
    ):
        path.write_text(f"{section}: {{accounting: {entry}}}")
        told = refused("table", "--config", str(path), "--name", "accounting")
        assert "'accounting' means the cost of the jobs so far; rename it" in told
    for stage in ("table", "figure"):
        assert "name one with --config" in refused(stage, "--name", "accounting")


def test_numbers_have_three_digits_or_all_before_the_point() -> None:
    assert [number(value) for value in (0.0, 0.001234, 1.5, 12.34, 123.4, 12345.6)] == [
        *("0", "0.00123", "1.5", "12.3", "123", "12346")
    ]


@pytest.mark.workflow
def test_logs_and_benchmarks_are_where_the_workflow_writes_them(tmp_path: Path) -> None:
    """The papers' campaign has jobs of all rules but one, which no table needs."""
    alone = "results/analysis/digits/experts/sgd/sharpness.parquet"
    targets = ["results/tables/all", "results/figures/all", alone]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]
    done = subprocess.run([*command, "--dry-run", *targets], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    layout, planned = Layout("results"), jobs(campaigns_of(ROOT / "config" / "paper.yaml"), "results")
    more = [Job("expert_sharpness", (("dataset", "digits"), ("experts", "sgd"), ("root", "results")))]
    more += [
        Job("experts", more[0].names),
        *(job for job in planned if job.rule == "images" and "digits" in dict(job.names).values()),
    ]
    shown = {kind: set(re.findall(rf"^    {kind}: (.*)$", done.stdout, re.MULTILINE)) for kind in ("log", "benchmark")}
    assert len(shown["log"]) > len(planned)
    assert shown["log"] >= {layout.log(*job.place) for job in [*planned, *more]}
    assert shown["benchmark"] >= {layout.benchmark(*job.place) for job in [*planned, *more]}
    assert {job.rule for job in [*planned, *more]} == set(RULES)
    assert len(spent(campaigns_of(ROOT / "config" / "paper.yaml"), "results")) == len(planned) - 2

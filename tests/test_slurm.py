"""What the profile for SLURM is made of, and what a cluster is asked before anything is submitted; SLURM is played."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from satm.config import Site
from satm.errors import UsageError
from satm.workflow import slurm
from satm.workflow.rules import RULES

PROFILE = Path(__file__).parent.parent / "workflow" / "profiles" / "slurm"

PARTITIONS = """
PartitionName=batch AllowAccounts=ALL Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=gpu AllowAccounts=ALL Default=NO MaxTime=UNLIMITED State=UP
PartitionName=members AllowAccounts=project,other Default=NO MaxTime=UNLIMITED State=UP
"""
NODES = """
batch|32000|8|(null)
batch|64000|16|(null)
gpu|128000|32|gpu:a100:4(S:0-1)
gpu|128000|32|gpu:v100:2
members|64000|16|gpu:2
"""


class Cluster:
    """Commands of SLURM that answer what a test says, by name and first words of their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answer("sbatch")
        self.answer("squeue")
        self.answer("sacctmgr", fails=1)
        self.answer("sinfo", NODES)
        self.answer("scontrol", f"{PARTITIONS}\nAccountingStorageType = accounting_storage/none\nMinJobAge = 300 sec")

    def answer(self, name: str, text: str = "", fails: int = 0) -> None:
        """Let a command print a text, on the standard error if it fails."""
        where = ">&2" if fails else ""
        path = self.folder / name
        path.write_text(
            f"#!/bin/sh\necho \"$@\" >> {self.folder}/asked\ncat <<'END' {where}\n{text.strip()}\nEND\nexit {fails}\n"
        )
        path.chmod(0o755)

    def asked(self) -> list[str]:
        """Return the arguments of all calls."""
        return (self.folder / "asked").read_text().splitlines()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Cluster(folder)


def site(tmp_path: Path, text: str) -> Site:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return slurm.load_site(path)


def job(**resources: Any) -> dict[str, dict[str, Any]]:
    return {"distill": {"mem_mb": 16000, "runtime": 60, "_cores": 4, **resources}}


def refused(**resources: Any) -> str:
    with pytest.raises(UsageError) as told:
        slurm.check_jobs(job(**resources))
    assert "\n" not in str(told.value)
    return str(told.value)


def test_the_example_sets_nothing_and_shows_every_setting(tmp_path: Path) -> None:
    text = (PROFILE / "site.example.yaml").read_text()
    assert site(tmp_path, text) == Site()
    shown = re.sub(r"^# ((?:  )?\w+:.*)$", r"\1", text, flags=re.MULTILINE)
    assert set(YAML(typ="safe", pure=True).load(shown)) == set(Site.model_fields)
    assert site(tmp_path, re.sub("^arrays.*", "", shown, flags=re.MULTILINE)).account == "myproject"


def test_every_rule_that_is_submitted_is_in_the_profile() -> None:
    text = (PROFILE / "profile.yaml").read_text()
    assert set(re.findall(r'site\.(?:gpu|other)\("(\w+)"\)', text)) == set(RULES)
    assert all(first == second for first, second in re.findall(r'^  (\w+): \?site\.\w+\("(\w+)"\)', text, re.MULTILINE))


def test_every_rule_says_how_many_gpus_it_was_given() -> None:
    """Otherwise its jobs could compute on the CPU although they hold a GPU."""
    profile = (PROFILE / "profile.yaml").read_text()
    text = "\n".join(path.read_text() for path in (PROFILE.parent.parent / "rules").glob("*.smk"))
    rules = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", text, re.MULTILINE | re.DOTALL))
    for rule in re.findall(r"site\.gpu\(\"(\w+)\"\)", profile):
        assert "--gpus {resources.gpu:q}" in rules[rule], rule
    assert all('"SATM_LOG={log:q}"' in rule for rule in rules.values() if "shell:" in rule)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpu_partitions: gpu", r"unknown option 'gpu_partitions'; known: .*Did you mean 'gpu_partition'\?"),
        ("jobs: 0", "jobs: input should be greater than or equal to 1, got 0"),
        ("jobs: 50\narrays: [all]", "jobs and arrays exclude each other"),
        ("per_job: {evaluate: 1}", "per_job.evaluate: .*greater than or equal to 2, got 1"),
        ("per_job: {nas: 3}\narrays: [nas]", "nas is in arrays and in per_job"),
        ("resources: {destill: {runtime: 9}}", r"unknown rule 'destill' in .*site.yaml; .*Did you mean 'distill'\?"),
        ("- gpu", "holds a list, expected a mapping"),
    ],
)
def test_a_mistake_in_the_site_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as found:
        site(tmp_path, text)
    assert str(tmp_path / "site.yaml") in str(found.value)


def test_names_reach_snakemake_as_quoted_text(tmp_path: Path) -> None:
    held = site(tmp_path, "cpu_partition: all\naccount: 12345\ngpu_partition: max\nconstraint: a100|h100")
    assert held.everywhere == {"slurm_partition": "'all'", "slurm_account": "'12345'"}
    assert held.gpu("distill") == {"gpu": 1, "slurm_partition": "'max'", "constraint": "'a100|h100'"}


def test_memory_of_the_site_grows_with_the_attempts(tmp_path: Path) -> None:
    held = site(tmp_path, "resources: {distill: {runtime: 90, mem_mb: 9000}, table: {slurm_partition: long}}")
    assert held.gpu("distill") == {"gpu": 1, "runtime": 90, "mem_mb": "9000 * attempt"}
    assert held.other("table") == {"slurm_partition": "long"}
    assert held.other("figure") == {}


def test_no_job_asks_for_more_memory_than_the_largest_node_has(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Attempts ask for more and more, and what no node has is refused."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "slurm" / "site.yaml"
    own.parent.mkdir()
    own.write_text("")
    assert slurm.open_site().limits == {"mem_mb": 64000}
    own.write_text("gpu_partition: gpu\nper_job: {nas: 2}")
    assert slurm.open_site().limits == {"gpu": 1, "mem_mb": 128000}
    own.write_text("memory: 9000")
    assert slurm.open_site().limits == {"mem_mb": 9000}
    cluster.answer("scontrol", fails=1)
    own.write_text("")
    assert slurm.open_site().limits == {}


def test_arrays_are_never_beside_a_limit_of_jobs(tmp_path: Path) -> None:
    assert site(tmp_path, "arrays: [evaluate]").queued == "unlimited"
    assert site(tmp_path, "jobs: 7").queued == 7


def test_the_status_command_depends_on_the_accounting_database(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "slurm" / "site.yaml"
    own.parent.mkdir()
    own.write_text("")
    assert slurm.open_site().status_command == "squeue"
    cluster.answer("scontrol", "AccountingStorageType = accounting_storage/slurmdbd")
    assert slurm.open_site().status_command == "sacct"
    own.write_text("status_command: squeue")
    assert slurm.open_site().status_command == "squeue"


@pytest.mark.parametrize(("found", "told"), [("2.7.1", "got 2.7.1"), ("2.9.0", "got 2.9.0"), (None, "got none")])
def test_another_plugin_ends_in_one_line(
    found: str | None, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise slurm.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(slurm, "version", version)
    with pytest.raises(SystemExit) as ended:
        slurm.open_site()
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("satm: error: the profile slurm needs snakemake-executor-plugin-slurm >=2.8,<2.9, " + told)
    assert line.count("\n") == 1 and "pip install" in line


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        (
            {"slurm_partition": "cpu"},
            "unknown partition 'cpu' for jobs of distill; set one of batch, gpu, members as cpu_p",
        ),
        (
            {"slurm_partition": "gp", "gpu": 1},
            "unknown partition 'gp' for jobs of distill; set one of .* as gpu_partition in slurm/",
        ),
        (
            {"gpu": 1},
            "need a GPU, partition batch has none, gpu, members have some; set gpu_partition in slurm/site.yaml",
        ),
        (
            {"slurm_partition": "gpu", "gpu": 1, "gpu_model": "h100"},
            r"a GPU of type 'h100', partition gpu has gpu:a100:4\(S:0-1\), gpu:v100:2; set gpu_model in slurm/",
        ),
        (
            {"slurm_partition": "members"},
            "have no account, and partition members is for project, other; set account in",
        ),
        ({"slurm_partition": "members", "slurm_account": "mine"}, "have account 'mine', and partition members is for"),
        ({"mem_mb": 64001}, r"64001 MB of memory, partition batch gives at most 64000; .*{distill: {mem_mb: 64000}}"),
        ({"_cores": 17}, r"17 processors, partition batch gives at most 16; .*{distill: {cpus_per_task: 16}}"),
        ({"runtime": 2880}, r"2880 minutes, partition batch gives at most 1440; .*{distill: {runtime: 1440}}"),
    ],
)
def test_jobs_beyond_a_partition_are_refused(cluster: Cluster, resources: dict[str, Any], told: str) -> None:
    assert re.search(told, refused(**resources))
    assert not any("--test-only" in line for line in cluster.asked())


def test_jobs_that_fit_are_checked_once_per_kind(cluster: Cluster) -> None:
    alike = job(
        slurm_partition="gpu", gpu=1, gpu_model="a100", qos="long", constraint="a|b", slurm_extra="'--mail-type=END'"
    )
    slurm.check_jobs({**alike, "evaluate": alike["distill"], **{"table": job()["distill"]}})
    asked = [line for line in cluster.asked() if "--test-only" in line]
    assert asked == [
        "--test-only --partition=gpu --qos=long --constraint=a|b --time=60 --mem=16000 --cpus-per-task=4 --gpus=a100:1 "
        "--mail-type=END --wrap=true",
        "--test-only --time=60 --mem=16000 --cpus-per-task=4 --wrap=true",
    ]


def test_the_times_of_jobs_that_share_one_add_up(cluster: Cluster) -> None:
    with pytest.raises(
        UsageError, match=r"^4 jobs of distill in one ask for 1920 minutes, .* {distill: {runtime: 360}}"
    ):
        slurm.check_jobs(job(runtime=4 * 480), {"distill": 4})


@pytest.mark.parametrize(("limit", "jobs"), [("1:00", 2), ("3:00", 4), ("0:30", 1)])
def test_no_time_of_zero_is_advised(cluster: Cluster, limit: str, jobs: int) -> None:
    """SLURM takes it for no limit."""
    cluster.answer("scontrol", f"PartitionName=batch AllowAccounts=ALL Default=YES MaxTime={limit}")
    with pytest.raises(UsageError, match=r"gives at most \d; set another partition in slurm/site.yaml$"):
        slurm.check_jobs(job(runtime=jobs * 60), {"distill": jobs})


def test_a_partition_without_nodes_advises_no_memory_of_zero(cluster: Cluster) -> None:
    cluster.answer("sinfo", "other|1000|8|(null)")
    assert refused().endswith(
        "16000 MB of memory, partition batch gives at most 0; set another partition in slurm/site.yaml"
    )


def test_a_controller_that_is_away_refuses_no_job(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "PAUSES", (0.0,))
    cluster.answer("sbatch", "sbatch: error: Socket timed out on send/recv operation", fails=1)
    assert refused() == (
        "SLURM does not answer (Socket timed out on send/recv operation); try `sinfo` until it does, then start again"
    )
    assert len([line for line in cluster.asked() if "--test-only" in line]) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "HPC 2026, quota 45%",
            "satm: sbatch prints 'HPC 2026, quota 45%' and such besides the number of a job: ignored",
        ),
        ("welcome\n2026", "besides the number of a job: one of them is a number, so SLURM is asked for each job's"),
        ("", ""),
    ],
)
def test_what_sbatch_prints_besides_a_number_is_said_once(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    cluster.answer("sbatch", text)
    slurm.check_jobs({**job(), "evaluate": job(runtime=30)["distill"]})
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == bool(text)


@pytest.fixture
def profile(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """The settings of a site, as the profile has read them."""
    monkeypatch.setattr(slurm, "_profile", [])
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "slurm" / "site.yaml"
    own.parent.mkdir()
    own.write_text("account: vision\ncpu_partition: batch\ngpu_partition: gpu\nresources: {table: {cpus_per_task: 2}}")
    settings = slurm.open_site()
    settings.gpu("distill")
    settings.other("table")
    return settings


TABLE = {"slurm_account": "vision", "slurm_partition": "batch", "cpus_per_task": 2}
DISTILL = {"slurm_account": "vision", "slurm_partition": "gpu", "gpu": 1}


@pytest.mark.parametrize(
    ("arguments", "changes", "told"),
    [
        ([], {}, None),
        (["--default-resources", "mem_mb=9"], {"slurm_account": None}, "slurm_account of distill, table; leave it out"),
        (["--default-res=mem_mb=9"], {"slurm_account": None}, "slurm_account of distill, table"),
        (
            ["--set-resources", "table:runtime=9"],
            {"slurm_partition": "batch", "gpu": 0},
            "slurm_partition of distill, gpu of",
        ),
        (["--set-resources", "table:runtime=9"], {"cpus_per_task": None}, "cpus_per_task of table"),
        (["--set-resources", "distill:gpu=0"], {"gpu": 0}, None),
        (["--set-resources=distill:gpu=0"], {"gpu": 0}, None),
        (["--set-resources", "evaluate:gpu=0"], {"gpu": 0}, "gpu of distill"),
        (["--default-resources", "slurm_account=other"], {"slurm_account": "other"}, None),
        ([], {"slurm_account": None}, "another profile replaced a section"),
    ],
)
def test_a_section_of_the_profile_that_was_replaced_is_refused(
    profile: Site, monkeypatch: pytest.MonkeyPatch, arguments: list[str], changes: dict[str, Any], told: str | None
) -> None:
    monkeypatch.setattr("sys.argv", ["snakemake", *arguments])
    changed = [{name: changes.get(name, value) for name, value in each.items()} for each in (DISTILL, TABLE)]
    kinds = dict(zip(("distill", "table"), changed, strict=True))
    if told is None:
        return slurm.check_profile(kinds)
    with pytest.raises(UsageError, match=re.escape(told)) as error:
        slurm.check_profile(kinds)
    assert not arguments or str(error.value).startswith(re.split("=", arguments[0])[0][:13])


def test_of_several_partitions_one_is_enough(cluster: Cluster) -> None:
    slurm.check_jobs(job(slurm_partition="batch,gpu", gpu=1))
    assert "need a GPU" in refused(slurm_partition="batch,batch", gpu=1)


def test_a_quality_of_service_may_allow_longer_jobs(cluster: Cluster) -> None:
    slurm.check_jobs(job(runtime=2880, qos="long"))


def test_a_refused_account_is_reported_with_the_usable_ones(cluster: Cluster) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    cluster.answer("sbatch", words, fails=1)
    cluster.answer("sacctmgr", "vision\nlanguage\nvision")
    told = refused(slurm_account="vison")
    assert "Invalid account or account/partition combination specified), yours: language, vision: " in told
    assert "--account=vison" in told and told.endswith("change that in slurm/site.yaml")


def test_a_default_account_that_a_partition_excludes_is_refused(cluster: Cluster) -> None:
    cluster.answer("scontrol", f"{PARTITIONS}\nAccountingStorageType = accounting_storage/slurmdbd")
    cluster.answer("sacctmgr", "vision")
    told = "have account 'vision', your default one, and partition members is for project, other; set account in"
    assert told in refused(slurm_partition="members")
    cluster.answer("sacctmgr", "other")
    slurm.check_jobs(job(slurm_partition="members"))
    cluster.answer("sacctmgr", fails=1)  # it does not tell
    slurm.check_jobs(job(slurm_partition="members"))


@pytest.mark.parametrize(
    "words",
    [
        "allocation failure: Required node not available (down, drained or reserved)",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit\nallocation failure: Job violates accounting/QOS policy",
    ],
)
def test_a_job_that_has_to_wait_is_not_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr(slurm, "PAUSES", ())
    cluster.answer("sbatch", words, fails=1)
    slurm.check_jobs(job())


def test_sacct_without_a_database_is_refused(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match="no accounting database; write `status_command: squeue`"):
        slurm.check_status("sacct", 20)
    slurm.check_status("squeue", 20)
    with pytest.raises(UsageError, match=r"300 seconds after .* every 120 seconds, .*-status-checks 100$"):
        slurm.check_status("squeue", 120)
    cluster.answer("scontrol", "AccountingStorageType = accounting_storage/slurmdbd\nMinJobAge = 2 sec")
    slurm.check_status("sacct", 20)


def test_a_machine_without_slurm_or_its_controller_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answer("sinfo", "slurm_load_partitions: Unable to contact slurm controller (connect failure)", fails=1)
    with pytest.raises(UsageError, match=r"SLURM does not answer \(Unable to contact slurm controller"):
        slurm.check_programs()
    cluster.answer("sinfo")
    slurm.check_programs()
    monkeypatch.setenv("PATH", str(cluster.folder))
    (cluster.folder / "sbatch").unlink()
    with pytest.raises(UsageError, match=r"sbatch is not on PATH, .* login node of the cluster, .* --profile local"):
        slurm.check_programs()


def test_local_jobs_are_not_checked(cluster: Cluster) -> None:
    local = SimpleNamespace(is_local=True, rule=SimpleNamespace(name="all_tables"), resources={})
    dag = SimpleNamespace(needrun_jobs=lambda: [local], get_job_group=lambda _: None)
    settings = SimpleNamespace(status_command="squeue", init_seconds_before_status_checks=20)
    for name in ("slurm", "local"):
        plugin = SimpleNamespace(name=name)
        slurm.check_cluster(SimpleNamespace(executor_plugin=plugin, dag=dag, executor_settings=settings))
    assert not (cluster.folder / "asked").exists()

"""Check that a SLURM cluster would accept and run the jobs, before submission. Nothing here imports torch.

Partitions are checked first: SLURM reports a missing GPU and too much memory with the same text, and accepts jobs with
a wrong account or too long a time, which then wait for ever. Then `sbatch --test-only` checks each kind of job.
"""

import contextlib
import getpass
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from packaging.specifiers import SpecifierSet

from satm.config import Site, load_yaml, parse
from satm.errors import UsageError, pick, short
from satm.run.slurm import PASSING, duration, run
from satm.version import CHECKOUT
from satm.workflow.plugin import NAME, NUMBER, VERSIONS
from satm.workflow.rules import RULES

PROFILE = CHECKOUT / "workflow" / "profiles" / "slurm"
"""Folder of the profile in a checkout; `slurm` in its root is a link to it."""

LATER = re.compile(r"busy|not available \(|not available now|temporarily|maxsubmitjob", re.IGNORECASE)
"""SLURM's words for a job that waits although it could run."""


PAUSES = (5.0, 10.0, 20.0)
"""Seconds before a check is repeated while the controller is away."""

SUMMED = ("mem_mb", "runtime")
"""Resources whose value depends on the attempt, or on the jobs that share one."""

_profile: list[Site] = []
"""The settings that the profile of this process was made of, if it is the one for SLURM."""


def open_site() -> Site:
    """Return the settings of this cluster, for the profile; a mistake ends the process with one line.

    Snakemake reads the profile before its arguments, so the line replaces its usage message.
    """
    path = next((path for folder in (Path("slurm"), PROFILE) if (path := folder / "site.yaml").is_file()), None)
    installed = "none"
    with contextlib.suppress(PackageNotFoundError):
        installed = version(NAME)
    try:
        if installed == "none" or not SpecifierSet(VERSIONS).contains(installed, prereleases=True):
            raise UsageError(
                f"the profile slurm needs {NAME} {VERSIONS}, got {installed}; install it with "
                "`pip install '.[workflow]' -c constraints.txt`"
            )
        site = load_site(path) if path else Site()
    except UsageError as error:
        print(f"satm: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    changes: dict[str, Any] = {}
    if site.status_command == "auto":
        changes["status_command"] = "sacct" if _has_database() else "squeue"
    if site.memory is None:
        changes["memory"] = _largest_memory(site)
    site = site.model_copy(update=changes)
    source = f"from {path}" if path else "the cluster's defaults; slurm/site.example.yaml shows how to change them"
    limit = f"; at most {site.memory} MB for a job" if site.memory else ""
    print(f"satm: SLURM settings: {source}{limit}", file=sys.stderr)
    _profile[:] = [site]
    return site


def load_site(path: Path) -> Site:
    """Return the settings of a cluster in a file.

    Raises:
        UsageError: the file is not YAML, or has an unknown name or an unusable value.
    """
    site = parse(Site, load_yaml(path, empty=True), str(path))
    for rule in site.rules():
        pick(rule, RULES, "rule", str(path))
    return site


def check_cluster(workflow: Any) -> None:
    """Check that SLURM would accept the jobs of a run, for `onstart`; other executors pass unchecked.

    Raises:
        WorkflowError: it would refuse one. Snakemake prints this error as one line, without a traceback.
    """
    from snakemake.exceptions import WorkflowError  # type: ignore[import-untyped]  # optional

    if workflow.executor_plugin.name != "slurm":
        return
    kinds: dict[str, Any] = {}
    shared: dict[str, int] = {}
    for job in workflow.dag.needrun_jobs():
        if not job.is_local and job.rule.name not in kinds:
            submitted = workflow.dag.get_job_group(job) or job
            kinds[job.rule.name], shared[job.rule.name] = submitted.resources, len(submitted)
    settings = workflow.executor_settings
    try:
        if kinds:
            check_programs()
            check_profile(kinds)
            check_status(settings.status_command, settings.init_seconds_before_status_checks)
            check_jobs(kinds, shared)
    except UsageError as error:
        raise WorkflowError(str(error)) from None


def check_profile(kinds: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise a UsageError if options of the command line have replaced what the profile sets for these jobs.

    Snakemake takes `--default-resources` and `--set-resources` in place of the profile's whole section, and with it
    partition, account or GPU are lost. What the command line itself names for a job may be missing.
    """
    lost: dict[str, list[str]] = {}
    for site in _profile:
        for rule, resources in sorted(kinds.items()):
            for name, value in {**site.everywhere, **site.given.get(rule, {})}.items():
                named = re.compile(rf"(?:^|=)(?:{rule}:)?{name}=")
                same = resources.get(name) if name == "gpu" else str(resources.get(name)) == str(value).strip("'")
                if value and name not in SUMMED and not same and not any(map(named.search, sys.argv)):
                    lost.setdefault(name, []).append(rule)
    if lost:
        options = {"--default-resources": "--default-resources", "--default-res": "--default-resources"}
        options |= {"--set-resources": "--set-resources"}
        used = dict.fromkeys(options[flag] for arg in sys.argv if (flag := arg.split("=")[0]) in options)
        culprit = " and ".join(used) or "another profile"
        what = ", ".join(f"{name} of {_list(rules)}" for name, rules in lost.items())
        raise UsageError(
            f"{culprit} replaced a section of the profile slurm, and so these are not set: {what}; leave it out and "
            "write the resources into slurm/site.yaml"
        )


def check_programs() -> None:
    """Raise a UsageError if a program of SLURM is missing or its controller does not answer."""
    for name in ("sbatch", "squeue", "scontrol", "sinfo"):
        if shutil.which(name) is None:
            raise UsageError(
                f"{name} is not on PATH, so nothing can be submitted to SLURM from here; start Snakemake on a login "
                "node of the cluster, or on this machine alone with --profile local"
            )
    if (answer := run("sinfo", "-h")).returncode:
        raise UsageError(f"SLURM does not answer ({_words(answer)}); try `sinfo` until it does, then start again")


def cancel_waiting(jobs: Collection[str]) -> None:
    """Cancel those of the named jobs that are still in the queue and were submitted from this folder."""
    answer = run("squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--states=PENDING", "--format=%i|%Z")
    queued = dict(line.split("|", 1) for line in answer.stdout.splitlines() if "|" in line)
    # The number alone may belong to another job, where the cluster has restarted its count.
    if mine := sorted(job for job in jobs if queued.get(job) == str(Path.cwd())):
        run("scancel", "--state=PENDING", *mine)


def check_status(command: str | None, seconds: int) -> None:
    """Raise a UsageError if a command that is called at this interval would miss the ends of jobs."""
    if _has_database():
        return
    if command == "sacct":
        raise UsageError(
            "sacct cannot report the end of jobs, because this cluster has no accounting database; write "
            "`status_command: squeue` into slurm/site.yaml"
        )
    age = re.search(r"MinJobAge\s*=\s*(\d+)", run("scontrol", "show", "config").stdout)
    if age and int(age[1]) < 3 * seconds:
        raise UsageError(
            f"SLURM forgets a job {age[1]} seconds after its end (MinJobAge) and is asked every {seconds} seconds, "
            f"too seldom to see every end; add --slurm-init-seconds-before-status-checks {max(1, int(age[1]) // 3)}"
        )


def check_jobs(kinds: Mapping[str, Mapping[str, Any]], shared: Mapping[str, int] | None = None) -> None:
    """Check that SLURM would accept and run jobs with these resources, by the name of their rule.

    `shared` is the number of a rule's jobs in one SLURM job, if there are several.

    Raises:
        UsageError: it would refuse or never run them; the message has the reason if it is known.
    """
    known, checked = partitions(), set()
    for rule, resources in kinds.items():
        if (flags := tuple(options(resources))) in checked:
            continue
        checked.add(flags)
        if known and (reason := _reason(rule, resources, known, (shared or {}).get(rule, 1))):
            raise UsageError(f"{reason} in slurm/site.yaml")
        answer = run("sbatch", "--test-only", *flags, "--wrap=true", pauses=PAUSES)
        if len(checked) == 1:
            _note_banner(answer.stdout)
        if answer.returncode and not LATER.search(answer.stderr):
            words = _words(answer)
            if PASSING.search(answer.stderr):
                raise UsageError(f"SLURM does not answer ({words}); try `sinfo` until it does, then start again")
            mine = _from_database("associations", "user", "account") if "account" in words.lower() else []
            yours = f", yours: {_list(mine)}" if mine else ""
            raise UsageError(
                f"SLURM refuses jobs of {rule} ({words}){yours}: {' '.join(flags)}; change that in slurm/site.yaml"
            )


FLAGS = {
    **{"slurm_partition": "--partition", "slurm_account": "--account", "qos": "--qos", "constraint": "--constraint"},
    **{"runtime": "--time", "mem_mb": "--mem", "gres": "--gres"},
}
"""Flags of sbatch by the names of resources in Snakemake and its plugin."""


def options(resources: Mapping[str, Any]) -> list[str]:
    """Return the flags of sbatch for the resources of a job."""
    flags = [f"{flag}={resources[name]}" for name, flag in FLAGS.items() if resources.get(name)]
    flags.append(f"--cpus-per-task={_processors(resources)}")
    if count := resources.get("gpu"):
        model = resources.get("gpu_model")
        flags.append(f"--gpus={model}:{count}" if model else f"--gpus={count}")
    return flags + shlex.split(resources.get("slurm_extra") or "")


@dataclass(frozen=True)
class Partition:
    """Limits of a partition, and the largest memory in megabytes and number of CPUs of its nodes.

    `default`: whether jobs without a partition use it; `accounts`: those that may use it, empty: all; `minutes`: limit
    of a job, None: unlimited; `gres`: resources of each kind of node in SLURM's form, such as `gpu:a100:4`.
    """

    default: bool
    accounts: tuple[str, ...]
    minutes: int | None
    memory: int = 0
    processors: int = 0
    gres: tuple[str, ...] = ()

    @property
    def has_gpu(self) -> bool:
        """Whether some node has a GPU."""
        return any(resource.startswith("gpu") for resource in self.gres)


def partitions() -> dict[str, Partition]:
    """Return the partitions of this cluster by name."""
    known: dict[str, Partition] = {}
    for line in run("scontrol", "-ao", "show", "partition").stdout.splitlines():
        values = dict(word.split("=", 1) for word in line.split() if "=" in word)
        accounts = values.get("AllowAccounts", "ALL")
        if "PartitionName" in values:
            known[values["PartitionName"]] = Partition(
                values.get("Default") == "YES",
                () if accounts == "ALL" else tuple(accounts.split(",")),
                _minutes(values.get("MaxTime", "UNLIMITED")),
            )
    for line in run("sinfo", "-ahe", "-o", "%R|%m|%c|%G").stdout.splitlines():
        name, *node = line.split("|")
        if (here := known.get(name)) is not None and len(node) == 3:
            memory, processors = max(here.memory, int(node[0])), max(here.processors, int(node[1]))
            known[name] = replace(here, memory=memory, processors=processors, gres=(*here.gres, *node[2].split(",")))
    return known


def _default(known: Mapping[str, Partition]) -> list[str]:
    return [name for name, partition in known.items() if partition.default]


def _largest_memory(site: Site) -> int | None:
    """Return the megabytes of the largest node of the site's partitions; None: unknown to SLURM."""
    known = partitions()
    settings = (site.gpu_partition, site.cpu_partition)
    used = {name for names in settings for name in (names.split(",") if names else _default(known))}
    return max((known[name].memory for name in used if name in known), default=0) or None


def _reason(rule: str, resources: Mapping[str, Any], known: Mapping[str, Partition], shared: int) -> str | None:
    """Return the reason why jobs of a rule could never run, with advice; None if no reason is known."""
    key = "gpu_partition" if resources.get("gpu") else "cpu_partition"
    chosen = str(resources.get("slurm_partition") or "")
    names = chosen.split(",") if chosen else _default(known)
    if not names:
        return f"jobs of {rule} need a partition, this cluster has no default; set one of {_list(known)} as {key}"
    for name in names:
        if name not in known:
            return f"unknown partition {name!r} for jobs of {rule}; set one of {_list(known)} as {key}"
    reasons = [next(_reasons(rule, resources, name, known, shared), None) for name in names]
    return reasons[0] if all(reasons) else None  # of several partitions one is enough


def _reasons(
    rule: str, resources: Mapping[str, Any], name: str, known: Mapping[str, Partition], shared: int
) -> Iterator[str]:
    """Yield each reason why jobs of a rule could never run in a partition, with advice."""
    here, gpu, model = known[name], resources.get("gpu"), resources.get("gpu_model")
    if here.accounts and (account := _other_account(resources.get("slurm_account"), here.accounts)):
        yield f"jobs of {rule} have {account}, and partition {name} is for {_list(here.accounts)}; set account"
    if gpu and not here.has_gpu:
        others = [other for other, partition in known.items() if partition.has_gpu]
        where = f"{_list(others)} have some" if others else "and no other has"
        yield f"jobs of {rule} need a GPU, partition {name} has none, {where}; set gpu_partition"
    if gpu and model and not any(re.match(rf"gpu:{re.escape(model)}\b", resource) for resource in here.gres):
        yield f"jobs of {rule} need a GPU of type {model!r}, partition {name} has {_list(here.gres)}; set gpu_model"
    minutes = None if resources.get("qos") else here.minutes  # a quality of service may allow longer ones
    for unit, resource, amount, limit, each in (
        ("MB of memory", "mem_mb", resources.get("mem_mb"), here.memory, 1),
        ("processors", "cpus_per_task", _processors(resources), here.processors, 1),
        ("minutes", "runtime", resources.get("runtime"), minutes, shared),  # they take turns
    ):
        if isinstance(amount, int) and limit is not None and amount > limit:
            who = f"{shared} jobs of {rule} in one" if shared > 1 else f"jobs of {rule}"
            # Not 0, which SLURM takes for no limit.
            fits = f", or `resources: {{{rule}: {{{resource}: {limit // each}}}}}`," if limit >= each else ""
            yield f"{who} ask for {amount} {unit}, partition {name} gives at most {limit}; set another partition{fits}"


def _note_banner(output: str) -> None:
    """Say that `sbatch` prints something besides the number of a job, which `--test-only` does not print."""
    if lines := [line.strip() for line in output.splitlines() if line.strip()]:
        what = "one of them is a number, so SLURM is asked for each job's" if NUMBER.search(output) else "ignored"
        print(f"satm: sbatch prints {short(lines[0])} and such besides the number of a job: {what}", file=sys.stderr)


def _processors(resources: Mapping[str, Any]) -> Any:
    return resources.get("cpus_per_task") or resources.get("_cores", 1)


def _other_account(account: str | None, accounts: Collection[str]) -> str | None:
    """Describe an account that is not among the accounts; None if it is, or if SLURM does not report it."""
    if account:
        return None if account in accounts else f"account {account!r}"
    if not _has_database():
        return "no account"
    usual = ", ".join(_from_database("user", "name", "defaultaccount"))
    return f"account {usual!r}, your default one" if usual and usual not in accounts else None


def _from_database(table: str, key: str, column: str) -> list[str]:
    """Return values of this user in SLURM's accounting database; empty without a database."""
    answer = run("sacctmgr", "-nP", "show", table, "where", f"{key}={getpass.getuser()}", f"format={column}")
    return sorted(set(answer.stdout.split())) if answer.returncode == 0 else []


def _has_database() -> bool:
    """Return whether SLURM keeps finished jobs in an accounting database."""
    return "accounting_storage/slurmdbd" in run("scontrol", "show", "config").stdout


def _words(answer: CompletedProcess[str]) -> str:
    """Return the last line of a command's output, without its prefix."""
    lines = (answer.stderr.strip() or answer.stdout.strip() or f"exit status {answer.returncode}").splitlines()
    return re.sub(r"^((sbatch|sinfo|allocation failure|error|slurm_load_\w+): *)+", "", lines[-1]).strip()


def _list(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _minutes(limit: str) -> int | None:
    """Convert a time of SLURM to whole minutes; None: unlimited."""
    seconds = duration(limit)
    return None if seconds is None else int(seconds // 60)

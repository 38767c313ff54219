"""A SLURM cluster asked before anything is submitted: would it take the jobs, and run them? Nothing here imports torch.

What can be known of a partition is looked at first: SLURM has the same words for a GPU that there is none of and for
too much memory, and takes jobs of a wrong account or of too long a time, to let them wait for ever. Then it is asked
itself (`sbatch --test-only`), once for each kind of job.
"""

import contextlib
import getpass
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.version import Version

from satm.config import Site, load_yaml, parse
from satm.errors import UsageError, pick
from satm.version import CHECKOUT
from satm.workflow.rules import RULES

PLUGIN = "snakemake-executor-plugin-slurm"
OLDEST = "2.8"
"""Of the plugin; an older one lacks options of the profile."""

PROFILE = CHECKOUT / "workflow" / "profiles" / "slurm"
"""The profile's folder in a checkout; `slurm` in its root is a link to it."""

LATER = re.compile(r"busy|not available \(|not available now|temporarily", re.IGNORECASE)
"""Words of SLURM for a job that waits although it could run."""


def open_site() -> Site:
    """Return the names of this cluster, for the profile; a mistake ends the process with one line.

    The profile is read before Snakemake looks at its arguments, so that the line comes instead of Snakemake's usage.
    """
    try:
        check_plugin()
        site, path = find_site()
    except UsageError as error:
        print(f"satm: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    found: dict[str, Any] = {}
    if site.status_command == "auto":
        found["status_command"] = "sacct" if _has_database() else "squeue"
    if site.memory is None:
        found["memory"] = _most_memory(site)
    site = site.model_copy(update=found)
    told = f"of {path}" if path else "that SLURM chooses; slurm/site.example.yaml says how to name others"
    most = f"; at most {site.memory} MB for a job" if site.memory else ""
    print(f"satm: partitions, account and so on {told}{most}", file=sys.stderr)
    return site


def check_plugin() -> None:
    """Check that Snakemake's plugin for SLURM knows every option of the profile.

    Raises:
        UsageError: it is missing or too old.
    """
    found = "none"
    with contextlib.suppress(PackageNotFoundError):
        found = version(PLUGIN)
    if found == "none" or Version(found) < Version(OLDEST):
        raise UsageError(
            f"the profile slurm needs {PLUGIN} {OLDEST} or newer, got {found}; install it with "
            "`pip install '.[workflow]' -c constraints.txt`"
        )


def keep_nodes() -> None:
    """Let the plugin exclude no nodes from later jobs but those that the user names, for the profile.

    When a node is lost, the plugin (2.8) excludes what `sacct` says of the job's nodes. Its job is in the queue again
    by then, so that this is "None assigned", which makes `sbatch` refuse every later job, or the good node that the job
    has come to. A lost node itself gets no jobs from SLURM.
    """
    import snakemake_executor_plugin_slurm as plugin  # type: ignore[import-untyped]  # optional

    made = getattr(plugin, "get_submit_command", None)
    if made is None:
        return

    def command(*given: Any, **named: Any) -> Any:
        excluded = named["settings"].exclude_failed_nodes or ""
        return made(*given, **{**named, "failed_nodes": {node.strip() for node in excluded.split(",") if node.strip()}})

    plugin.get_submit_command = command


def find_site() -> tuple[Site, Path | None]:
    """Return what `site.yaml` says, and its path: of the folder `slurm` here or of the checkout; None: there is none.

    Raises:
        UsageError: it holds an unknown name or an unusable value.
    """
    path = next((path for folder in (Path("slurm"), PROFILE) if (path := folder / "site.yaml").is_file()), None)
    return (load_site(path) if path else Site()), path


def load_site(path: Path) -> Site:
    """Return what a file says of a cluster.

    Raises:
        UsageError: it is not YAML, or holds an unknown name or an unusable value.
    """
    site = parse(Site, load_yaml(path, empty=True), str(path))
    for rule in site.rules():
        pick(rule, RULES, f"rule in {path}")
    return site


def check_cluster(workflow: Any) -> None:
    """Check that SLURM would take the jobs of a run, for `onstart`; other executors are not looked at.

    Args:
        workflow: Snakemake's object of that name.

    Raises:
        WorkflowError: it would not. Of this one Snakemake prints the line without a traceback.
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
            check_status(settings.status_command, settings.init_seconds_before_status_checks)
            check_jobs(kinds, shared)
    except UsageError as error:
        raise WorkflowError(str(error)) from None


def check_programs() -> None:
    """Check that SLURM is here and its controller answers.

    Raises:
        UsageError: it is not, or does not.
    """
    for name in ("sbatch", "squeue", "scontrol", "sinfo"):
        if shutil.which(name) is None:
            raise UsageError(
                f"{name} is not on PATH, so nothing can be submitted to SLURM from here; start Snakemake on a login "
                "node of the cluster, or on this machine alone with --profile local"
            )
    if (asked := _ask("sinfo", "-h")).returncode:
        raise UsageError(f"SLURM does not answer ({_words(asked)}); try `sinfo` until it does, then start again")


def cancel_waiting(jobs: Collection[str]) -> None:
    """Take jobs that were submitted from this folder out of the queue, of those that are named and do not run."""
    told = _ask("squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--states=PENDING", "--format=%i|%Z")
    queued = dict(line.split("|", 1) for line in told.stdout.splitlines() if "|" in line)
    # A number alone may be that of another job, where the cluster has begun to count anew.
    if mine := sorted(job for job in jobs if queued.get(job) == str(Path.cwd())):
        _ask("scancel", "--state=PENDING", *mine)


def check_status(command: str | None, seconds: int) -> None:
    """Check that the end of a job will be seen.

    Args:
        command: that is to say how jobs ended.
        seconds: between two looks.

    Raises:
        UsageError: it never would.
    """
    if _has_database():
        return
    if command == "sacct":
        raise UsageError(
            "sacct is to say how jobs ended, but this cluster has no accounting database, so none would ever end; "
            "write `status_command: squeue` into slurm/site.yaml"
        )
    kept = re.search(r"MinJobAge\s*=\s*(\d+)", _ask("scontrol", "show", "config").stdout)
    if kept and int(kept[1]) < 3 * seconds:
        raise UsageError(
            f"SLURM forgets a job {kept[1]} seconds after its end (MinJobAge) and is asked every {seconds} seconds, "
            f"too seldom to see every end; add --slurm-init-seconds-before-status-checks {max(1, int(kept[1]) // 3)}"
        )


def check_jobs(kinds: Mapping[str, Mapping[str, Any]], shared: Mapping[str, int] | None = None) -> None:
    """Check that SLURM would take and run jobs.

    Args:
        kinds: resources of a SLURM job by the name of its rule.
        shared: how many jobs of the rule share it, where they are several.

    Raises:
        UsageError: it would not; with the reason, as far as it can be found.
    """
    known, asked = partitions(), set()
    for rule, resources in kinds.items():
        if (given := tuple(options(resources))) in asked:
            continue
        asked.add(given)
        if known and (reason := _reason(rule, resources, known, (shared or {}).get(rule, 1))):
            raise UsageError(f"{reason} in slurm/site.yaml")
        done = _ask("sbatch", "--test-only", *given, "--wrap=true")
        if done.returncode and not LATER.search(words := _words(done)):
            mine = _from_database("associations", "user", "account") if "account" in words.lower() else []
            yours = f", yours: {_list(mine)}" if mine else ""
            raise UsageError(
                f"SLURM refuses jobs of {rule} ({words}){yours}: {' '.join(given)}; change that in slurm/site.yaml"
            )


def options(resources: Mapping[str, Any]) -> list[str]:
    """Return what sbatch is asked for, from the resources of a job; the names are those of Snakemake and its plugin."""
    flags = {
        "slurm_partition": "--partition",
        "slurm_account": "--account",
        "qos": "--qos",
        "constraint": "--constraint",
        "runtime": "--time",
        "mem_mb": "--mem",
        "gres": "--gres",
    }
    found = [f"{flag}={resources[name]}" for name, flag in flags.items() if resources.get(name)]
    found.append(f"--cpus-per-task={_processors(resources)}")
    if count := resources.get("gpu"):
        model = resources.get("gpu_model")
        found.append(f"--gpus={model}:{count}" if model else f"--gpus={count}")
    return found + shlex.split(resources.get("slurm_extra") or "")


@dataclass(frozen=True)
class Partition:
    """What a partition allows, and the most that a node of it has.

    Args:
        default: SLURM takes it by itself.
        accounts: that may use it; empty: all.
        minutes: that a job may take; None: any number.
        memory: megabytes of a node.
        processors: of a node.
        gres: what SLURM calls generic resources, such as `gpu:a100:4`, of each kind of node.
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
        return any(held.startswith("gpu") for held in self.gres)


def partitions() -> dict[str, Partition]:
    """Return the partitions of this cluster by name."""
    found: dict[str, Partition] = {}
    for line in _ask("scontrol", "-ao", "show", "partition").stdout.splitlines():
        held = dict(word.split("=", 1) for word in line.split() if "=" in word)
        accounts = held.get("AllowAccounts", "ALL")
        if "PartitionName" in held:
            found[held["PartitionName"]] = Partition(
                held.get("Default") == "YES",
                () if accounts == "ALL" else tuple(accounts.split(",")),
                _minutes(held.get("MaxTime", "UNLIMITED")),
            )
    for line in _ask("sinfo", "-ahe", "-o", "%R|%m|%c|%G").stdout.splitlines():
        name, *most = line.split("|")
        if (here := found.get(name)) is not None and len(most) == 3:
            memory, processors = max(here.memory, int(most[0])), max(here.processors, int(most[1]))
            gres = (*here.gres, *most[2].split(","))
            found[name] = replace(here, memory=memory, processors=processors, gres=gres)
    return found


def _most_memory(site: Site) -> int | None:
    """Return the megabytes of the largest node of the partitions that are used; None: SLURM does not tell."""
    known = partitions()
    default = ",".join(name for name, held in known.items() if held.default)
    used = {name for names in (site.gpu_partition, site.cpu_partition) for name in (names or default).split(",")}
    return max((known[name].memory for name in used if name in known), default=0) or None


def _reason(rule: str, resources: Mapping[str, Any], known: Mapping[str, Partition], shared: int) -> str | None:
    """Return why jobs of a rule could never run, and what to do; None: nothing of the kind is known."""
    key = "gpu_partition" if resources.get("gpu") else "cpu_partition"
    named = str(resources.get("slurm_partition") or "")
    names = named.split(",") if named else [name for name, held in known.items() if held.default]
    if not names:
        return f"jobs of {rule} need a partition, for this cluster has none by default, but {_list(known)}; set {key}"
    for name in names:
        if name not in known:
            return f"there is no partition {name!r} for jobs of {rule}, but {_list(known)}; set {key}"
    found = [next(_lacks(rule, resources, name, known, shared), None) for name in names]
    return found[0] if all(found) else None  # of several partitions one is enough


def _lacks(
    rule: str, resources: Mapping[str, Any], name: str, known: Mapping[str, Partition], shared: int
) -> Iterator[str]:
    """Yield why jobs of a rule could never run in a partition, each with what to do."""
    here, gpu = known[name], resources.get("gpu")
    model = resources.get("gpu_model")
    if here.accounts and (got := _other_account(resources.get("slurm_account"), here.accounts)):
        yield f"jobs of {rule} have {got}, and partition {name} is for {_list(here.accounts)}; set account"
    if gpu and not here.has_gpu:
        others = [other for other, held in known.items() if held.has_gpu]
        where = f"{_list(others)} have some" if others else "and no other has"
        yield f"jobs of {rule} need a GPU, partition {name} has none, {where}; set gpu_partition"
    if gpu and model and not any(re.match(rf"gpu:{re.escape(model)}\b", held) for held in here.gres):
        yield f"jobs of {rule} need a GPU of type {model!r}, partition {name} has {_list(here.gres)}; set gpu_model"
    minutes = None if resources.get("qos") else here.minutes  # a quality of service may allow longer ones
    for what, resource, asked, most, each in (
        ("MB of memory", "mem_mb", resources.get("mem_mb"), here.memory, 1),
        ("processors", "cpus_per_task", _processors(resources), here.processors, 1),
        ("minutes", "runtime", resources.get("runtime"), minutes, shared),  # they take turns
    ):
        if isinstance(asked, int) and most is not None and asked > most:
            who = f"{shared} jobs of {rule} in one" if shared > 1 else f"jobs of {rule}"
            yield (
                f"{who} ask for {asked} {what}, partition {name} gives at most {most}; set another partition, or "
                f"`resources: {{{rule}: {{{resource}: {most // each}}}}}`,"
            )


def _processors(resources: Mapping[str, Any]) -> Any:
    return resources.get("cpus_per_task") or resources.get("_cores", 1)


def _other_account(account: str | None, those: Collection[str]) -> str | None:
    """Return in words an account that is none of those; None: it is one, or SLURM does not tell."""
    if account:
        return None if account in those else f"account {account!r}"
    if not _has_database():
        return "no account"
    usual = ", ".join(_from_database("user", "name", "defaultaccount"))
    return f"account {usual!r}, your default one" if usual and usual not in those else None


def _from_database(what: str, key: str, column: str) -> list[str]:
    """Return what SLURM's accounting database says of this user; nothing where there is none."""
    who = f"{key}={getpass.getuser()}"
    told = _ask("sacctmgr", "-nP", "show", what, "where", who, f"format={column}")
    return sorted(set(told.stdout.split())) if told.returncode == 0 else []


def _has_database() -> bool:
    """Say whether SLURM keeps finished jobs in an accounting database."""
    return "accounting_storage/slurmdbd" in _ask("scontrol", "show", "config").stdout


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Return what a command of SLURM answers; one that is missing or silent has failed with that as its words."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not on PATH")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} gave no answer for a minute")


def _words(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a command printed, without what it begins with."""
    lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
    return re.sub(r"^(sbatch|sinfo|allocation failure|error|slurm_load_\w+): *", "", lines[-1]).strip()


def _list(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _minutes(limit: str) -> int | None:
    """Return a time as SLURM writes it, DAYS-HOURS:MINUTES:SECONDS, in minutes; None: unlimited."""
    if (found := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)) is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (24 * days + hours) * 60 + minutes

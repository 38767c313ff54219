"""A real SLURM cluster on this machine alone: `python tests/stress/cluster.py start [--database]`, and `stop`.

One controller and two nodes of four processors and two pretend GPUs each, and one without GPUs, on the loopback
network, without systemd. It needs root and Debian's packages `slurm-wlm` and `munge`. GPUs are device files like
/dev/null: SLURM counts and assigns them, and nothing can compute on them.

Without an accounting database `sacct` knows nothing. `--database` starts one, which also knows the account `project`,
with root in it, and needs Debian's packages `slurmdbd`, `mariadb-server-core` and `mariadb-client-core`.

Partitions: `cpu` and `gpu`; `urgent`, whose jobs push those of the others back into the queue; `short`, for an hour at
most; `members`, for the account `project`; `plain`, the node without GPUs.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = Path("/var/tmp/satm-slurm")
"""Sockets, logs, and what the daemons remember."""

# Where SLURM looks by itself: a job's own commands do not see the variable SLURM_CONF.
CONFIG = Path("/etc/slurm")

MARK = "# Written by satm's test cluster."

PATH = f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}"
"""With the folders of daemons, which a user's own may lack."""

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "scontrol")

WITH_DATABASE = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db", "my_print_defaults")
"""Programs that an accounting database needs besides."""

DAEMONS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd")

DATABASE_PORT = 16820

NODES = ("node1", "node2", "node3")

SLURM = f"""{MARK}
ClusterName=satm
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that was pushed back waits as long as its first credential lasts; SLURM's two minutes are too long for a test.
AuthInfo=socket={FOLDER}/munge.socket,cred_expire=15
StateSaveLocation={FOLDER}/state
SlurmdSpoolDir={FOLDER}/spool-%n
SlurmctldPidFile={FOLDER}/slurmctld.pid
SlurmdPidFile={FOLDER}/slurmd-%n.pid
SlurmctldLogFile={FOLDER}/slurmctld.log
SlurmdLogFile={FOLDER}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
# The nodes have more processors than the machine.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Of a job that asks for none; without it a job gets all memory of its node.
DefMemPerCPU=2000
GresTypes=gpu
# Jobs start at once and not at the next look of a busy controller.
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={FOLDER}/completed.txt
# A job that takes more memory than it asked for is killed, and its log says so.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
# Without a database squeue is asked how a job ended, so that must be remembered.
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Jobs go back into the queue only if they ask for it.
JobRequeue=0
ReturnToService=2
NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=4 RealMemory=32000 Gres=gpu:2
NodeName=node3 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17003 CPUs=4 RealMemory=16000
PartitionName=cpu Nodes=node[1-2] Default=YES PriorityTier=1
PartitionName=gpu Nodes=node[1-2] PriorityTier=1
PartitionName=urgent Nodes=node[1-2] PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=node[1-2] PriorityTier=1 MaxTime=60
PartitionName=members Nodes=node[1-2] PriorityTier=1 AllowAccounts=project
PartitionName=plain Nodes=node3 PriorityTier=1
"""

ACCOUNTING = {
    "AccountingStorageType=accounting_storage/none": f"""AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=16819
AccountingStoragePass={FOLDER}/munge.socket""",
}
"""What is written instead of what where there is a database."""

SLURMDBD = f"""{MARK}
AuthType=auth/munge
AuthInfo=socket={FOLDER}/munge.socket
DbdHost=localhost
DbdPort=16819
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={DATABASE_PORT}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
LogFile={FOLDER}/slurmdbd.log
PidFile={FOLDER}/slurmdbd.pid
"""

TABLES = """CREATE DATABASE slurm;
CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
CREATE USER slurm@localhost IDENTIFIED BY 'slurm';
GRANT ALL ON slurm.* TO slurm@'127.0.0.1';
GRANT ALL ON slurm.* TO slurm@localhost;
"""

GRES = f"""{MARK}
AutoDetect=off
NodeName=node[1-2] Name=gpu File={FOLDER}/gpu[0-1]
"""


class NoClusterError(Exception):
    """This machine cannot run the cluster; the text says why."""


def lacking(database: bool = False) -> str | None:
    """Return why the cluster, or one with a database, cannot be started here; None: it can."""
    if os.getuid() != 0:
        return "the test cluster needs root, for its nodes start jobs and its pretend GPUs are device files"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]:
        return f"{missing[0]} is not installed; install the packages slurm-wlm and munge"
    if database and (missing := [name for name in WITH_DATABASE if shutil.which(name, path=PATH) is None]):
        return (
            f"{missing[0]} is not installed; install the packages slurmdbd, mariadb-server-core and mariadb-client-core"
        )
    if (held := CONFIG / "slurm.conf").exists() and not _ours(held):
        return f"{held} belongs to another cluster"
    return None


def start(database: bool = False) -> None:
    """Start the daemons and wait until all nodes are idle; a cluster that runs already is stopped first.

    Args:
        database: with an accounting database.

    Raises:
        NoClusterError: it cannot run here, or its nodes do not come up.
    """
    if why := lacking(database):
        raise NoClusterError(why)
    stop()
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (FOLDER / name).mkdir(parents=True)
    # munge refuses a socket in a folder that others could write to.
    FOLDER.chmod(0o755)
    for index in (0, 1):
        os.mknod(FOLDER / f"gpu{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    CONFIG.mkdir(exist_ok=True)
    config = SLURM
    for without, instead in ACCOUNTING.items() if database else ():
        config = config.replace(without, instead)
    (CONFIG / "slurm.conf").write_text(config)
    (CONFIG / "gres.conf").write_text(GRES)
    key = FOLDER / "munge.key"
    _run("mungekey", "--create", f"--keyfile={key}")
    munge = [f"--key-file={key}", f"--socket={FOLDER}/munge.socket", f"--log-file={FOLDER}/munged.log"]
    munge += [f"--pid-file={FOLDER}/munged.pid", f"--seed-file={FOLDER}/munged.seed"]
    _run("munged", *munge)
    if database:
        _start_database()
    _run("slurmctld")
    for node in NODES:
        _run("slurmd", "-N", node)
    _wait(lambda: states() == ["idle"] * len(NODES), "nodes", FOLDER / "slurmd-node1.log")


@contextlib.contextmanager
def no_controller() -> Iterator[None]:
    """Stop the controller, and start it again afterwards; the nodes and their jobs stay."""
    pid = int((FOLDER / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    _wait(lambda: not Path(f"/proc/{pid}").exists(), "end of the controller", FOLDER / "slurmctld.log")
    try:
        yield
    finally:
        _run("slurmctld")


def _start_database() -> None:
    """Start an empty database and what writes SLURM's jobs into it, and make the account."""
    data, first = FOLDER / "database", FOLDER / "database.sql"
    first.write_text(TABLES)
    # Settings of the machine's own database, if it has one, are not for this one.
    _run("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db")
    options = ["--no-defaults", "--user=root", f"--datadir={data}", f"--init-file={first}", "--bind-address=127.0.0.1"]
    options += [f"--port={DATABASE_PORT}", f"--socket={FOLDER}/database.socket", f"--pid-file={FOLDER}/database.pid"]
    log = FOLDER / "database.log"
    with log.open("w") as told:
        subprocess.Popen(
            ["mariadbd", *options],
            env=_alike(),
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
    _wait(_database_listens, "database", log)
    held = CONFIG / "slurmdbd.conf"
    held.touch(0o600)  # slurmdbd refuses a file that others can read
    held.write_text(SLURMDBD)
    _run("slurmdbd")
    _wait(lambda: _answers("sacctmgr", "-n", "show", "cluster"), "slurmdbd", FOLDER / "slurmdbd.log")
    _run("sacctmgr", "-i", "add", "cluster", "satm")
    _run("sacctmgr", "-i", "add", "account", "project")
    _run("sacctmgr", "-i", "add", "user", "root", "account=project")


def _database_listens() -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", DATABASE_PORT)) == 0


def _answers(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _wait(is_there: Callable[[], bool], what: str, log: Path) -> None:
    until = time.monotonic() + 30
    while not is_there():
        if time.monotonic() > until:
            raise NoClusterError(f"{what}: not ready after 30 seconds; see {log}")
        time.sleep(0.2)


def states() -> list[str]:
    """Return the state of each node; empty while the controller does not answer."""
    done = subprocess.run(["sinfo", "-hN", "-p", "cpu,plain", "-o", "%T"], capture_output=True, text=True, check=False)
    return done.stdout.split()


def stop() -> None:
    """End all daemons and jobs, and forget them."""
    if _processes():
        subprocess.run(["scancel", "--user=root"], capture_output=True, check=False)
    for sent in (signal.SIGTERM, signal.SIGKILL):
        for pid in _processes():
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.kill(pid, sent)
        until = time.monotonic() + 5
        while _processes() and time.monotonic() < until:
            time.sleep(0.1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("slurm.conf", "gres.conf", "slurmdbd.conf"):
        if _ours(held := CONFIG / name):
            held.unlink()


def _ours(path: Path) -> bool:
    return path.exists() and MARK in path.read_text()


def _processes() -> list[int]:
    """Return the daemons of this cluster that live."""
    found = []
    for path in FOLDER.glob("*.pid"):
        try:
            pid = int(path.read_text())
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except (OSError, ValueError):  # it ends just now, or has not written its number yet
            continue
        if name in DAEMONS:
            found.append(pid)
    return found


def _run(program: str, *arguments: str) -> None:
    # Into a file and not a pipe, which a daemon would hold open for as long as it lives.
    with tempfile.TemporaryFile("w+") as told:
        command = [program, *arguments]
        done = subprocess.run(command, env=_alike(), stdin=subprocess.DEVNULL, stdout=told, stderr=told, check=False)
        told.seek(0)
        if done.returncode:
            raise NoClusterError(f"{program} ended with {done.returncode}: {told.read().strip()}")


def _alike() -> dict[str, str]:
    return {**os.environ, "PATH": PATH}


if __name__ == "__main__":
    actions: dict[tuple[str, ...], Callable[[], None]] = {
        ("start",): start,
        ("start", "--database"): lambda: start(database=True),
        ("stop",): stop,
    }
    if (asked := tuple(sys.argv[1:])) not in actions:
        sys.exit("usage: python tests/stress/cluster.py start [--database] | stop")
    try:
        actions[asked]()
    except NoClusterError as error:
        sys.exit(str(error))

"""A real SLURM cluster on this machine alone: `python tests/cluster.py start`, and `stop`.

One controller and two nodes of four processors and two pretend GPUs each, and one without GPUs, on the loopback
network, without systemd. It needs root and Debian's packages `slurm-wlm` and `munge`. GPUs are device files like
/dev/null: SLURM counts and assigns them, and nothing can compute on them. There is no accounting database, so `sacct`
knows nothing.

Partitions: `cpu` and `gpu`; `urgent`, whose jobs push those of the others back into the queue; `short`, for an hour at
most; `members`, for the account `project`; `plain`, the node without GPUs.
"""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path("/var/tmp/satm-slurm")
"""Sockets, logs, and what the daemons remember."""

# Where SLURM looks by itself: a job's own commands do not see the variable SLURM_CONF.
CONFIG = Path("/etc/slurm")

MARK = "# Written by satm's test cluster."

PATH = f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}"
"""With the folders of daemons, which a user's own may lack."""

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "scontrol")

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
JobAcctGatherType=jobacct_gather/none
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

GRES = f"""{MARK}
AutoDetect=off
NodeName=node[1-2] Name=gpu File={FOLDER}/gpu[0-1]
"""


class NoClusterError(Exception):
    """This machine cannot run the cluster; the text says why."""


def lacking() -> str | None:
    """Return why the cluster cannot be started here; None: it can."""
    if os.getuid() != 0:
        return "the test cluster needs root, for its nodes start jobs and its pretend GPUs are device files"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]:
        return f"{missing[0]} is not installed; install the packages slurm-wlm and munge"
    if (held := CONFIG / "slurm.conf").exists() and not _ours(held):
        return f"{held} belongs to another cluster"
    return None


def start() -> None:
    """Start the daemons and wait until all nodes are idle; a cluster that runs already is stopped first.

    Raises:
        NoClusterError: it cannot run here, or its nodes do not come up.
    """
    if why := lacking():
        raise NoClusterError(why)
    stop()
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (FOLDER / name).mkdir(parents=True)
    # munge refuses a socket in a folder that others could write to.
    FOLDER.chmod(0o755)
    for index in (0, 1):
        os.mknod(FOLDER / f"gpu{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    CONFIG.mkdir(exist_ok=True)
    (CONFIG / "slurm.conf").write_text(SLURM)
    (CONFIG / "gres.conf").write_text(GRES)
    key = FOLDER / "munge.key"
    _run("mungekey", "--create", f"--keyfile={key}")
    munge = [f"--key-file={key}", f"--socket={FOLDER}/munge.socket", f"--log-file={FOLDER}/munged.log"]
    munge += [f"--pid-file={FOLDER}/munged.pid", f"--seed-file={FOLDER}/munged.seed"]
    _run("munged", *munge)
    _run("slurmctld")
    for node in NODES:
        _run("slurmd", "-N", node)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if states() == ["idle"] * len(NODES):
            return
        time.sleep(0.2)
    raise NoClusterError(f"the nodes are {states()}, expected idle; see {FOLDER}/slurmd-node1.log")


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
    for name in ("slurm.conf", "gres.conf"):
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
        if name in ("munged", "slurmctld", "slurmd"):
            found.append(pid)
    return found


def _run(program: str, *arguments: str) -> None:
    alike = {**os.environ, "PATH": PATH}
    done = subprocess.run([program, *arguments], env=alike, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoClusterError(f"{program} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")


if __name__ == "__main__":
    actions = {"start": start, "stop": stop}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit("usage: python tests/cluster.py start|stop")
    try:
        actions[sys.argv[1]]()
    except NoClusterError as error:
        sys.exit(str(error))

"""A real Slurm cluster on one machine: slurmctld and a few slurmd, each "node" with a host name of its own.

Nothing outside the cluster's folder is touched: authentication is a private munged, GPUs are device files that stand
for /dev/null, and every node sees an /etc/hosts of its own in a mount namespace. It needs root (namespaces, device
files) and Debian's packages slurmctld, slurmd, slurm-client and munge; bringing it up takes a fraction of a second.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare")
CPUS = 8
"""CPUs that a node claims, whatever the machine has."""

_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
# `cred_expire` is also the delay before a requeued job may start again (120 s if not set or below 5). The scheduler
# looks every second instead of every minute. `scavenge` is the partition that jobs of `debug` preempt.
_SLURM_CONF = """\
ClusterName=higgsc
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
FirstJobId={first_job}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=200000,sched_interval=1,bf_interval=1
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait=10
SlurmdTimeout=6
BatchStartTimeout=10
MessageTimeout=10
UnkillableStepTimeout=30
MinJobAge=86400
InactiveLimit=0
PropagateResourceLimits=NONE
GresTypes=gpu
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=scavenge Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
"""
# Without it slurmd refuses to start where /sys/fs/cgroup is not mounted, as in many containers.
_CGROUP_CONF = "CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n"


def missing() -> str | None:
    """Why there can be no cluster on this machine; None if there can."""
    if os.geteuid() != 0:
        return "a cluster of one's own needs root"
    absent = [program for program in PROGRAMS if _find(program) is None]
    if not absent:
        return None
    return f"not installed: {', '.join(absent)} (apt-get install slurmctld slurmd slurm-client munge)"


class Cluster:
    """A cluster below a folder; `up` starts it, `down` stops exactly what it started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.conf = root / "slurm.conf"
        self.nodes: tuple[str, ...] = ()
        self._port = 0

    @property
    def env(self) -> dict[str, str]:
        """The one variable that Slurm's commands need to find this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def up(self, nodes: int = 2, gpus: int = 2) -> None:
        """Start the daemons and wait until all nodes are idle.

        Args:
            nodes: Number of nodes: node1, node2, and so on.
            gpus: GPUs of each node; they do nothing, but Slurm hands them out.

        Raises:
            RuntimeError: A node did not come up within 20 s; the message holds the daemons' logs.
        """
        self.nodes = tuple(f"node{index + 1}" for index in range(nodes))
        self._configure(gpus)
        munge = self.root / "munge"
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        _run(["munged", "--force", *(f"--{option}={munge / name}" for option, name in files.items())])
        self.controller_up()
        for node in self.nodes:
            self.node_up(node)
        deadline = time.monotonic() + 20
        while len(self.run("sinfo", "-hN", "-p", "debug", "-t", "idle").split("\n")) != nodes + 1:
            if time.monotonic() > deadline:
                logs = "\n".join(log.read_text() for log in sorted((self.root / "log").iterdir()))
                raise RuntimeError(f"the cluster did not come up:\n{self.run('sinfo', '-Nl')}\n{logs}")
            time.sleep(0.05)

    def down(self) -> None:
        """End the daemons and every process of every job."""
        _stop(self.root / "run/slurmctld.pid", patience=0)
        for node in self.nodes:
            self.node_kill(node)
        _stop(self.root / "munge/pid")

    def controller_up(self) -> None:
        """Start slurmctld; it carries on with the state it finds."""
        _run(["slurmctld", "-f", str(self.conf)])

    def controller_down(self) -> None:
        """Stop slurmctld; jobs run on, clients cannot connect."""
        _stop(self.root / "run/slurmctld.pid")

    def node_up(self, node: str) -> None:
        """Start a node's slurmd, with a host name, an /etc/hosts and a home of root's of its own."""
        script = (
            'mount --make-rprivate / && mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/passwd" /etc/passwd '
            '&& hostname "$2" && exec "$3" -f "$1/slurm.conf" -N "$2"'
        )
        slurmd = _find("slurmd") or "slurmd"
        _run(["unshare", "--mount", "--uts", "bash", "-c", script, "_", str(self.root), node, slurmd])
        _wait_for_port(self._port + 1 + self.nodes.index(node))

    def node_kill(self, node: str) -> None:
        """Cut the power: SIGKILL for slurmd, its helpers and every process of every job on the node."""
        pid_file = self.root / f"run/{node}.pid"
        if not _alive(pid := _pid(pid_file)):
            return
        namespace = os.readlink(f"/proc/{pid}/ns/uts")
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and _namespace(entry) == namespace:
                _kill(int(entry.name), signal.SIGKILL)
        pid_file.unlink(missing_ok=True)

    def run(self, *argv: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """What one of Slurm's commands prints.

        Args:
            argv: The command.
            cwd: Its working directory.
            env: Variables to set beside those of this process.

        Raises:
            RuntimeError: The command failed; the message holds what it said.
        """
        return _run(argv, cwd=cwd, env={**os.environ, **self.env, **(env or {})})

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` knows of a job, by key: `JobState`, `Restarts`, `ExitCode` and many more."""
        line = self.run("scontrol", "show", "job", "--oneliner", job_id).splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def wait(self, job_id: str, *states: str, timeout: float = 60) -> dict[str, str]:
        """Poll until a job is in one of the states.

        Raises:
            TimeoutError: It was not, within `timeout` seconds, or will never be.
        """
        deadline = time.monotonic() + timeout
        while (job := self.job(job_id))["JobState"] not in states:
            if time.monotonic() > deadline or job["JobState"] in _FINAL:
                raise TimeoutError(f"job {job_id} is {job['JobState']} ({job['Reason']}), not {' or '.join(states)}")
            time.sleep(0.1)
        return job

    def _configure(self, gpus: int) -> None:
        for folder in ("state", "spool", "log", "run", "munge", "dev"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        host = socket.gethostname()
        port = self._port = _free_ports(len(self.nodes) + 1)
        # Job ids far from those of another cluster on this machine: scripts make port numbers of them.
        first_job = 2 * (port - 10000) + 1
        conf = [_SLURM_CONF.format(host=host, port=port, root=self.root, first_job=first_job)]
        gres = []
        for index, node in enumerate(self.nodes):
            (self.root / "spool" / node).mkdir(exist_ok=True)
            conf.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 1 + index} CPUs={CPUS} "
                f"CoresPerSocket={CPUS} RealMemory=8000 Gres=gpu:h200:{gpus} State=UNKNOWN\n"
            )
            for gpu in range(gpus):
                device = self.root / "dev" / f"{node}-gpu{gpu}"
                if not device.exists():
                    os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
                gres.append(f"NodeName={node} Name=gpu Type=h200 File={device}\n")
        self.conf.write_text("".join(conf))
        (self.root / "gres.conf").write_text("".join(gres))
        (self.root / "cgroup.conf").write_text(_CGROUP_CONF)
        names = "".join(f"127.0.0.1 {node}\n" for node in self.nodes)
        (self.root / "hosts").write_text(f"127.0.0.1 localhost {host}\n{names}")
        # Jobs get root's login environment. A login file of this machine may be slow, or left locked by a power cut.
        (self.root / "home").mkdir(exist_ok=True)
        passwd = Path("/etc/passwd").read_text()
        (self.root / "passwd").write_text(re.sub(r"(?m)^(root:.*):[^:]*:([^:]*)$", rf"\1:{self.root}/home:\2", passwd))
        key = self.root / "munge/key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(1024))


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _run(argv: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run([_find(argv[0]) or argv[0], *argv[1:]], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _free_ports(count: int) -> int:
    """The first of `count` free ports in a row, below those that the system and the scripts choose from."""
    start = 10000 + os.getpid() % 48 * 200
    for base in (*range(start, 19800, 200), *range(10000, start, 200)):
        try:
            for port in range(base, base + count):
                with socket.socket() as probe:
                    probe.bind(("0.0.0.0", port))
        except OSError:
            continue
        return base
    raise RuntimeError("no free ports between 10000 and 19800")


def _pid(path: Path) -> int | None:
    return int(path.read_text()) if path.exists() and path.read_text().strip() else None


def _alive(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()


def _namespace(process: Path) -> str | None:
    try:
        return os.readlink(process / "ns/uts")
    except OSError:  # it has ended
        return None


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _wait_for_port(port: int) -> None:
    """Wait until somebody listens; srun waits a minute for a daemon that was not there yet."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"nobody listens on port {port}")


def _stop(pid_file: Path, patience: float = 5) -> None:
    """End a daemon, by force after `patience` seconds."""
    pid = _pid(pid_file)
    if pid is None:
        return
    _kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    _kill(pid, signal.SIGKILL)
    pid_file.unlink(missing_ok=True)

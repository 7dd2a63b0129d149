"""A real SLURM of two nodes on this machine, which nothing else uses: Debian's slurm-wlm and munge.

The nodes are two loopback addresses, which jax takes as host names, with a slurmd for each.
"""

import contextlib
import getpass
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable

NODES = ("127.0.0.1", "127.0.0.2")
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SwitchType=switch/none
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmdTimeout=20
MinJobAge=86400
ReturnToService=2
SchedulerParameters=bf_interval=1,sched_interval=1
NodeName={nodes[0]} NodeAddr={nodes[0]} NodeHostname={nodes[0]} Port={ports[1]} CPUs=64
NodeName={nodes[1]} NodeAddr={nodes[1]} NodeHostname={nodes[1]} Port={ports[2]} CPUs=64
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the programs of SLURM and munge that are not installed."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
    return [each for each in programs if shutil.which(each, path=_PATH) is None]


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in probes]
    for each in probes:
        each.close()
    return ports


class Cluster:
    """The daemons; a context that ends them and all jobs.

    Args:
        folder: for everything that they write; its path is short, for munge's socket.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Cluster":
        for each in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / each).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        configuration = _CONFIGURATION.format(
            folder=self.folder,
            host=socket.gethostname(),
            user=getpass.getuser(),
            nodes=NODES,
            ports=free_ports(3),
        )
        (self.folder / "slurm.conf").write_text(configuration)
        munge = {"socket": "munge", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        munge |= {"log-file": "munge.log", "key-file": "munge.key"}
        options = [f"--{option}={self.folder / file}" for option, file in munge.items()]
        self._start("munged", "--foreground", "--force", *options)
        self.until((self.folder / "munge").exists)
        self._start("slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        self.until(lambda: self("sinfo", "-h", "-o", "%T") == "idle")
        return self

    def __exit__(self, *_: object) -> None:
        self.end_jobs()
        for each in reversed(self._daemons.values()):
            each.terminate()
            each.wait()

    def __call__(self, *command: str) -> str:
        """Run a program of SLURM, and return its output."""
        found = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return (found.stdout + found.stderr).strip()

    def _start(self, *command: str, **variables: str) -> None:
        name = f"{command[0]}-{variables.get('SLURMD_NODENAME', '')}"
        with (self.folder / f"{name}.log").open("a") as log:
            environment = self.environment | variables
            started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._daemons[name] = started

    def start_node(self, node: str) -> None:
        self._start("slurmd", "-D", "-N", node, SLURMD_NODENAME=node)

    def lose_node(self, node: str) -> None:
        """Kill all that runs on a node, what watches the rest first: its machine is gone."""
        names = {"SLURM_CONF": self.environment["SLURM_CONF"], "SLURMD_NODENAME": node}
        ours = {f"{name}={value}".encode() for name, value in names.items()}
        found = []
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if ours <= set((process / "environ").read_bytes().split(b"\0")):
                    found.append(int(process.name))
        for each in sorted(found):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self._daemons.pop(f"slurmd-{node}").wait()

    def submit(self, *arguments: str) -> str:
        """Submit a batch script, and return the job's number."""
        answer = self("sbatch", "--parsable", *arguments)
        assert answer.isdigit(), answer
        return answer

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM knows of a job: JobState, Restarts, ExitCode and others."""
        words = self("scontrol", "show", "job", "-o", number).split()
        return dict(each.split("=", 1) for each in words if "=" in each)

    def end_jobs(self) -> None:
        """Cancel all jobs, and wait until their processes are gone."""
        self("scancel", "--user", getpass.getuser())
        self.until(lambda: not self("squeue", "-h"))

    def start_again(self, number: str) -> None:
        """Wait until a job is requeued, and start it soon: SLURM would wait for two minutes.

        At once would be refused, as the credential of the first start was revoked in that second.
        """
        self.until(lambda: self.job(number)["Restarts"] != "0")
        self.until(lambda: self.job(number)["JobState"] == "PENDING")
        self("scontrol", "update", f"JobId={number}", "StartTime=now+5")

    def until(self, is_moment: Callable[[], bool], timeout: float = 600) -> None:
        deadline = time.monotonic() + timeout
        while not is_moment():
            assert time.monotonic() < deadline, self("scontrol", "show", "job")
            time.sleep(0.2)

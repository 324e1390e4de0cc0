"""A real Slurm on this machine: munge, the controller, and two nodes with one made-up GPU each.

All daemons are child processes with files in one folder. Two partitions: jobs of `high` preempt those of `low`.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cluster.ports import free_port, own_address
from pipeline.common.errors import UserError
from tests.support.containers import missing_tools

START_SECONDS = 60.0

# A preempted job receives the signal that it asked for (--signal). By default its steps get SIGTERM instead.
# In newer versions: PreemptParameters=send_user_signal.
PREEMPTION_NOTICE = "SlurmctldParameters=preempt_send_user_signal"

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "scancel")

CONFIG = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=3600
{parameters}
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1} CPUs=1 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2} CPUs=1 Gres=gpu:1
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120 MaxTime=INFINITE
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
"""


def missing_slurm() -> str:
    """Return why Slurm cannot run on this machine, "" if it can."""
    try:
        own_address()  # the nodes of a job listen on it
    except UserError as error:
        return str(error)
    return missing_tools(*PROGRAMS)


@dataclass
class Slurm:
    """The daemons, and the commands of a user."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of Slurm's programs."""
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self, *argv: str) -> None:
        """Start a daemon in the foreground; its output goes to a file."""
        with (self.folder / f"{Path(argv[0]).name}-{len(self.processes)}.out").open("wb") as out:
            self.processes.append(
                subprocess.Popen(argv, env=self.environment, stdout=out, stderr=out, start_new_session=True)
            )

    def command(self, *argv: str, cwd: Path | None = None, **variables: str) -> str:
        """Run a command of Slurm and return its output; AssertionError if it fails."""
        env = self.environment | variables
        done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def nodes(self) -> set[str]:
        """Return the states of the nodes; empty while the controller does not respond."""
        argv = ["sinfo", "--noheader", "--Node", "--format=%t"]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return set(done.stdout.split())

    def job(self, number: str) -> dict[str, str]:
        """Return what the controller knows of a job: JobState, Restarts, …"""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, condition: Callable[[], bool], description: str, seconds: float) -> None:
        """Wait for a condition; AssertionError with the ends of the logs if a daemon ends, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [str(process.args) for process in self.processes if process.poll() is not None]
            assert not ended, f"ended while waiting until {description}: {', '.join(ended)}\n{self.logs()}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {description}\n{self.logs()}"
            time.sleep(1)

    def logs(self) -> str:
        """Return the ends of the daemons' logs and outputs."""
        paths = sorted(path for path in self.folder.iterdir() if path.suffix in (".log", ".out"))
        return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in paths)

    def end(self) -> None:
        """Stop the daemons, the last started first."""
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def slurm(folder: Path, parameters: str = PREEMPTION_NOTICE) -> Iterator[Slurm]:
    """Start Slurm with its files in `folder`; at the end, cancel its jobs and stop it.

    `parameters`: a line of slurm.conf, or "".
    """
    (folder / "state").mkdir(parents=True)
    ports = {name: free_port() for name in ("controller", "node1", "node2")}
    text = CONFIG.format(host=socket.gethostname(), folder=folder, parameters=parameters, **ports)
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    # A GPU needs a device file; only its number is used. Slurm hides no device without control groups.
    (folder / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/null\n", encoding="utf-8")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    running = Slurm(folder)
    try:
        files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
        files |= {"log-file": folder / "munged.log", "seed-file": folder / "munged.seed"}
        munged = shutil.which("munged") or "munged"
        running.start(munged, "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items()))
        running.wait((folder / "munge.socket").exists, "munge is ready", START_SECONDS)
        running.start("slurmctld", "-D")
        for node in ("n1", "n2"):
            running.start("slurmd", "-D", "-N", node)
        running.wait(lambda: running.nodes() == {"idle"}, "two nodes are idle", START_SECONDS)
        yield running
        running.command("scancel", "--full", "--user", "root")
    finally:
        running.end()

"""A real SLURM of two nodes on this machine, for one test session.

``cluster`` starts munged, slurmctld and two slurmds with sockets, ports, key and state of their own, so it is no
concern of a SLURM that runs here already, and stops them at the end. It needs root and Debian's slurm-wlm; without them
the tests that ask for it are skipped. Jobs are submitted with the real ``sbatch``, from the project's root folder.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "squeue", "scancel", "setpriv")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
NOT_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")

# config_overrides: a node is what is declared here, more than this machine has, so that jobs as large as those of a
# real cluster fit. cred_expire: a requeued job waits that long, two minutes by default.
SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName=DEFAULT CPUs=128 RealMemory=1000000 Gres=gpu:8 Feature=a800,v100
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=tests Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
# Any device will do as a GPU; SLURM shall not point CUDA_VISIBLE_DEVICES at one.
GRES_CONF = "Name=gpu File={folder}/gpu[0-7] Flags=no_gpu_env\n"
# Nothing here uses control groups, but slurmd would look for them, and not start in a container that has none.
CGROUP_CONF = "CgroupPlugin=cgroup/v1\n"


@dataclass(frozen=True)
class JobResult:
    """How a job ended; of an array: its tasks' worst, and all that they printed."""

    state: str  # SLURM's: COMPLETED, FAILED, CANCELLED, …
    exit_code: int
    output: str  # stdout and stderr


class TwoNodes:
    """The cluster while it runs; ``env`` is the environment for its commands, which its jobs inherit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
        self.env |= {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CUDA_VISIBLE_DEVICES": "",  # the cluster's GPUs are none, so its jobs shall not see real ones
            "OMP_NUM_THREADS": "1",
            "MMLDM_DOCTOR": "off",  # which would take each job some seconds; tests that want it say so
        }
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the daemons; return when both nodes take jobs."""
        for name in ("state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir()
        for number in range(8):
            (self.folder / f"gpu{number}").symlink_to("/dev/null")
        host = socket.gethostname().split(".")[0]
        config = SLURM_CONF.format(folder=self.folder, host=host, ports=_free_ports(3))
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "gres.conf").write_text(GRES_CONF.format(folder=self.folder))
        (self.folder / "cgroup.conf").write_text(CGROUP_CONF)
        self._start_munge()
        self._start_daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._start_daemon("slurmd", "-D", "-N", node)
        _wait_until(lambda: self._node_states() == ["idle", "idle"], 30, self._logs)

    def stop(self) -> None:
        """Cancel what still runs, wait until it is gone, end the daemons."""
        try:
            if len(self._daemons) == 4:
                self.cancel_all()
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in self._daemons:
                try:
                    daemon.wait(5)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()

    def cancel_all(self) -> None:
        """Cancel the jobs that a test left behind, and wait until they are gone."""
        self.run("scancel", "--user=root")
        _wait_until(lambda: not self.run("squeue", "--noheader"), 30, self._logs)

    def run(self, *command: str, cwd: Path = ROOT) -> str:
        """Run one of SLURM's commands in the folder ``cwd`` and return what it prints."""
        done = subprocess.run(command, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def submit(
        self, script: Path | str, *arguments: object, options: Sequence[str] = (), array: bool = False, cwd: Path = ROOT
    ) -> int:
        """Submit ``script`` from ``cwd`` with sbatch's ``options`` and its own ``arguments``; return the job's id."""
        output = self.folder / ("job-%A-%a.out" if array else "job-%j.out")
        command = ["sbatch", "--parsable", f"--output={output}", *options, str(script), *map(str, arguments)]
        return int(self.run(*command, cwd=cwd))

    def wait(self, job: int, timeout: float) -> JobResult:
        """Return how ``job`` ended; fail the test if it has not within ``timeout`` seconds."""
        self.wait_until(lambda: all(task["JobState"] in ENDED for task in self.tasks(job)), job, timeout)
        tasks = self.tasks(job)
        worst = max(tasks, key=lambda task: (task["JobState"] != "COMPLETED", task["ExitCode"]))
        return JobResult(worst["JobState"], int(worst["ExitCode"].split(":")[0]), self.output(job))

    def wait_until(self, happened: Callable[[], bool], job: int | str, timeout: float) -> None:
        """Return once ``happened()``; else the test fails, with the output of ``job``."""
        _wait_until(happened, timeout, lambda: self.output(job))

    def restart(self, job: int | str, timeout: float) -> None:
        """Wait until ``job`` (of an array a task, "3_1") is requeued, and start it without the delay that is usual."""
        self.wait_until(lambda: self.tasks(job)[0]["JobState"] == "PENDING", job, timeout)
        time.sleep(1.5)  # a node refuses the job as long as its clock shows the second in which it was killed
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def tasks(self, job: int | str) -> list[dict[str, str]]:
        """Return what SLURM knows of each task of ``job``; of one that is no array, a single record."""
        records = self.run("scontrol", "show", "job", str(job), "--oneliner").splitlines()
        return [dict(fact.split("=", 1) for fact in record.split() if "=" in fact) for record in records]

    def output(self, job: int | str) -> str:
        """Return what ``job`` has printed so far."""
        files = sorted({Path(task["StdOut"]) for task in self.tasks(job)})
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        names = {"key-file": key} | {f"{n}-file": self.folder / f"munge.{n}" for n in ("pid", "log", "seed")}
        names["socket"] = self.folder / "munge.socket"
        # --force: munged would refuse to put its socket below a folder that not everybody can enter.
        self._start_daemon("munged", "--foreground", "--force", *(f"--{n}={file}" for n, file in names.items()))
        _wait_until(names["socket"].exists, 10, self._logs)

    def _start_daemon(self, program: str, *arguments: str) -> None:
        """Start a daemon that ends with this process, were that even killed."""
        with (self.folder / f"daemon-{len(self._daemons)}.log").open("wb") as log:
            command = ["setpriv", "--pdeathsig", "TERM", program, *arguments]
            self._daemons.append(subprocess.Popen(command, env=self.env, stdout=log, stderr=log))

    def _node_states(self) -> list[str]:
        command = ["sinfo", "--Node", "--noheader", "--format=%T"]  # fails as long as slurmctld does not answer
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60).stdout.split()

    def _logs(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()[-4000:]}" for log in sorted(self.folder.glob("daemon-*.log")))


@pytest.fixture
def two_nodes(cluster: TwoNodes) -> Iterator[TwoNodes]:
    """The SLURM of two nodes, without the jobs of other tests."""
    yield cluster
    cluster.cancel_all()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """The SLURM of two nodes, for fixtures that last longer than a test."""
    if os.geteuid() != 0:
        pytest.skip("starting a SLURM needs root")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian's package slurm-wlm)")
    cluster = TwoNodes(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


def _wait_until(happened: Callable[[], bool], timeout: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s; {explain()}")
        time.sleep(0.2)

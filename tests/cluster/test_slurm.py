import re
import socket
from pathlib import Path

import pytest

from mmldm_scale.cluster import slurm
from mmldm_scale.common.errors import UserError

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train_dit_L.sh",
    "SLURM_JOB_NODELIST": "gpu[01-03]",
    "SLURM_NTASKS": "24",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[02-03]",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "head", "MASTER_PORT": "29500"}


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Put a stand-in for scontrol, or another command, on PATH, of the given shell text; return its calls' file."""

    def install(body: str, name: str = "scontrol") -> Path:
        calls = tmp_path / "calls"
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{body}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return calls

    return install


@pytest.fixture
def resolvable(monkeypatch):
    """Name service that knows only the given hosts."""

    def install(*hosts: str) -> None:
        def getaddrinfo(host, port):
            if host not in hosts:
                raise socket.gaierror(host)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return install


def test_a_step_meets_on_its_own_first_node(scontrol, resolvable):
    calls = scontrol("echo gpu02; echo gpu03")
    resolvable("gpu02")
    place = slurm.find_rendezvous(STEP)
    assert (place.rank, place.local_rank, place.world_size, place.address) == (9, 1, 16, "gpu02")
    assert calls.read_text() == "show hostnames gpu[02-03]\n"


def test_a_step_on_one_node_meets_on_its_loopback():
    assert slurm.find_rendezvous(STEP | {"SLURM_STEP_NUM_NODES": "1"}).address == "127.0.0.1"


def test_a_node_without_a_host_name_is_reached_at_its_address(scontrol, resolvable):
    node = "NodeName=cloud-7 NodeAddr=10.0.0.7 State=IDLE"
    scontrol(f'case "$2" in hostnames) echo cloud-7 ;; node) echo "{node}" ;; esac')
    resolvable()
    assert slurm.find_rendezvous(STEP).address == "10.0.0.7"


def test_jobs_steps_and_restarts_have_ports_of_their_own(scontrol, resolvable):
    scontrol("echo gpu02")
    resolvable("gpu02")
    restarted = [{"SLURM_RESTART_COUNT": count} for count in ("1", "2")]
    changes = [{}, {"SLURM_JOB_ID": "4712"}, {"SLURM_STEP_ID": "1"}, *restarted]
    ports = [slurm.find_rendezvous(STEP | change).port for change in changes]
    assert len(set(ports)) == 5
    assert all(20_000 <= port < 32_000 for port in ports)
    assert slurm.find_rendezvous(STEP | {"SLURM_PROCID": "0"}).port == ports[0]


def test_a_jobs_script_may_choose_where_its_processes_meet(scontrol, resolvable):
    calls = scontrol("echo gpu02")
    resolvable("gpu02")
    chosen = {"MASTER_ADDR": "gpu02-ib0", "MASTER_PORT": "29511"}
    place = slurm.find_rendezvous(STEP | chosen)
    assert (place.rank, place.address, place.port) == (9, "gpu02-ib0", 29511)
    assert not calls.exists()
    usual = slurm.find_rendezvous(STEP)
    assert slurm.find_rendezvous(STEP | {"MASTER_PORT": "29511"}).address == usual.address
    assert slurm.find_rendezvous(STEP | {"MASTER_ADDR": "gpu02-ib0"}).port == usual.port
    for port in ("0", "65536", "http", "-1"):
        with pytest.raises(UserError, match=f"^MASTER_PORT={port}: must be a port, 1 to 65535$"):
            slurm.find_rendezvous(STEP | {"MASTER_PORT": port})


def test_torchrun_wins_inside_slurm():
    place = slurm.find_rendezvous(STEP | TORCHRUN)
    assert place == slurm.Rendezvous(3, 1, 4, "head", 29500)


def test_half_a_launcher_is_an_error():
    with pytest.raises(UserError, match="RANK is set but not LOCAL_RANK, MASTER_PORT:"):
        slurm.find_rendezvous({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "head"})


@pytest.mark.parametrize("env", [{}, {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}])
def test_a_process_that_nothing_launched_is_a_world_of_one(env):
    place = slurm.find_rendezvous(env)
    assert place == slurm.Rendezvous(0, 0, 1, "127.0.0.1", 0)


def test_the_place_is_exported(monkeypatch):
    for name in ("SLURM_STEP_ID", *slurm.RENDEZVOUS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    place = slurm.export_rendezvous()
    assert slurm.export_rendezvous() == place  # a second call finds the first one's
    assert {name: slurm.os.environ[name] for name in slurm.RENDEZVOUS} == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }


def test_without_scontrol_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(slurm.SlurmError, match="scontrol: not found"):
        slurm.find_rendezvous(STEP)


def array(task: int, first: int, last: int, step: int, count: int) -> dict[str, str]:
    values = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_peers_of_a_launcher_of_a_step_and_none():
    step = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "16"}
    assert slurm.peers({}) == slurm.peers({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == (0, 0, 1)
    assert slurm.peers(step) == (9, 1, 16)
    assert slurm.peers(step | {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}) == (3, 3, 4)


def test_shares_of_an_array():
    assert slurm.array_share({}) == (0, 1)
    assert [slurm.array_share(array(task, 1, 8, 1, 8)) for task in range(1, 9)] == [(i, 8) for i in range(8)]
    assert [slurm.array_share(array(task, 3, 12, 4, 3)) for task in (3, 7, 11)] == [(0, 3), (1, 3), (2, 3)]


def test_shares_of_an_uneven_array_are_refused():
    with pytest.raises(UserError, match=re.escape("use --array=0-2")):
        slurm.array_share(array(1, 0, 7, 1, 3))  # --array=0,1,7


def test_the_job():
    assert slurm.job({}) is None
    assert slurm.job(STEP) == slurm.SlurmJob("4711", "train_dit_L.sh", 0, 24)
    assert slurm.job(STEP | {"SLURM_RESTART_COUNT": "2"}).restarts == 2
    task = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "11"}
    assert slurm.job(STEP | task).id == "4700_11"


def record(restarts: int, reason: str = "None") -> str:
    """Return a stand-in's body that prints what ``scontrol show job`` does."""
    return f'echo "JobId=4711 JobState=COMPLETING Reason={reason} Restarts={restarts}"'


def test_requeue_names_this_job(scontrol, monkeypatch):
    calls = scontrol(record(restarts=1))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert slurm.requeue()
    assert calls.read_text() == "requeue Incomplete 4711\nshow job 4711 --oneliner\n"


def test_requeue_names_one_task_of_an_array(scontrol, monkeypatch):
    calls = scontrol(record(restarts=1))
    for name, value in (("JOB_ID", "4700"), ("ARRAY_JOB_ID", "4700"), ("ARRAY_TASK_ID", "11")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert slurm.requeue()
    assert calls.read_text().splitlines()[0] == "requeue Incomplete 4700_11"


def test_a_cancelled_job_is_not_requeued(scontrol, monkeypatch):
    calls = scontrol(record(restarts=2))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert not slurm.requeue()
    assert "requeue 4711\n" not in calls.read_text()


def test_at_its_time_limit_a_job_is_requeued(scontrol, monkeypatch):
    calls = scontrol(record(restarts=0, reason="TimeLimit"))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert slurm.requeue()
    assert calls.read_text().splitlines()[-1] == "requeue 4711"


def test_requeue_quotes_slurms_refusal(scontrol, monkeypatch):
    scontrol("echo 'Job is not requeueable' >&2; exit 1")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with pytest.raises(slurm.SlurmError, match="scontrol requeue Incomplete 4711: Job is not requeueable"):
        slurm.requeue()


def test_scontrol_answers_although_slurm_signals_the_processes_of_the_job(scontrol):
    scontrol("kill -TERM $$; kill -USR1 $$; kill -USR2 $$; " + record(restarts=1))
    assert slurm.job_record("4711") == {
        "JobId": "4711",
        "JobState": "COMPLETING",
        "Reason": "None",
        "Restarts": "1",
    }


def test_requeue_outside_of_a_job_is_an_error(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="belongs to none"):
        slurm.requeue()


def test_the_place_on_the_node():
    assert (slurm.rank({}), slurm.in_step({}), slurm.gpus_on_node({})) == (0, False, 0)
    assert (slurm.tasks_on_node({}), slurm.cpus_per_task({})) == (None, None)
    assert (slurm.rank(STEP), slurm.in_step(STEP)) == (9, True)
    assert slurm.rank(STEP | TORCHRUN) == 3
    nodes = [{"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": str(number)} for number in range(3)]
    assert [slurm.tasks_on_node(node) for node in nodes] == [8, 8, 4]
    assert [slurm.processes_on_node(env) for env in (nodes[2], nodes[2] | {"LOCAL_WORLD_SIZE": "2"}, {})] == [
        4,
        2,
        None,
    ]
    assert slurm.gpus_on_node({"SLURM_GPUS_ON_NODE": "4"}) == 4
    assert slurm.cpus_per_task({"SLURM_CPUS_PER_TASK": "6"}) == 6
    assert slurm.node_name({"SLURMD_NODENAME": "gpu02"}) == "gpu02"
    assert slurm.node_name({}) == socket.gethostname()


def test_jobs_in_the_queue_have_state_nodes_and_reason(scontrol):
    calls = scontrol("printf '17|PENDING||Resources\\n18_1|RUNNING|n[1-2]|None\\n'", "squeue")
    assert slurm.queued_jobs(["18_1", "17", "18_0"]) == {
        "17": slurm.QueuedJob("PENDING", "", "Resources"),
        "18_1": slurm.QueuedJob("RUNNING", "n[1-2]", "None"),
    }
    assert calls.read_text() == "--noheader --array --format=%i|%T|%N|%r --jobs=17,18\n"


@pytest.mark.parametrize(
    ("body", "jobs"),
    [
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", {}),  # ended some minutes ago
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_a_queue_without_the_job_is_not_one_that_does_not_answer(scontrol, body, jobs):
    scontrol(body, "squeue")
    assert slurm.queued_jobs(["17"]) == jobs

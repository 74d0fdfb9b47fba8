"""Jobs of our own on a real two-node SLURM: meeting, requeue, a failing rank."""

import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

TWO_TASKS = ("--nodes=2", "--ntasks-per-node=1")


def batch_script(folder: Path, body: str, program: str) -> Path:
    """Write a batch script with ``body``, in which $PROGRAM is a Python file holding ``program``; return its path."""
    python = folder / "program.py"
    python.write_text(textwrap.dedent(program))
    script = folder / "job.sh"
    script.write_text(f"#!/bin/bash\nPROGRAM={python}\n{textwrap.dedent(body)}\n")
    return script


def test_tasks_of_two_nodes_meet(two_nodes, tmp_path):
    program = """
        from datetime import timedelta
        import torch
        import torch.distributed as dist
        from mmldm_scale.cluster import slurm

        place = slurm.export_rendezvous()
        dist.init_process_group("gloo", timeout=timedelta(seconds=30))
        total = torch.tensor([2.0 ** dist.get_rank()])
        dist.all_reduce(total)
        print(f"rank {place.rank} of {place.world_size}, local {place.local_rank}: {total.item():g}", flush=True)
        dist.destroy_process_group()
    """
    script = batch_script(tmp_path, "srun python $PROGRAM", program)
    result = two_nodes.wait(two_nodes.submit(script, options=TWO_TASKS), 90)
    assert result.state == "COMPLETED", result.output
    lines = [line for line in result.output.splitlines() if line.startswith("rank ")]
    assert sorted(lines) == ["rank 0 of 2, local 0: 3", "rank 1 of 2, local 0: 3"]


@pytest.mark.parametrize(
    ("start", "places"),
    [
        pytest.param("srun --ntasks-per-node=2", {(0, 0, 4), (1, 1, 4), (2, 0, 4), (3, 1, 4)}, id="srun on both nodes"),
        pytest.param("srun --nodes=1 --ntasks=2 --nodelist=n2", {(0, 0, 2), (1, 1, 2)}, id="srun on the second node"),
        pytest.param("", {(0, 0, 1)}, id="no srun"),
    ],
)
def test_a_task_knows_its_place(two_nodes, tmp_path, start, places):
    program = """
        from mmldm_scale.cluster import slurm

        place = slurm.export_rendezvous()
        assert place.address == "127.0.0.1"  # which the nodes' names, n1 and n2, do not resolve to
        print(place.rank, place.local_rank, place.world_size)
    """
    script = batch_script(tmp_path, f"{start} python $PROGRAM", program)
    result = two_nodes.wait(two_nodes.submit(script, options=("--nodes=2", "--ntasks-per-node=2")), 30)
    assert result.state == "COMPLETED", result.output
    lines = result.output.splitlines()
    assert {tuple(map(int, line.split())) for line in lines} == places
    assert len(lines) == len(places)


WAIT_FOR_SIGNAL = """
    import signal
    import time
    from mmldm_scale.cluster import slurm

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    job = slurm.job()
    print(f"job {job.id} '{job.name}', restart {job.restarts}", flush=True)
    if job.restarts == 0:
        signal.sigwait([signal.SIGUSR1])
        slurm.requeue()
        time.sleep(60)  # SLURM ends it here
"""


def test_a_signalled_job_requeues_itself(two_nodes, tmp_path):
    script = batch_script(tmp_path, "exec srun python $PROGRAM", WAIT_FOR_SIGNAL)
    job = two_nodes.submit(script, options=("--job-name=again", "--requeue", "--open-mode=append"))
    two_nodes.wait_until(lambda: "restart 0" in two_nodes.output(job), job, 30)
    two_nodes.run("scancel", "--signal=USR1", str(job))
    two_nodes.restart(job, 30)
    result = two_nodes.wait(job, 30)
    assert result.state == "COMPLETED", result.output
    assert f"job {job} 'again', restart 0\n" in result.output
    assert f"job {job} 'again', restart 1\n" in result.output


def test_a_cancelled_job_that_requeues_itself_stays_cancelled(two_nodes, tmp_path):
    """As where the ranks end before SIGTERM reaches the process that decides: SLURM would take a plain request."""
    program = """
        import signal
        import time
        from mmldm_scale.cluster import slurm

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("waiting", flush=True)
        while slurm.job_record(slurm.job().id)["JobState"] == "RUNNING":
            time.sleep(0.1)
        print(f"requeued: {slurm.requeue()}", flush=True)
    """
    job = two_nodes.submit(batch_script(tmp_path, "exec python $PROGRAM", program), options=("--requeue",))
    two_nodes.wait_until(lambda: "waiting" in two_nodes.output(job), job, 30)
    two_nodes.run("scancel", str(job))
    two_nodes.wait_until(lambda: "requeued: False" in two_nodes.output(job), job, 30)
    assert two_nodes.wait(job, 30).state == "CANCELLED"
    assert two_nodes.tasks(job)[0]["Restarts"] == "0"


def test_tasks_of_an_array_share_the_work(two_nodes, tmp_path):
    program = """
        from mmldm_scale.cluster import slurm
        print(slurm.job().id, slurm.array_share())
    """
    script = batch_script(tmp_path, "srun python $PROGRAM", program)
    job = two_nodes.submit(script, options=("--array=2-6:2",), array=True)
    result = two_nodes.wait(job, 60)
    assert result.state == "COMPLETED", result.output
    assert sorted(result.output.splitlines()) == [f"{job}_{task} ({task // 2 - 1}, 3)" for task in (2, 4, 6)]


def test_a_failing_rank_ends_the_job_and_is_heard(two_nodes, tmp_path):
    program = """
        import sys, time
        from mmldm_scale.cluster import slurm

        if slurm.export_rendezvous().rank == 1:
            print("rank 1 cannot go on", file=sys.stderr, flush=True)
            time.sleep(1)  # srun ends the step when a task exits, and may cut off what it was still saying
            sys.exit(1)
        time.sleep(300)
    """
    script = batch_script(tmp_path, "exec srun --kill-on-bad-exit=1 python $PROGRAM", program)
    job = two_nodes.submit(script, options=TWO_TASKS)
    result = two_nodes.wait(job, 60)
    assert result.state == "FAILED"
    assert result.exit_code != 0
    assert "rank 1 cannot go on" in result.output

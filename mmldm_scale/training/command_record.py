"""``runs/NAME/commands.jsonl``: a record of each start of a run, with its code and its command line.

Each has "time", "code" (the commit of a clone and whether it was changed, or the installed version), "command", "job"
(SLURM's, or null) and "processes". ``record_command`` also prints them in one line.
"""

import json
import os
import shlex
import sys
import time
from pathlib import Path

from mmldm_scale.cluster import code_snapshot, slurm
from mmldm_scale.cluster.local_launcher import COMMAND

COMMANDS = "commands.jsonl"


def record_command(run: Path, processes: int) -> None:
    """Append the record of this start to the run's, and print it; call this on rank 0 alone.

    A record that cannot be written does not end the run; a line says so.
    """
    job = slurm.job()
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "code": code_snapshot.origin(),
        "command": os.environ.get(COMMAND) or shlex.join(["mmldm", *sys.argv[1:]]),  # with --processes, if it was given
        "job": job.id if job else None,
        "processes": processes,
    }
    print(f"{run}: {record['code']}; command: {record['command']}", file=sys.stderr, flush=True)
    try:
        with (run / COMMANDS).open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        print(f"{run / COMMANDS}: cannot be written: {error.strerror}", file=sys.stderr, flush=True)

"""``--processes N``: starts N processes on this machine, without SLURM, through torch's elastic launcher.

``run(4, ["train", "dit", …])`` is ``torchrun --standalone --nproc-per-node 4 -m mmldm_scale.cli train dit …`` without
the launcher's traceback after a failure, and no process outlives the launcher.
"""

import logging
import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mmldm_scale.common.processes import LAUNCHER


def run(processes: int, arguments: Sequence[str]) -> int:
    """Run ``mmldm`` with ``arguments`` in ``processes`` processes; return the first failure's exit status, or 0.

    SIGTERM and Ctrl-C are passed on to the processes before the launcher ends.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ[LAUNCHER] = str(os.getpid())  # torch leaves the processes behind if the launcher is killed
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(launch, sys.executable)("-m", "mmldm_scale.cli", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:  # passed on already; the processes have ended
        return 128 + error.sigval
    return 0

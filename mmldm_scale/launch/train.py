"""``mmldm train``: in this process, in several processes on this machine, or as the tasks of a SLURM job."""

import argparse
import shlex
from pathlib import Path

from mmldm_scale import config
from mmldm_scale.common.processes import follow_launcher, own_command
from mmldm_scale.config import arguments
from mmldm_scale.trainables.registry import registered
from mmldm_scale.training.resilience.signals import end_at_ctrl_c


def run(args: argparse.Namespace) -> int:
    """Train as the arguments of ``mmldm train`` ask; return the exit status.

    Raises:
        UserError: there is no such trainable or preset, or the configuration, the data or the checkpoints cannot work.
    """
    record = registered(args.trainable)
    files = arguments.files(args, record.name)
    if args.print_config:
        print(config.render(record.schema(), files, args.overrides), end="")
        return 0
    schema = config.load(record.schema(), files, args.overrides)
    arguments.require_configuration(args, record.name, Path(schema.run))
    same = [record.name, *arguments.words(args)]
    if args.under:
        from mmldm_scale.cluster import requeue

        program = [*shlex.split(args.under), *own_command()]
        doctor = [*program, "doctor", "--quick", "--trainable", *same]
        return requeue.supervise([*program, "train", *same], Path(schema.run), doctor)
    if args.processes:
        from mmldm_scale.cluster import local_launcher

        return local_launcher.run(args.processes, ["train", *same])
    follow_launcher()
    end_at_ctrl_c(Path(schema.run))
    from mmldm_scale.training import loop

    return loop.train(record.build, schema, arguments.describe(args))

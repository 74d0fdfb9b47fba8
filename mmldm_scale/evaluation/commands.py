"""Commands of ``mmldm`` that other commands run: in this process, or in one of their own."""

import argparse
import signal
import subprocess
from collections.abc import Callable, Sequence

from mmldm_scale.common.processes import die_with_parent


class CommandFailed(Exception):
    """A command ended with ``status``, which is not 0; it has printed the reason."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def run_here(
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    words: Sequence[object],
) -> None:
    """Run a command in this process.

    Args:
        add_arguments: adds its options.
        run: does its work and returns the exit status.
        words: its arguments.

    Raises:
        UserError: as ``run`` does.
        CommandFailed: it ended with another status than 0.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    status = run(parser.parse_intermixed_args([str(word) for word in words]))
    if status:
        raise CommandFailed(status)


def call(command: Sequence[object]) -> None:
    """Run ``command`` in a process of its own to its end, with our standard output and error.

    Raises:
        CommandFailed: it ended with another status than 0.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, preexec_fn=lambda: die_with_parent(signal.SIGTERM))
    if done.returncode != 0:
        raise CommandFailed(done.returncode if done.returncode > 0 else 128 - done.returncode)

"""``mmldm evaluate-run``: samples from the checkpoints of a run, measures the samples, and records the figures.

It only reads what the training writes, so it can neither slow it down nor end it. A checkpoint's weights are the
averaged ones (the first of ``training.ema_lengths``). Each evaluated checkpoint has a record in
``runs/NAME/evaluation.jsonl``, points of the curves in TensorBoard, and a report (``measurement.py`` has the folders).
What has a record is not evaluated again; what a killed process began is resumed, also if the training has removed the
checkpoint meanwhile.
"""

import argparse
import contextlib
import shutil
import sys
import time
from pathlib import Path

from mmldm_scale.common.checkpoint_folders import checkpoint_folder, find_checkpoints
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.evaluation.run_evaluation.measurement import Failed, Measurement, prepare
from mmldm_scale.evaluation.run_evaluation.selection import (
    WEIGHTS,
    CheckpointRemoved,
    identity,
    keep_weights,
    select,
)
from mmldm_scale.runs import evaluations
from mmldm_scale.runs.summary import CONFIG, read_summary
from mmldm_scale.sampling import processes

POLL_SECONDS = 30.0  # between two looks at the run's folder


def run(args: argparse.Namespace) -> int:
    """Run the command that ``args`` (of :mod:`mmldm_scale.evaluation.arguments`) describe; return the exit status.

    It is 1 if a checkpoint was left out because its weights are damaged.

    Raises:
        UserError: the run or what it is to be measured with cannot be used; a signal ended the command.
    """
    place = processes.find_place()
    processes.check_processes(args.processes, args.device)
    begun = _is_begun(args.folder, args.watch)
    measurement = prepare(args)
    if args.check:
        print(f"{args.folder}: checkpoints can be measured under protocol {measurement.label}")
        return 0
    if not begun:
        _say(f"{args.folder}: waits for the run to begin")
        while not _is_begun(args.folder, args.watch):
            time.sleep(POLL_SECONDS)
    with Leases(args.folder) as leases:
        evaluator = RunEvaluator(measurement, leases)
        with processes.ended_by_signals(place, evaluator.summary):
            try:
                evaluator.follow(args.watch)
            except Failed as failure:
                return failure.status
        print(f"{evaluator.summary()}; figures are in {args.folder / evaluations.FILE} and in TensorBoard")
    return 1 if evaluator.left_out else 0


def _is_begun(run: Path, watch: bool) -> bool:
    """Return whether ``run`` is a run of a DiT; raise UserError if it cannot be one, or, without ``watch``, is none."""
    if not (run / CONFIG).is_file():
        if watch:
            return False
        raise UserError(f"{run}: is no run: no {CONFIG} in it; with --watch, the run may begin later")
    trainable = read_summary(run).config.get("trainable", "dit")
    if trainable != "dit":
        raise UserError(f"{run}: trains a {trainable}; must be the run of a dit, which can be sampled from")
    return True


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class RunEvaluator:
    """Evaluates the checkpoints of one run; ``leases`` are on the run's folder.

    Attributes:
        left_out: checkpoints (samples seen) whose weights are damaged.
    """

    def __init__(self, measurement: Measurement, leases: Leases) -> None:
        self._measurement, self._leases = measurement, leases
        self._run: Path = measurement.args.folder
        self._said: set[str] = set()  # lines
        self.left_out: set[int] = set()

    def follow(self, watch: bool) -> None:
        """Evaluate all checkpoints that have no record yet; with ``watch``, new ones, too, until the run is finished.

        Raises: as :meth:`Measurement.measure`.
        """
        while True:
            state = read_summary(self._run)  # before its checkpoints: what comes later, the next look finds
            finished = state.state() == "finished"
            for samples_seen in self._waiting(finished):
                self._evaluate(samples_seen)
            if finished or not watch:
                return
            reason = "waits for the next checkpoint" if state.running else "nobody trains it; waits until it is resumed"
            self._say_once(f"{self._run}: {reason}")
            time.sleep(POLL_SECONDS)

    def summary(self) -> str:
        """Return how many checkpoints are evaluated, as a phrase."""
        count = len(self._records())
        return f"{self._run}: {count} checkpoint{'s' * (count != 1)} evaluated under protocol {self._measurement.label}"

    def _records(self) -> dict[int, str]:
        """Return the weights' identity of the evaluated checkpoints by the samples seen."""
        records = evaluations.read(self._run)
        return {r["samples_seen"]: r["weights"] for r in records if r["settings"] == self._measurement.settings}

    def _evaluated(self) -> set[int]:
        """Return the checkpoints that are evaluated, by the samples seen."""
        records, checkpoints = self._records(), find_checkpoints(self._run)
        replaced = set()  # a training that went back may have saved another one at the same samples
        for samples_seen in records.keys() & checkpoints.keys():
            with contextlib.suppress(CheckpointRemoved):
                if identity(checkpoints[samples_seen] / WEIGHTS) != records[samples_seen]:
                    replaced.add(samples_seen)
        return records.keys() - replaced

    def _waiting(self, finished: bool) -> list[int]:
        """Return the checkpoints to evaluate: those that a killed process has begun, and new ones."""
        begun = {
            int(kept.parent.name.removeprefix("step-")) for kept in self._measurement.folder.glob(f"step-*/{WEIGHTS}")
        }
        new = select(find_checkpoints(self._run), self._evaluated(), self._measurement.args.every, finished)
        return sorted({*begun, *new} - self.left_out)

    def _evaluate(self, samples_seen: int) -> None:
        """Evaluate one checkpoint, unless another process does, its weights are damaged, or they were removed."""
        checkpoint = checkpoint_folder(self._run, samples_seen)
        folder = self._measurement.folder / checkpoint.name
        lease = f"{folder.parent.name}-{folder.name}"
        if not self._leases.take(lease):
            self._say_once(f"{checkpoint}: another process evaluates it")
            return
        if samples_seen not in self._evaluated() and self._begin(checkpoint, folder):
            print(f"{checkpoint}: {self._measurement.count:,} samples are made and measured", flush=True)
            record = self._measurement.measure(samples_seen, folder)
            self._measurement.write_events(record)
            with self._leases.writing(self._run / evaluations.FILE):
                evaluations.append(self._run, record)
        if samples_seen in self._evaluated() and folder.is_dir():
            self._measurement.clean(folder)
        self._leases.release(lease)

    def _begin(self, checkpoint: Path, folder: Path) -> bool:
        """Keep the weights of ``checkpoint`` in ``folder``; what was begun with the same weights stays.

        Returns: whether they are there; if not, a line says why.
        """
        kept = folder / WEIGHTS
        if kept.is_dir():
            try:
                if identity(checkpoint / WEIGHTS) == identity(kept):
                    return True
            except CheckpointRemoved:
                return True
        shutil.rmtree(folder, ignore_errors=True)
        try:
            keep_weights(checkpoint, kept)
        except CheckpointRemoved:
            self._say_once(f"{checkpoint}: the training has removed it; it is not evaluated")
        except UserError as error:
            self._say_once(f"{checkpoint}: is left out: {error}")
            self.left_out.add(int(checkpoint.name.removeprefix("step-")))
        else:
            return True
        shutil.rmtree(folder, ignore_errors=True)
        return False

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            _say(line)

"""The blocks of features of an evaluation, shared among jobs and, in a job, among processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmldm_scale.cluster import local_launcher
from mmldm_scale.common.processes import own_command
from mmldm_scale.evaluation.features.extraction import MeasuredSet, Work, extract
from mmldm_scale.sampling import processes
from mmldm_scale.sampling.processes import Place


@dataclass(frozen=True)
class SharedWork:
    """All blocks of an evaluation, and the share of them that this job makes.

    Attributes:
        sets: the sets of clips that are measured.
        part, parts: which share of the blocks is this job's, from 0, of how many.
    """

    sets: Sequence[MeasuredSet]
    part: int
    parts: int

    @property
    def work(self) -> list[Work]:
        """All blocks, in the order of the sets."""
        return [(measured, block) for measured in self.sets for block in measured.blocks]

    @property
    def missing(self) -> list[Work]:
        """Those of all blocks that lack features."""
        return [(measured, block) for measured, block in self.work if measured.lacks(block)]

    @property
    def own_missing(self) -> list[Work]:
        """Those of this job's share of the blocks that lack features."""
        return [(measured, block) for measured, block in self.work[self.part :: self.parts] if measured.lacks(block)]

    def summary(self) -> str:
        """Return how many blocks there are, as a phrase."""
        count = len(self.work)
        return f"{count - len(self.missing)} of {count} blocks of features are made"

    def finish(
        self, place: Place, count: int, words: Sequence[str], report: str, write_report: Callable[[], None]
    ) -> int:
        """Make the missing blocks of this job's share, then the report if all blocks are made; return the exit status.

        Args:
            count, words: as of :meth:`extract`.
            report: name of the report's file, for the message of a job that does not make the last block.
            write_report: writes and prints the report. Every job that finds all blocks made calls it.

        Raises:
            UserError: a signal ended the job; or as :meth:`extract` and ``write_report``.
        """
        with processes.ended_by_signals(place, self.summary):
            status = self.extract(place, count, words)
            if status in processes.STOPPED_STATUSES:
                raise processes.stopped_by(status, self.summary())
            if status or place.launched:
                return status  # the launcher writes the report
            if not self.missing:
                write_report()
            elif place.speaks:
                print(f"{self.summary()}; the job that makes the last one writes {report}")
        return 0

    def extract(self, place: Place, count: int, words: Sequence[str]) -> int:
        """Make the missing blocks of this job's share; return 0, or the exit status of a process that failed.

        Args:
            count: the number of processes that make them.
            words: the command line, after ``mmldm`` and without --part, of each of these, if there are several.
        """
        missing = self.own_missing
        if count > 1 and missing:
            command = [*own_command(), *words, f"--part={self.part + 1}/{self.parts}"]
            return local_launcher.launch(command, count)
        own = missing[place.rank :: place.count]
        others = [work for work in missing if work not in own]  # helped with if their processes are slower
        extract([*own, *others], quiet=place.rank > 0)
        return 0

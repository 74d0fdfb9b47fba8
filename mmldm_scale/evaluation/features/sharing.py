"""The blocks of features of an evaluation, shared among jobs and, in a job, among processes."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmldm_scale.cluster import local_launcher
from mmldm_scale.common.processes import own_command
from mmldm_scale.evaluation.features.extraction import MeasuredSet, Work, extract
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

    def extract(self, place: Place, processes: int, words: Sequence[str]) -> int:
        """Make the missing blocks of this job's share; return 0, or the exit status of a process that failed.

        Args:
            processes: the number of processes that make them.
            words: the command line, after ``mmldm`` and without --part, of each of these, if there are several.
        """
        missing = self.own_missing
        if processes > 1 and missing:
            command = [*own_command(), *words, f"--part={self.part + 1}/{self.parts}"]
            return local_launcher.launch(command, processes)
        own = missing[place.rank :: place.count]
        others = [work for work in missing if work not in own]  # helped with if their processes are slower
        extract([*own, *others], quiet=place.rank > 0)
        return 0

"""The training samples of a run by global position: its shard sets mixed and shuffled, damaged samples replaced.

    stream = SampleStream(config, "latents")
    latents = stream.read(positions, lambda samples: decode_latent_batch([sample.members for sample in samples]))

The sample at a position is a function of (sets, weights, seed, window, position) alone, for any number of processes. A
damaged sample is quarantined and replaced by another one, which is a function of the position, too.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig, ReadingConfig, ShardTraining
from mmldm_scale.shards import adjacent_clips, reader
from mmldm_scale.shards.manifest import Kind
from mmldm_scale.shards.mixture import Mixture
from mmldm_scale.shards.reader import DamagedSample, Sample, ShardSet
from mmldm_scale.shards.remote.cache import Cache
from mmldm_scale.shards.remote.prefetch import Prefetcher
from mmldm_scale.training.data.quarantine import Quarantine

ATTEMPTS = 16  # samples tried for one position before the run ends

Decoded = TypeVar("Decoded")
Decode = Callable[[Sequence[Sample]], Decoded]
Locate = Callable[[int], tuple[int, int]]  # from a position to (set number, index)
IsRelated = Callable[[Sample, Sample, MediaConfig], bool]


class SampleStream:
    """The samples of the sets in ``config.shards``.

    Attributes:
        mixture: the sets, and the order of their samples.
        quarantine: the damaged samples so far.
    """

    def __init__(self, config: ShardTraining, kind: Kind) -> None:
        """Open the sets of ``config``.

        Raises:
            UserError: a set is missing, damaged, empty or of another kind; two sets do not fit together; or
                ``reading.stage_gigabytes`` is too small.
        """
        reading, count = config.reading, len(config.shards)
        cache = Cache(reading.stage, int(reading.stage_gigabytes * 1e9)) if reading.stage else None
        open_tars = reading.window if cache else max(1, reader.OPEN_TARS // count)
        sets = [ShardSet(location, kind, cache, open_tars) for location in config.shards]
        self.mixture = Mixture(sets, config.weights, config.training.seed, reading.window)
        limit = int(reading.damaged_share * len(self.mixture))
        self.quarantine = Quarantine(Path(config.run) / "quarantine", limit)
        self._prefetcher = Prefetcher(cache) if cache else None
        self._pools = [-1] * count  # by set: first position of the shuffle pool that this process reads
        if cache:
            _check_room(sets, reading)

    def read(
        self, positions: Sequence[int], decode: Decode[Decoded], is_continued: Callable[[int], bool] = lambda _: False
    ) -> Decoded:
        """Return ``decode(samples)`` of the samples at ``positions``; damaged samples are replaced.

        Args:
            decode: raises ValueError if a sample's content is not as expected; such a sample counts as damaged.
            is_continued: whether the sample at a position is to continue a clip (:meth:`Mixture.continued_index`).

        Raises:
            UserError: more samples are damaged than ``reading.damaged_share`` allows, or a tar cannot be read.
        """
        mixture = self.mixture
        return self._read(
            positions, lambda p: mixture.continued_index(p) if is_continued(p) else mixture.index(p), decode
        )

    def read_others(self, positions: Sequence[int], decode: Decode[Decoded]) -> Decoded:
        """Return, as :meth:`read` does, a second sample for each of ``positions`` (:meth:`Mixture.pair_index`)."""
        return self._read(positions, self.mixture.pair_index, decode)

    def spread(self, count: int, decode: Decode[Decoded]) -> list[Decoded]:
        """Return ``count`` samples (all, if there are fewer) spread evenly over all sets, each decoded by itself.

        They are the same in every run.
        """
        total = len(self.mixture)
        count = min(count, total)
        decoded = []
        for first in (i * total // count for i in range(count)):
            candidates = (self.mixture.concatenated_index((first + attempt) % total) for attempt in range(ATTEMPTS))
            decoded.append(decode([self._first_undamaged(candidates, decode)]))
        for shards in self.mixture.sets:
            shards.close()  # so that the stage can remove these tars, which training does not need now
        return decoded

    def before(self, position: int, sample: Sample, decode: Decode[Decoded]) -> Decoded | None:
        """Return ``decode([earlier])`` of the sample that ends where ``sample``, read to continue a clip, begins.

        None if the set has no such sample, if it is damaged, or if ``sample`` replaces a damaged one.

        Raises:
            UserError: as :meth:`read`.
        """
        number, index = self.mixture.continued_index(position)
        earlier = adjacent_clips.preceding_index(self.mixture.sets[number], index)
        return self._related(number, earlier, sample, adjacent_clips.is_adjacent, decode)

    def displaced(self, position: int, sample: Sample, decode: Decode[Decoded]) -> Decoded | None:
        """Return ``decode([other])`` of another window of the video of ``sample``, read at ``position``.

        Which one, :meth:`Mixture.displaced_index` says. None if it says none, if it is damaged, or if ``sample``
        replaces a damaged one.

        Raises:
            UserError: as :meth:`read`.
        """
        place = self.mixture.displaced_index(position)
        if place is None:
            return None
        return self._related(*place, sample, adjacent_clips.is_distant, decode)

    def count_continuing(self, count: int) -> int:
        """Return how many of the first ``count`` samples, all read to continue a clip, have one, judged by keys."""
        places = map(self.mixture.continued_index, range(count))
        return sum(adjacent_clips.preceding_index(self.mixture.sets[n], index) is not None for n, index in places)

    def count_displaced(self, count: int) -> int:
        """Return for how many of the first ``count`` samples :meth:`displaced` finds another window, judged by keys."""
        return sum(self.mixture.displaced_index(position) is not None for position in range(count))

    def _related(
        self, number: int, index: int | None, sample: Sample, is_related: IsRelated, decode: Decode[Decoded]
    ) -> Decoded | None:
        """Return ``decode([other])`` of sample ``index`` of set ``number``; None if it is damaged or not related."""
        if index is None:
            return None
        shards = self.mixture.sets[number]
        try:
            other = shards[index]  # not related to ``sample`` if that replaces a damaged one
            return decode([other]) if is_related(sample, other, shards.manifest.media) else None
        except (DamagedSample, ValueError) as error:
            self.quarantine.add(shards, index, str(error))
            return None

    def _read(self, positions: Sequence[int], locate: Locate, decode: Decode[Decoded]) -> Decoded:
        """Return ``decode(samples)`` of the samples at ``locate(position)`` for each of ``positions``."""
        if self._prefetcher:
            self._prefetch(self._prefetcher, positions)
        try:
            return decode(self.mixture.read_indices([locate(position) for position in positions]))
        except (DamagedSample, ValueError):
            candidates = (self._candidates(position, locate) for position in positions)
            return decode([self._first_undamaged(indices, decode) for indices in candidates])

    def _candidates(self, position: int, locate: Locate) -> Iterable[tuple[int, int]]:
        """Return the sample at ``position``, then its replacements in order, as (set number, index)."""
        replacements = (self.mixture.replacement(position, attempt) for attempt in range(1, ATTEMPTS))
        return chain([locate(position)], replacements)

    def _first_undamaged(self, candidates: Iterable[tuple[int, int]], decode: Decode[Decoded]) -> Sample:
        """Return the first of ``candidates`` (set number, index) that is not damaged; quarantine those before it."""
        for number, index in candidates:
            shards = self.mixture.sets[number]
            try:
                sample = self.mixture.relabelled(number, shards[index])
                decode([sample])
                return sample
            except (DamagedSample, ValueError) as error:
                detail = str(error)
                self.quarantine.add(shards, index, detail)
        raise UserError(f"{shards.location}: {ATTEMPTS} samples in a row are damaged; the last: {detail}")

    def _prefetch(self, prefetcher: Prefetcher, positions: Sequence[int]) -> None:
        """Have the tars of the shuffle pool at ``positions`` and of the next pool staged in the background."""
        for number, place in dict(map(self.mixture.locate, positions)).items():
            order, shards = self.mixture.orders[number], self.mixture.sets[number]
            pool = order.pool(place)
            if pool.first != self._pools[number]:
                self._pools[number] = pool.first
                soon = dict.fromkeys([*pool.shards, *order.pool(pool.end).shards])
                prefetcher.request(number, [shards.stored_tar(shard) for shard in soon])


def _check_room(sets: Sequence[ShardSet], reading: ReadingConfig) -> None:
    """Raise UserError if the stage is too small for the shuffle pool that is read and the one after it, of each set."""
    needed = 0  # bytes
    for shards in sets:
        sizes = sorted((entry.bytes for entry in shards.manifest.shards), reverse=True)
        needed += sum(sizes[: 2 * reading.window])
    if needed > reading.stage_gigabytes * 1e9:
        raise UserError(
            f"reading.stage_gigabytes: {reading.stage_gigabytes:g} must be at least {needed / 1e9:.3g}, to hold twice "
            f"reading.window = {reading.window} shards of each set; raise it or lower reading.window"
        )

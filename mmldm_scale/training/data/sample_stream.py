"""What a run learns from, by global position: the samples of its sets, mixed, ordered, staged, none of them damaged.

    samples = Samples(config, "latents")
    latents = samples.read(positions, lambda found: decode_latent_batch([sample.members for sample in found]))

What stands at a position is a function of (sets, weights, seed, window, position), whatever the number of processes. A
sample that turns out damaged is quarantined, and another one, a function of its position as well, takes its place.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ReadingConfig, ShardTraining
from mmldm_scale.shards import adjacent_clips, reader
from mmldm_scale.shards.manifest import Kind
from mmldm_scale.shards.mixture import Mixture
from mmldm_scale.shards.reader import DamagedSample, Sample, ShardSet
from mmldm_scale.shards.remote.cache import Cache
from mmldm_scale.shards.remote.prefetch import Prefetcher
from mmldm_scale.training.data.quarantine import Quarantine

ATTEMPTS = 16  # samples that are tried for one position

Decoded = TypeVar("Decoded")
Decode = Callable[[Sequence[Sample]], Decoded]
Find = Callable[[int], tuple[int, int]]  # from a position to (set number, index)


class Samples:
    """The samples that ``config`` names.

    Attributes:
        mixture: the sets and their order.
        quarantine: what was damaged so far.
    """

    def __init__(self, config: ShardTraining, kind: Kind) -> None:
        """Open the sets of ``config``.

        Raises:
            UserError: one is missing, damaged, empty or of another kind; two do not belong together; there is too
                little room to stage them.
        """
        reading, count = config.reading, len(config.shards)
        cache = Cache(reading.stage, int(reading.stage_gigabytes * 1e9)) if reading.stage else None
        open_tars = reading.window if cache else max(1, reader.OPEN_TARS // count)
        sets = [ShardSet(location, kind, cache, open_tars) for location in config.shards]
        self.mixture = Mixture(sets, config.weights, config.training.seed, reading.window)
        limit = int(reading.damaged_share * len(self.mixture))
        self.quarantine = Quarantine(Path(config.run) / "quarantine", limit)
        self._prefetcher = Prefetcher(cache) if cache else None
        self._pools = [-1] * count  # where the pool begins that this process reads of each set
        if cache:
            _check_room(sets, reading)

    def read(self, positions: Sequence[int], decode: Decode[Decoded]) -> Decoded:
        """Return ``decode(samples)`` of the samples at ``positions``, with others in place of damaged ones.

        Args:
            decode: raises ValueError if what a sample holds is not what it should be; that counts as damage.

        Raises:
            UserError: more is damaged than ``reading.damaged_share`` allows, or a tar cannot be read at all.
        """
        return self._read(positions, self.mixture.index, decode)

    def read_others(self, positions: Sequence[int], decode: Decode[Decoded]) -> Decoded:
        """Return as :meth:`read` another sample for each of ``positions``: :meth:`Mixture.pair_index`."""
        return self._read(positions, self.mixture.pair_index, decode)

    def spread(self, count: int, decode: Decode[Decoded]) -> list[Decoded]:
        """Return ``count`` samples (fewer if there are not as many) spread evenly over all sets, each decoded alone.

        They are the same in every run.
        """
        total = len(self.mixture)
        count = min(count, total)
        found = []
        for first in (i * total // count for i in range(count)):
            places = (self.mixture.concatenated_index((first + further) % total) for further in range(ATTEMPTS))
            found.append(decode([self._whole(places, decode)]))
        for shards in self.mixture.sets:
            shards.close()  # tars from all over the sets would stay in the stage for nothing
        return found

    def before(self, position: int, sample: Sample, decode: Decode[Decoded]) -> Decoded | None:
        """Return ``decode([earlier])`` of the sample that ends where ``sample``, read at ``position``, begins.

        None if its set has none, if that one is damaged, or if ``sample`` stands in for a damaged one.

        Raises:
            UserError: as :meth:`read`.
        """
        number, index = self.mixture.index(position)
        shards = self.mixture.sets[number]
        found = adjacent_clips.preceding_index(shards, index)
        if found is None:
            return None
        try:
            earlier = shards[found]  # which does not precede one that stands in for a damaged one
            return decode([earlier]) if adjacent_clips.is_adjacent(sample, earlier, shards.manifest.media) else None
        except (DamagedSample, ValueError) as error:
            self.quarantine.add(shards, found, str(error))
            return None

    def count_continuing(self, count: int) -> int:
        """Return how many of the first ``count`` samples have, by their keys, one before them in their set."""
        places = (self.mixture.index(position) for position in range(count))
        return sum(
            adjacent_clips.preceding_index(self.mixture.sets[number], index) is not None for number, index in places
        )

    def _read(self, positions: Sequence[int], find: Find, decode: Decode[Decoded]) -> Decoded:
        """Return ``decode(samples)`` of those that ``find`` finds for ``positions``."""
        if self._prefetcher:
            self._look_ahead(positions)
        try:
            return decode(self.mixture.read_indices([find(position) for position in positions]))
        except (DamagedSample, ValueError):
            return decode([self._whole(self._candidates(position, find), decode) for position in positions])

    def _candidates(self, position: int, find: Find) -> Iterable[tuple[int, int]]:
        replacements = (self.mixture.replacement(position, attempt) for attempt in range(1, ATTEMPTS))
        return chain([find(position)], replacements)

    def _whole(self, places: Iterable[tuple[int, int]], decode: Decode[Decoded]) -> Sample:
        """Return the first sample of ``places`` (set number, index) that is not damaged; quarantine those before it."""
        for number, index in places:
            shards = self.mixture.sets[number]
            try:
                sample = self.mixture.relabelled(number, shards[index])
                decode([sample])
                return sample
            except (DamagedSample, ValueError) as error:
                detail = str(error)
                self.quarantine.add(shards, index, detail)
        raise UserError(f"{shards.location}: {ATTEMPTS} samples in a row are damaged; the last: {detail}")

    def _look_ahead(self, positions: Sequence[int]) -> None:
        """Have the tars of the pool at ``positions`` and of the one after it staged in the background."""
        for number, place in dict(map(self.mixture.locate, positions)).items():
            order, shards = self.mixture.orders[number], self.mixture.sets[number]
            pool = order.pool(place)
            if pool.first != self._pools[number]:
                self._pools[number] = pool.first
                wanted = dict.fromkeys([*pool.shards, *order.pool(pool.end).shards])
                self._prefetcher.request(number, [shards.stored_tar(shard) for shard in wanted])


def _check_room(sets: Sequence[ShardSet], reading: ReadingConfig) -> None:
    """Raise UserError if the stage cannot hold the pools that are read and, beside them, those that come next."""
    need = 0
    for shards in sets:
        tars = sorted((entry.bytes for entry in shards.manifest.shards), reverse=True)
        need += sum(tars[: 2 * reading.window])
    if need > reading.stage_gigabytes * 1e9:
        raise UserError(
            f"reading.stage_gigabytes={reading.stage_gigabytes:g}: too little for twice reading.window="
            f"{reading.window} shards; {need / 1e9:.3g} fits, or a smaller window"
        )

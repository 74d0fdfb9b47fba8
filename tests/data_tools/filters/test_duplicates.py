"""Near-duplicates among hashes, against comparing each with each."""

import numpy as np
import pytest

from data_tools.filters.duplicates import find_duplicates

RANDOM = np.random.default_rng(0)


def flipped(hashes: np.ndarray, bits: int, until: int = 256) -> np.ndarray:
    """Return copies in which ``bits`` of the first ``until`` bits of each hash differ."""
    copies = np.unpackbits(hashes, axis=1)
    for copy in copies:
        copy[RANDOM.choice(until, bits, replace=False)] ^= 1
    return np.packbits(copies, axis=1)


def brute(hashes: np.ndarray, bits: int) -> list[int]:
    """Keep the best, drop what is near to something kept: each compared with each."""
    of: list[int] = []
    for number, own in enumerate(hashes):
        differing = [np.unpackbits(own ^ other) for other in hashes[:number]]
        near = [
            i for i, bit in enumerate(differing) if of[i] < 0 and bit.sum() <= bits and bit[192:].sum() <= bits // 2
        ]
        of.append(near[0] if near else -1)
    return of


def test_as_comparing_each_with_each():
    some = RANDOM.integers(0, 256, (120, 32), dtype=np.uint8)
    near = flipped(some[:60], 6)
    further = flipped(near[:30], 6)  # about 12 from the first, which is kept
    same = some[20:40]
    everything = np.concatenate([some, near, further, same])[RANDOM.permutation(230)]
    for bits in (0, 4, 8, 12):
        assert find_duplicates(everything, bits).of.tolist() == brute(everything, bits)


@pytest.mark.parametrize(("bits", "share"), [(8, 1.0), (16, 0.99), (20, 0.95)])
def test_few_are_missed(bits, share):
    some = RANDOM.integers(0, 256, (3000, 32), dtype=np.uint8)
    found = find_duplicates(np.concatenate([some, flipped(some, bits, until=192)]), 20)
    assert (found.of[:3000] == -1).all()
    assert (found.of[3000:] == np.arange(3000)).mean() >= share
    assert found.crowded == 0


def test_one_picture_with_many_sounds_is_no_duplicate():
    hashes = RANDOM.integers(0, 256, (5000, 32), dtype=np.uint8)
    hashes[:, :24] = 7
    found = find_duplicates(hashes, 20)
    assert (found.of >= 0).sum() <= 2
    assert found.crowded > 4000  # and it says that it could not look at all of them


def test_none_and_one():
    assert find_duplicates(np.zeros((0, 32), np.uint8), 20).of.tolist() == []
    assert find_duplicates(np.zeros((1, 32), np.uint8), 20).of.tolist() == [-1]
    assert find_duplicates(np.zeros((3, 32), np.uint8), 0).of.tolist() == [-1, 0, 0]

"""Near-duplicates among millions of perceptual hashes, without comparing each with each.

Two hashes that differ in few bits have some bytes in common. In each of 32 tables the hashes are sorted by three of
their bytes, taken from three of the four hashed images, and only neighbours with the same three are compared. Of pairs
whose 8 differing bits lie anywhere next to none is missed, of those with 20, more than strong re-encoding changes, 2 %.
"""

from dataclasses import dataclass

import numpy as np

from .perceptual_hash import BYTES

STEP = 9  # bytes from one byte of a key to the next: it lies in the next image
NEIGHBOURS = 24  # that each hash is compared with in each table, at most


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Which hashes are near-duplicates of others.

    Attributes:
        of: (N,) int64, for each hash the better one that it duplicates, or -1 for those to keep.
        crowded: hashes that share a key with so many that not all of them were compared in that table.
    """

    of: np.ndarray
    crowded: int


def find_duplicates(hashes: np.ndarray, bits: int) -> Duplicates:
    """Return which of ``hashes`` duplicate a better one that is kept.

    Args:
        hashes: (N, 32) uint8, the best first.
        bits: in which duplicates differ at most, of 256; of them at most half among the 64 of the sound, since many
            sounds go with the same blank or standing picture.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64)  # (N, 4)
    order = np.lexsort(words.T)  # stable: of the same hashes the best comes first
    new = np.ones(len(order), bool)
    new[1:] = (words[order[1:]] != words[order[:-1]]).any(1)
    best = np.empty(len(order), np.int64)  # of those with the same hash
    best[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    distinct = np.sort(order[new])
    pairs, crowded = _near_pairs(hashes[distinct], bits)
    of = np.full(len(hashes), -1)
    for better, worse in distinct[pairs].tolist():  # by the worse one: what is better has been decided
        if of[worse] < 0 and of[better] < 0:
            of[worse] = better
    same = best != np.arange(len(best))
    of[same] = np.where(of[best[same]] >= 0, of[best[same]], best[same])
    return Duplicates(of, crowded)


def _near_pairs(hashes: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Return the pairs of rows of ``hashes`` that are near, (M, 2), smaller first, by the larger; and the crowded."""
    words = np.ascontiguousarray(hashes).view(np.uint64)
    codes = [np.empty(0, np.int64)]
    crowded = np.zeros(len(hashes), bool)
    for table in range(BYTES):
        key = np.zeros(len(hashes), np.uint64)
        for image in range(4):  # the fourth one's byte only brings the most alike next to each other
            key = key << np.uint64(8) | hashes[:, (table + image * STEP) % BYTES]
        packed = np.sort(key << np.uint64(32) | np.arange(len(hashes), dtype=np.uint64))
        order, key = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64), packed >> np.uint64(40)
        for step in range(1, min(NEIGHBOURS, len(key) - 1) + 1):
            at = np.flatnonzero(key[step:] == key[:-step])
            if not len(at):
                break
            first, second = order[at], order[at + step]
            near = _near(words[first], words[second], bits)
            first, second = first[near], second[near]
            codes.append(np.maximum(first, second) * len(hashes) + np.minimum(first, second))
        else:
            crowded[order[: -NEIGHBOURS - 1][key[NEIGHBOURS + 1 :] == key[: -NEIGHBOURS - 1]]] = True
    pairs = np.unique(np.concatenate(codes))
    return np.stack([pairs % max(1, len(hashes)), pairs // max(1, len(hashes))], 1), int(crowded.sum())


def _near(words: np.ndarray, others: np.ndarray, bits: int) -> np.ndarray:
    """Return which pairs of hashes, (P, 4) uint64 each, are near, (P,) bool."""
    differing = np.bitwise_count(words ^ others)  # (P, 4) uint8
    return (differing.sum(1, dtype=np.int64) <= bits) & (differing[:, 3] <= bits // 2)

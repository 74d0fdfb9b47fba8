import itertools
import pickle

import numpy as np
import pytest

from mmldm_scale.shards.shuffle import ShuffledOrder

SIZES = [7, 0, 5, 9, 1, 6, 8, 3, 0, 5, 4, 9, 2]  # 59 samples in 13 shards, two of them empty
SHARD = np.repeat(np.arange(len(SIZES)), SIZES)  # of each sample


def epoch(order: ShuffledOrder, number: int) -> list[int]:
    return [order(number * order.samples + i) for i in range(order.samples)]


@pytest.mark.parametrize("window", [1, 3, 4, 100])
def test_every_epoch_visits_each_sample_once(window):
    order = ShuffledOrder(SIZES, seed=3, window=window)
    for number in (0, 1, 7):
        assert sorted(epoch(order, number)) == list(range(59))


@pytest.mark.parametrize("window", [3, 100])
def test_epochs_seeds_and_streams_differ(window):
    settings = [(0, "order"), (1, "order"), (0, "order/1")]
    orders = [
        epoch(ShuffledOrder(SIZES, seed, window, stream), number) for seed, stream in settings for number in (0, 1, 2)
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(np.array(one) == np.array(other)) < 0.2


@pytest.mark.parametrize(("sizes", "window"), [([50], 1), ([10] * 5, 1), ([10] * 5, 5)])
def test_a_shards_samples_follow_each_other_anew_in_each_epoch(sizes, window):
    order = ShuffledOrder(sizes, seed=0, window=window)
    followers = [set(itertools.pairwise(epoch(order, number))) for number in range(6)]
    for one, other in itertools.combinations(followers, 2):
        assert len(one & other) < 12


def test_depends_on_nothing_but_seed_and_position():
    straight = [ShuffledOrder(SIZES, seed=5, window=4)(position) for position in range(200)]
    order = ShuffledOrder(SIZES, seed=5, window=4)
    shuffled = np.random.default_rng(0).permutation(200)
    assert {int(p): order(int(p)) for p in shuffled} == dict(enumerate(straight))
    assert [pickle.loads(pickle.dumps(order))(position) for position in range(200)] == straight


@pytest.mark.parametrize("window", [1, 3, 4, 5, 6])
def test_a_stretch_touches_few_shards_and_mixes_them_all(window):
    order = ShuffledOrder(SIZES, seed=1, window=window)
    position, shards = 0, []
    while position < 59:
        pool = order.pool(position)
        found = [order(p) for p in range(pool.first, pool.end)]
        assert pool.first == position
        assert {int(SHARD[i]) for i in found} == set(pool.shards)
        assert len(pool.shards) <= window
        shards.append(pool.shards)
        position = pool.end
    assert sorted(sum(shards, ())) == [n for n, size in enumerate(SIZES) if size]
    counts = [len(group) for group in shards]
    assert max(counts) - min(counts) <= 1  # no pool much smaller than the others at an epoch's end


def test_within_a_pool_neighbours_come_from_anywhere():
    order = ShuffledOrder([50] * 40, seed=0, window=8)
    shards = np.array([order(p) // 50 for p in range(2000)])
    assert np.mean(shards[1:] == shards[:-1]) == pytest.approx(1 / 8, abs=0.03)


def test_every_sample_may_come_at_any_time_of_an_epoch():
    """Over many epochs each sample's place is uniform: neither shards at the end nor short ones keep theirs."""
    order = ShuffledOrder(SIZES, seed=2, window=3)
    places = np.empty((600, 59))
    for number in range(600):
        places[number, epoch(order, number)] = np.arange(59)
    assert np.abs(places.mean(0) - 29).max() < 4.5 * 17 / 600**0.5  # 17: a uniform place's standard deviation
    for edge in (0, 58):  # the first and the last of an epoch
        counts = (places == edge).sum(0)
        by_shard = [counts[shard == SHARD].sum() / size for shard, size in enumerate(SIZES) if size]
        assert max(by_shard) < 4 * 600 / 59


def test_positions_beyond_any_run_fit():
    assert 0 <= ShuffledOrder([4, 3], seed=0, window=1)(10**15) < 7


def test_a_large_set_takes_no_time():
    order = ShuffledOrder([256] * 8000, seed=0, window=64)  # two million samples
    assert len({order(position) for position in range(1_000_000, 1_000_500)}) == 500


@pytest.mark.parametrize(("sizes", "window"), [([], 1), ([0, 0], 1), ([3], 0)])
def test_what_has_no_order(sizes, window):
    with pytest.raises(ValueError, match="must be at least 1"):
        ShuffledOrder(sizes, seed=0, window=window)

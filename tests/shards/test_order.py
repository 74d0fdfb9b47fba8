import pickle

import numpy as np
import pytest

from mmldm_scale.shards.order import Order


def epoch(order: Order, number: int) -> list[int]:
    return [order(number * order.samples + i) for i in range(order.samples)]


def test_every_epoch_visits_each_sample_once():
    order = Order(101, seed=3)
    for number in (0, 1, 7):
        assert sorted(epoch(order, number)) == list(range(101))


def test_epochs_and_seeds_differ():
    orders = [epoch(Order(101, seed), number) for seed in (0, 1) for number in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(np.array(one) == np.array(other)) < 0.1


def test_depends_on_nothing_but_seed_and_position():
    straight = [Order(17, seed=5)(position) for position in range(60)]
    order = Order(17, seed=5)
    shuffled = np.random.default_rng(0).permutation(60)
    assert {int(p): order(int(p)) for p in shuffled} == dict(enumerate(straight))
    assert [pickle.loads(pickle.dumps(order))(position) for position in range(60)] == straight


def test_positions_beyond_any_run_fit():
    assert 0 <= Order(7, seed=0)(10**15) < 7


def test_an_empty_set_has_no_order():
    with pytest.raises(ValueError, match="0 samples"):
        Order(0, seed=0)

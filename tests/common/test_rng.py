"""Random numbers as a function of what they are for."""

import numpy as np

from mmldm_scale.common.rng import generator, standard_normal


def test_same_key_same_numbers_and_any_other_key_others() -> None:
    draw = generator(1, "noise", 5).standard_normal(64)
    assert np.array_equal(draw, generator(1, "noise", 5).standard_normal(64))
    for other in (generator(2, "noise", 5), generator(1, "time", 5), generator(1, "noise", 6), generator(1, "noise")):
        assert abs(np.corrcoef(draw, other.standard_normal(64))[0, 1]) < 0.5


def test_positions_are_independent_normals_together() -> None:
    draws = np.concatenate([generator(0, "noise", p).standard_normal(50) for p in range(2000)])
    assert abs(draws.mean()) < 0.02
    assert abs(draws.std() - 1) < 0.02
    assert abs(np.corrcoef(draws[:-50], draws[50:])[0, 1]) < 0.02


def test_known_values_pin_the_stream_across_versions() -> None:
    assert generator(0, "pinned", 0).integers(0, 1000, 4).tolist() == [141, 716, 167, 18]


def test_noise_is_each_positions_own() -> None:
    found = standard_normal(1, "noise", [7, 5], (2, 3))
    assert found.dtype == np.float32
    for draw, position in zip(found, (7, 5), strict=True):
        assert np.array_equal(draw, generator(1, "noise", position).standard_normal((2, 3), dtype=np.float32))

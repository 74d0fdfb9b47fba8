import dataclasses
import itertools

import numpy as np
import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.shards.mixture import Mixture, mixed_statistics
from mmldm_scale.shards.reader import DamagedSample, ShardSet
from tests.support.datasets.latent_sets import write_windows


@pytest.fixture
def sets(tmp_path, make_set):
    """Three sets of 14, 9 and 5 latent samples with other keys, and classes that overlap."""
    sizes = {"a": (3, 5, 0), "b": (2, 5, 100), "c": (1, 6, 200)}
    classes = {"a": ["v"], "b": ["dog", "v"], "c": ["cat"]}
    folders = {}
    for name, (shards, samples, first) in sizes.items():
        folders[name] = make_set(tmp_path / name, "latents", shards, samples, first)
        change(folders[name], classes=classes[name])
    return [ShardSet(folder, "latents") for folder in folders.values()]


def change(folder, **fields):
    dataclasses.replace(Manifest.read(folder), **fields).write(folder)


def mixture(sets, weights=(), seed=0, window=64):
    return Mixture(sets, list(weights), seed, window)


@pytest.mark.parametrize("weights", [[1, 1, 1], [3, 1, 0.5], [0.1, 0.2, 0.7], [1e-3, 1, 1e3], []])
def test_any_stretch_holds_each_sets_share(sets, weights):
    stream = mixture(sets, weights)
    numbers = np.array([stream.locate(position)[0] for position in range(3000)])
    shares = np.array(weights or [14, 9, 5]) / sum(weights or [14, 9, 5])
    counts = np.stack([np.concatenate([[0], np.cumsum(numbers == number)]) for number in range(3)], axis=1)
    random = np.random.default_rng(0)
    for first, last in np.sort(random.integers(0, 3001, (2000, 2)), axis=1):
        error = counts[last] - counts[first] - shares * (last - first)
        assert np.abs(error).max() < 3


def test_each_set_goes_through_its_own_epochs(sets):
    stream = mixture(sets, [2, 1, 1], window=2)
    places = [stream.locate(position) for position in range(400)]
    for number, one in enumerate(sets):
        own = [place for n, place in places if n == number]
        assert own == list(range(len(own)))  # none skipped, none twice
        for first in range(0, len(own) - len(one), len(one)):
            keys = {one.key(stream.orders[number](place)) for place in range(first, first + len(one))}
            assert len(keys) == len(one)


def test_another_sample_is_of_the_same_pool_and_never_the_same(sets):
    stream = mixture(sets, [2, 1, 1], window=2)
    pairs = [(stream.index(position), stream.pair_index(position)) for position in range(400)]
    for position, ((own_set, own), (other_set, other)) in enumerate(pairs):
        number, place = stream.locate(position)
        assert own_set == other_set == number
        assert own != other
        assert {own, other} <= set(stream.orders[number].pool(place).indices.tolist())
    again = np.random.default_rng(0).permutation(400).tolist()
    fresh = mixture(sets, [2, 1, 1], window=2)
    assert [fresh.pair_index(position) for position in again] == [pairs[position][1] for position in again]
    epoch = [other for (number, _), other in pairs if number == 0][:14]
    assert len(set(epoch)) == 14  # each comes up equally often


def test_the_other_sample_is_of_another_video_where_the_pool_has_one(tmp_path):
    windows = [(video, start) for video in ("a", "b") for start in range(6)] + [("c", 0)]
    shards = ShardSet(write_windows(tmp_path / "set", windows, MediaConfig(size=64), 50))
    stream = Mixture([shards], [], seed=0, window=64)
    pairs = [(windows[stream.index(p)[1]], windows[stream.pair_index(p)[1]]) for p in range(260)]
    assert all(own[0] != other[0] for own, other in pairs)
    assert len({other for _, other in pairs}) == 13
    alone = ShardSet(write_windows(tmp_path / "alone", windows[:6], MediaConfig(size=64), 50))
    stream = Mixture([alone], [], seed=0, window=64)
    assert all(stream.index(p) != stream.pair_index(p) for p in range(60))


def test_without_weights_it_is_like_one_set(sets):
    stream = mixture(sets)
    keys = [sample.key for sample in stream.read(range(28))]
    assert len(stream) == 28
    assert len(set(keys)) > 24  # 28, but for the edges of each set's own epoch


def test_depends_on_nothing_but_seed_and_position(sets):
    straight = [sample.key for sample in mixture(sets, [1, 2, 3]).read(range(60))]
    shuffled = np.random.default_rng(0).permutation(60).tolist()
    found = {p: mixture(sets, [1, 2, 3]).read([p])[0].key for p in shuffled}
    assert [found[p] for p in range(60)] == straight
    assert [sample.key for sample in mixture(sets, [1, 2, 3], seed=1).read(range(60))] != straight
    places = [mixture(sets, [1, 2, 3]).replacement(5, attempt) for attempt in (1, 2, 3, 2)]
    assert places[1] == places[3]
    assert all(number == mixture(sets, [1, 2, 3]).locate(5)[0] for number, _ in places)
    assert len({mixture(sets, [1, 2, 3]).replacement(position, 1) for position in range(60)}) > 15


def test_samples_are_those_of_the_sets(sets):
    stream = mixture(sets, [1, 1, 1])
    for position, sample in enumerate(stream.read(range(20))):
        number, place = stream.locate(position)
        own = sets[number][stream.orders[number](place)]
        assert sample.key == own.key
        assert bytes(sample.members["audio.npy"]) == bytes(own.members["audio.npy"])
    laid_out = [sets[number].key(index) for number, index in map(stream.concatenated_index, range(28))]
    assert laid_out == [one.key(i) for one in sets for i in range(len(one))]


def test_classes_are_joined_by_name(sets):
    stream = mixture(sets, [1, 1, 1])
    assert stream.classes == ["v", "dog", "cat"]
    for position in range(20):
        number, _ = stream.locate(position)
        sample = stream.read([position])[0]
        assert stream.classes[sample.meta["class"]] == ["v", "dog", "cat"][number]  # class 0 of each
        assert sample.meta["path"].startswith("v/")


def test_a_class_that_the_set_does_not_have_is_damage(sets):
    change(sets[2].folder, classes=[])
    stream = mixture([*sets[:2], ShardSet(sets[2].folder)], [1, 1, 1])
    position = next(p for p in range(9) if stream.locate(p)[0] == 2)
    with pytest.raises(DamagedSample, match="json member"):
        _ = stream.read([position])[0].meta


def test_statistics_are_those_of_what_is_drawn():
    """Against samples drawn from the sets' distributions in the stated proportions."""
    random = np.random.default_rng(0)
    means, deviations, weights = random.normal(size=(3, 4)), random.uniform(0.5, 2, (3, 4)), [5, 1, 2]
    manifests = [
        Manifest(**dict.fromkeys(f.name for f in dataclasses.fields(Manifest)))  # only the statistics matter
        for _ in range(3)
    ]
    for manifest, mean, deviation in zip(manifests, means, deviations, strict=True):
        manifest.statistics = {"audio": {"mean": mean.tolist(), "std": deviation.tolist()}}
    drawn = np.concatenate(
        [
            random.normal(mean, deviation, (100_000 * weight, 4))
            for mean, deviation, weight in zip(means, deviations, weights, strict=True)
        ]
    )
    mixed = mixed_statistics(manifests, weights)["audio"]
    np.testing.assert_allclose(mixed["mean"], drawn.mean(0), atol=0.01)
    np.testing.assert_allclose(mixed["std"], drawn.std(0), atol=0.01)


def test_mixing_two_halves_gives_the_statistics_of_the_whole(tmp_path, make_set):
    whole = make_set(tmp_path / "whole", "latents", shards=2, samples=6)  # 11 samples
    halves = [make_set(tmp_path / "one", "latents", 1, 7), make_set(tmp_path / "two", "latents", 1, 6, first=6)]
    mixed = mixture([ShardSet(folder) for folder in halves]).statistics  # samples 0..5 and 6..10
    for modality, expected in ShardSet(whole).manifest.statistics.items():
        for name, values in expected.items():
            np.testing.assert_allclose(mixed[modality][name], values, rtol=1e-6)
    one = ShardSet(whole)
    assert mixture([one]).statistics == one.manifest.statistics


def test_the_fingerprint_knows_sets_and_weights(sets):
    assert mixture(sets[:1]).fingerprint == sets[0].fingerprint
    found = [
        mixture(chosen, weights).fingerprint
        for chosen in itertools.permutations(sets, 2)
        for weights in ([], [1, 1], [2, 1])
    ]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"autoencoder": {"path": "x", "fingerprint": "other"}}, "autoencoder: .*a None, .*b 'other'"),
        ({"audio_shape": (4, 4, 4)}, r"audio_shape: .*a \(4, 2, 2\), .*b \(4, 4, 4\)"),
        ({"video_shape": (4, 9, 9)}, "video_shape"),
        ({"media": "fps"}, r"media\.fps: .*a 10, .*b 4"),
    ],
)
def test_what_does_not_belong_together_is_refused(sets, fields, says):
    manifest = sets[1].manifest
    if fields.get("media"):
        fields = {"media": dataclasses.replace(manifest.media, fps=4)}
    change(sets[1].folder, **fields)
    with pytest.raises(UserError, match=f"shards: these sets cannot be mixed: {says}") as error:
        mixture([sets[0], ShardSet(sets[1].folder)])
    assert "\n" not in str(error.value)


def test_empty_sets_and_other_kinds_are_refused(sets, tmp_path, make_set):
    with pytest.raises(UserError, match=r"empty: this set of latents is empty"):
        mixture([*sets, ShardSet(make_set(tmp_path / "empty", "latents", 1, 1))])
    with pytest.raises(UserError, match="kind: .*a 'latents', .*clips 'clips'"):
        mixture([sets[0], ShardSet(make_set(tmp_path / "clips", "clips"))])

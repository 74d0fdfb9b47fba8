import io

import numpy as np
import pytest

from mmldm_scale.shards.latents import (
    LatentSample,
    decode_latent_batch,
    decode_latents,
    encode_latents,
    statistics,
    sums,
)


def test_round_trip_in_float16(make_latent):
    sample = make_latent(1)
    back = decode_latents(encode_latents(sample))
    for name, array in vars(sample).items():
        assert getattr(back, name).dtype == np.float16
        np.testing.assert_array_equal(getattr(back, name), array.astype(np.float16))


def test_any_numpy_reads_the_members(make_latent):
    sample = make_latent(1)
    members = encode_latents(sample)
    assert list(members) == ["audio.npy", "video.npy", "mirrored.npy"]
    video = np.load(io.BytesIO(members["video.npy"]), allow_pickle=False)
    np.testing.assert_array_equal(video, np.stack([sample.video_mean, sample.video_logvar]).astype(np.float16))


@pytest.mark.parametrize(("value", "text"), [(np.nan, "nan"), (np.inf, "inf"), (70000.0, "70000"), (-1e6, "1e\\+06")])
def test_what_float16_cannot_hold_is_refused(make_latent, value, text):
    sample = make_latent(1)
    sample.video_logvar[0, 0, 0] = value
    with pytest.raises(ValueError, match=f"video.npy: .*{text}"):
        encode_latents(sample)


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_in_a_set_are_damage(make_latent, value):
    members = encode_latents(make_latent(0))
    array = np.load(io.BytesIO(members["video.npy"]))
    array[1, 0, 0, 0] = value
    members["video.npy"] = npy(array)
    for decode in (decode_latents, lambda members: decode_latent_batch([members])):
        with pytest.raises(ValueError, match=r"^video\.npy: holds values that are not finite$"):
            decode(members)


HALF = np.zeros((2, 4, 2, 2), np.float16)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an array at all",
        npy(HALF)[:-1],
        npy(HALF) + b"x",
        npy(HALF.astype(np.float32)),
        npy(HALF[0]),
        npy(HALF, (2, 0)),
        npy(np.array([{"a": 1}], dtype=object)),
    ],
)
def test_what_is_no_latent_is_a_value_error(make_latent, content):
    with pytest.raises(ValueError):  # noqa: PT011 (each names its own trouble)
        decode_latents({**encode_latents(make_latent(0)), "audio.npy": content})


def test_statistics_are_those_of_drawn_latents(make_latent):
    """Against moments of actual draws from all the posteriors, in another order of adding up."""
    samples = [make_latent(i) for i in range(6)]
    parts = [sums(samples[:2]), sums(samples[2:]), sums([])]
    found = statistics(parts)

    rng = np.random.default_rng(0)
    draws = 4000
    for modality, names in {"audio": ["audio"], "video": ["video", "mirrored"]}.items():
        mean = np.stack([getattr(s, f"{n}_mean") for s in samples for n in names])  # (n, C, H, W)
        std = np.exp(0.5 * np.stack([getattr(s, f"{n}_logvar") for s in samples for n in names]))
        drawn = mean + std * rng.standard_normal((draws, *mean.shape))
        np.testing.assert_allclose(found[modality]["mean"], mean.mean((0, 2, 3)), rtol=1e-9)
        np.testing.assert_allclose(found[modality]["std"], drawn.std((0, 1, 3, 4)), rtol=0.02)


def test_constant_channels_have_the_posterior_s_width():
    constant = [np.full((1, 2, 2), value, np.float32) for value in (3.0, np.log(4.0))]
    found = statistics([sums([LatentSample(*constant * 3)])])
    assert found["audio"]["mean"] == [3.0]
    assert found["audio"]["std"] == pytest.approx([2.0])


def test_a_batch_is_its_samples(make_latent):
    samples = [encode_latents(make_latent(number)) for number in range(5)]
    batch = decode_latent_batch([{name: memoryview(data) for name, data in one.items()} for one in samples])
    for number, one in enumerate(samples):
        for name, expected in vars(decode_latents(one)).items():
            np.testing.assert_array_equal(getattr(batch, name)[number], expected)


@pytest.mark.parametrize("fault", ["missing", "short", "other shape", "no array"])
def test_a_batch_with_a_sample_of_another_kind_is_refused(make_latent, fault):
    one, other = (dict(encode_latents(make_latent(number))) for number in range(2))
    turned = np.ascontiguousarray(np.load(io.BytesIO(other["video.npy"])).reshape(2, 4, 2, 8))
    faults = {
        "missing": lambda: other.pop("video.npy"),
        "short": lambda: other.update({"video.npy": other["video.npy"][:-2]}),
        "other shape": lambda: other.update({"video.npy": npy(turned)}),
        "no array": lambda: other.update({"video.npy": bytes(len(other["video.npy"]))}),
    }
    faults[fault]()
    for batch in ([one, other], [other, one]):
        with pytest.raises(ValueError, match=r"video\.npy|not a float16 array"):
            decode_latent_batch(batch)


@pytest.mark.parametrize("parts", [("audio",), ("video", "mirrored")])
def test_a_sample_of_one_modality_has_its_members_alone(make_latent, parts):
    whole = make_latent(3)
    alone = LatentSample.of({part: whole.parts[part] for part in parts})
    members = encode_latents(alone)
    assert list(members) == [f"{part}.npy" for part in parts]
    batch = decode_latent_batch([members, members])
    for part in parts:
        for found in (decode_latents(members).parts[part][0], batch.parts[part][0][1]):
            np.testing.assert_array_equal(found, whole.parts[part][0].astype(np.float16))
    assert statistics([sums([alone])]) == {
        name: moments for name, moments in statistics([sums([whole])]).items() if name in parts
    }


def test_video_without_its_mirror_image_is_refused(make_latent):
    members = encode_latents(make_latent(0))
    for names, missing in (
        (["video.npy"], "mirrored.npy"),
        (["audio.npy", "mirrored.npy"], "video.npy"),
        ([], "audio.npy"),
    ):
        with pytest.raises(ValueError, match=rf"^contains no latents: {missing} is missing; its members are"):
            decode_latents({name: members[name] for name in names})

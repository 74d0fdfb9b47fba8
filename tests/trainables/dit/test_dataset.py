"""The conditions of the DiT's samples: the preceding clip and the context."""

import dataclasses
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig, load
from mmldm_scale.diffusion.guided_sampling import Latents, sample_latents
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.dataset import LatentDataset
from mmldm_scale.trainables.dit.trainable import build_trainable
from mmldm_scale.training.trainable import Trainable
from tests.support.datasets.latent_sets import AUDIO, VIDEO, damage, latent_sample, write_windows

SMALL = ["model.depth=2", "model.width=16", "model.heads=2", "model.context_tokens=3", "model.context_width=4"]
CONTINUING = ["model.continuation=true", "diffusion.continued=0.5", "diffusion.audio_conditioned=0.1"]
APART = "the sound of another window of their video as a wrong pairing; the others do without"
MEDIA = MediaConfig(frames=4, fps=10, size=64)
WINDOWS = [(video, start) for video in ("a", "b", "c") for start in range(0, 13, 2)]
LABELS = {"a": "rain", "b": "wind"}  # c has no label


@pytest.fixture
def windows(tmp_path: Path) -> Path:
    """A set of windows of three videos, which begin at every second frame, in shards of five."""
    return write_windows(tmp_path / "windows", WINDOWS, MEDIA, 5, labels=LABELS)


def configure(folder: Path, *overrides: str) -> DiTTraining:
    fixed = [f"shards={folder}", f"run={folder}_run", "training.precision=fp32", *SMALL]
    return load(DiTTraining, overrides=[*fixed, *overrides])


def posterior_mean(dataset: LatentDataset, name: str, number: int, mirrored: bool) -> Tensor:
    """Return the normalised mean (C, H, W) of sample ``number``'s posterior for the modality ``name``."""
    sample = latent_sample(number)
    mean = {"audio": sample.audio_mean, "video": sample.mirrored_mean if mirrored else sample.video_mean}[name]
    statistics = dataset.samples.mixture.statistics[name]
    centre, scale = (np.array(statistics[key])[:, None, None] for key in ("mean", "std"))  # (C, 1, 1) each
    return torch.from_numpy((mean - centre) / scale).float()


def is_mode(latent: Tensor, mean: Tensor) -> bool:
    """Return whether ``latent`` is ``mean``, up to rounding."""
    return bool((latent - mean).square().mean() < 1e-9)


def nearest(dataset: LatentDataset, audio: Tensor) -> int:
    """Return the number of the sample whose audio posterior is nearest to the latents ``audio``."""
    means = torch.stack([posterior_mean(dataset, "audio", number, False) for number in range(len(WINDOWS))])
    return int((means - audio).square().mean(dim=(1, 2, 3)).argmin())


def test_the_preceding_clip_is_mirrored_and_normalised_like_its_successor(windows):
    dataset = build_trainable(configure(windows, *CONTINUING)).dataset
    order, counts = dataset.samples.mixture.orders[0], {"continued": 0, "mirrored": 0, "successors": 0}
    for position in range(300):
        sample, (video, start) = dataset[position], WINDOWS[order(position)]
        if not any(sample[f"previous_{name}_given"] for name in ("audio", "video")):
            assert not sample["previous_audio"].any()
            assert not sample["previous_video"].any()
            assert nearest(dataset, sample["audio"]) == order(position)
            continue
        own = start if start >= 4 else start + 4  # where no clip precedes, the one that follows is read
        index, earlier = WINDOWS.index((video, own)), WINDOWS.index((video, own - 4))
        mirrored = not is_mode(sample["video"], posterior_mean(dataset, "video", index, mirrored=False))
        assert is_mode(sample["video"], posterior_mean(dataset, "video", index, mirrored))
        for name in ("audio", "video"):
            assert is_mode(sample[f"previous_{name}"], posterior_mean(dataset, name, earlier, mirrored))
        counts["continued"] += 1
        counts["mirrored"] += mirrored
        counts["successors"] += own != start
    assert abs(counts["continued"] / 300 - 0.5) < 0.08
    assert abs(counts["successors"] / counts["continued"] - 2 / 7) < 0.1  # the first two of seven windows
    assert 0.35 < counts["mirrored"] / counts["continued"] < 0.65


def test_with_a_share_of_1_each_sample_sees_a_preceding_clip_where_its_video_has_two(tmp_path):
    folder = write_windows(tmp_path / "set", [*WINDOWS, ("short", 0), ("short", 2)], MEDIA, 5)
    dataset = LatentDataset(configure(folder, *CONTINUING, "diffusion.continued=1"))
    order = dataset.samples.mixture.orders[0]
    for position in range(len(WINDOWS) + 2):
        sample = dataset[position]
        given = bool(sample["previous_audio_given"] | sample["previous_video_given"])
        assert given == (order(position) < len(WINDOWS))
    assert dataset.startup_messages()[0].startswith("diffusion.continued: 21 of the first 23 samples have a preceding")


def test_latents_are_the_posteriors_mode_or_drawn_from_it_the_mirrored_ones_too(windows):
    """A mode is the mean to the bit; draws deviate from it by exp(logvar / 2) = exp(-1) before they are normalised."""
    modes = LatentDataset(configure(windows, "flip=0.5"))
    draws = LatentDataset(configure(windows, "flip=0.5", "posterior=draw"))
    order, statistics = modes.samples.mixture.orders[0], modes.samples.mixture.statistics
    deviations: dict[str, list[Tensor]] = {"audio": [], "video": []}
    mirrored = 0
    for position in range(200):
        mode, drawn, index = modes[position], draws[position], order(position)
        is_mirrored = not is_mode(mode["video"], posterior_mean(modes, "video", index, mirrored=False))
        mirrored += is_mirrored
        for name in ("audio", "video"):
            mean = posterior_mean(modes, name, index, is_mirrored)
            torch.testing.assert_close(mode[name], mean, atol=1e-5, rtol=1e-5)
            scale = torch.tensor(statistics[name]["std"])[:, None, None]  # (C, 1, 1)
            deviations[name].append((drawn[name] - mean) * scale)
        assert all(torch.equal(mode[name], drawn[name]) for name in ("audio_noise", "video_noise", "time"))
    assert 70 < mirrored < 130
    for name, parts in deviations.items():
        every = torch.stack(parts)  # (200, C, H, W), of which the standard error is at most 0.007
        assert abs(every.mean()) < 0.03, name
        assert abs(every.std() - np.exp(-1)) < 0.02, name
    settings = configure(windows, "flip=1", "posterior=draw")
    assert all(torch.equal(LatentDataset(settings)[3][name], LatentDataset(settings)[3][name]) for name in modes[0])


def test_without_continuation_each_position_reads_one_sample(windows, monkeypatch):
    dataset = build_trainable(configure(windows)).dataset
    assert not [name for name in dataset[0] if "previous" in name or "context" in name or "label" in name]
    read = []
    shards = dataset.samples.mixture.sets[0]
    original = shards.read
    monkeypatch.setattr(shards, "read", lambda indices: read.extend(indices) or original(indices))
    dataset.__getitems__(range(20))
    assert len(read) == 20


@pytest.mark.parametrize("options", [CONTINUING, ["contrastive.weight=1"]])
def test_a_sample_is_the_same_alone_in_a_batch_and_in_a_worker(windows, options):
    settings = configure(windows, *options, "context.kind=class", "context.dropout=0.5")
    dataset = build_trainable(settings).dataset
    copy = pickle.loads(pickle.dumps(build_trainable(settings).dataset))
    positions = [9, 2, 40, 3, 17, 41, 9]
    for position, sample in zip(positions, dataset.__getitems__(positions), strict=True):
        for alone in (dataset[position], copy[position]):
            assert sample.keys() == alone.keys()
            assert all(torch.equal(sample[name], alone[name]) for name in sample)


def test_the_preceding_clip_is_the_same_with_a_small_stage(windows, tmp_path):
    plain, staged = (
        build_trainable(configure(windows, *CONTINUING, "reading.window=1", *options)).dataset
        for options in ([], [f"reading.stage={tmp_path / 'stage'}"])
    )
    for expected, sample in zip(plain.__getitems__(range(42)), staged.__getitems__(range(42)), strict=True):
        assert all(torch.equal(expected[name], sample[name]) for name in expected)


def test_a_damaged_preceding_clip_is_quarantined_and_its_successor_used_without(windows):
    index = WINDOWS.index(("b", 0))
    damage(windows, index)
    settings = configure(windows, *CONTINUING, "diffusion.continued=0.85", "reading.damaged_share=0.9")
    dataset = build_trainable(settings).dataset
    order = dataset.samples.mixture.orders[0]
    successors = [p for p in range(60) if WINDOWS[order(p)] == ("b", 4)]
    for position in successors:
        assert not dataset[position]["previous_audio_given"]
    assert len(dataset.samples.quarantine) == 1
    for position in (p for p in range(60) if order(p) == index):
        sample = dataset[position]  # of a replacement
        assert not sample["previous_audio_given"]


def test_continuation_on_sets_without_adjacent_clips_is_refused(tmp_path):
    apart = write_windows(tmp_path / "apart", [("a", 0), ("b", 0), ("b", 5)], MEDIA, 5)
    with pytest.raises(UserError, match="diffusion.continued: 0 of the first 3 samples have a preceding clip"):
        build_trainable(configure(apart, *CONTINUING))


def test_the_startup_message_counts_samples_with_a_preceding_clip(windows):
    trainable = build_trainable(configure(windows, *CONTINUING))
    assert trainable.startup_messages[0] == (
        "diffusion.continued: 21 of the first 21 samples have a preceding clip; the others are trained without"
    )


def test_the_displaced_sound_is_of_another_window_of_the_video_half_a_clip_away(windows):
    dataset = build_trainable(configure(windows, "contrastive.weight=1")).dataset
    order, counts = dataset.samples.mixture.orders[0], Counter()
    for position in range(600):
        sample, (video, start) = dataset[position], WINDOWS[order(position)]
        assert sample["displaced_given"]
        found = WINDOWS[nearest(dataset, sample["displaced_audio"])]
        assert found[0] == video
        assert abs(found[1] - start) >= 2  # half of four frames; windows begin at every second
        counts[start, found[1]] += 1
    assert counts.keys() == {(a, b) for a in range(0, 13, 2) for b in range(0, 13, 2) if a != b}
    assert max(counts.values()) < 4 * min(counts.values())  # uniform: 14.3 each, so 5 to 27 are likely


def test_overlapping_windows_and_lone_ones_have_no_displaced_sound(tmp_path):
    media = dataclasses.replace(MEDIA, frames=8)
    windows = [("a", start) for start in range(3)] + [("b", 0), ("c", 0), ("c", 4)]  # half a clip is 4 frames
    dataset = build_trainable(
        configure(write_windows(tmp_path / "set", windows, media, 50), "contrastive.weight=1")
    ).dataset
    order = dataset.samples.mixture.orders[0]
    given = {windows[order(position)]: bool(dataset[position]["displaced_given"]) for position in range(6)}
    assert {window for window, is_given in given.items() if is_given} == {("c", 0), ("c", 4)}


def test_in_a_shuffled_set_the_clips_of_a_video_are_found_by_their_keys(tmp_path):
    shuffled = [WINDOWS[i] for i in np.random.default_rng(0).permutation(21)]
    folder = write_windows(tmp_path / "shuffled", shuffled, MEDIA, 5)
    continuing, contrasting = (
        LatentDataset(configure(folder, *options))
        for options in ([*CONTINUING, "diffusion.continued=1"], ["contrastive.weight=1"])
    )
    order = continuing.samples.mixture.orders[0]
    for position in range(21):
        video, start = shuffled[order(position)]
        sample = contrasting[position]
        assert bool(sample["displaced_given"])
        assert shuffled[nearest(contrasting, sample["displaced_audio"])][0] == video
        assert shuffled[nearest(contrasting, sample["other_audio"])][0] != video
        assert shuffled[nearest(continuing, continuing[position]["audio"])] == (video, max(start, start % 4 + 4))


def test_a_damaged_displaced_window_is_quarantined_and_the_pairing_left_out(tmp_path):
    folder = write_windows(tmp_path / "pair", [("a", 0), ("a", 4)], MEDIA, 50)
    damage(folder, 1)
    dataset = build_trainable(configure(folder, "contrastive.weight=1", "reading.damaged_share=0.9")).dataset
    for position in range(4):  # the damaged sample is replaced by the other one, which is none of its own
        assert not dataset[position]["displaced_given"]
    assert len(dataset.samples.quarantine) == 1


@pytest.mark.parametrize(("windows_of_set", "count"), [(WINDOWS, 21), ([("a", 0), ("b", 0), ("c", 0)], 0)])
def test_the_startup_message_counts_samples_with_another_window(tmp_path, windows_of_set, count):
    folder = write_windows(tmp_path / "set", windows_of_set, MEDIA, 50)
    trainable = build_trainable(configure(folder, "contrastive.weight=1"))
    line = f"contrastive.weight: {count} of the first {len(windows_of_set)} samples have {APART}"
    assert trainable.startup_messages[0] == line


def test_the_displaced_window_of_a_short_video_is_drawn_as_often_as_it_is_a_sample(tmp_path):
    """Of five windows, the first and the last have three that are half a clip away, the others two."""
    folder = write_windows(tmp_path / "set", [("a", start) for start in range(5)], MEDIA, 50)
    mixture = LatentDataset(configure(folder, "contrastive.weight=1")).samples.mixture
    pairs = Counter()
    for position in range(3000):
        partner = mixture.displaced_index(position)
        pairs[mixture.index(position)[1], None if partner is None else partner[1]] += 1
    expected = {(a, b) for a in range(5) for b in range(5) if abs(a - b) >= 2}
    assert {pair for pair in pairs if pair[1] is not None} == expected
    assert all(abs(pairs[pair] - 200) < 60 for pair in expected)  # 1 of 3 each; the standard deviation is at most 12
    assert all(abs(pairs[a, None] - 600 * rest / 3) < 60 for a, rest in enumerate((0, 1, 1, 1, 0)))


def test_the_previous_clip_would_tell_the_wrong_pairings(windows):
    message = "contrastive.weight: 1: must be 0 with diffusion.continued=0.5: the previous clip tells the wrong"
    with pytest.raises(UserError, match=message):
        configure(windows, *CONTINUING, "contrastive.weight=1")


def label_of(number: int) -> int:
    return {"a": 0, "b": 1, "c": -1}[WINDOWS[number][0]]


def test_the_context_is_the_clips_class_and_a_tenth_of_samples_drops_it(windows):
    trainable = build_trainable(configure(windows, "context.kind=class"))
    order = trainable.dataset.samples.mixture.orders[0]
    labels = [int(sample["label"]) for sample in trainable.dataset.__getitems__(range(2000))]
    own = [label_of(order(position)) for position in range(2000)]
    assert {(a, b) for a, b in zip(own, labels, strict=True)} == {(0, 0), (0, -1), (1, 1), (1, -1), (-1, -1)}
    dropped = [b < 0 for a, b in zip(own, labels, strict=True) if a >= 0]
    assert abs(np.mean(dropped) - 0.1) < 0.03
    assert trainable.module.dit.classes == 2


def test_classes_of_mixed_and_validation_sets_are_matched_by_name(windows, tmp_path):
    other = write_windows(tmp_path / "other", WINDOWS, MEDIA, 5, labels={"a": "fire", "b": "rain", "c": "wind"})
    config = configure(windows, f"shards=[{windows},{other}]", "context.kind=class", "context.dropout=0")
    mixed = LatentDataset(config)
    assert mixed.classes == ["rain", "wind", "fire"]
    validation_set = LatentDataset(configure(other, "context.kind=class", "context.dropout=0"), ["wind", "rain"])
    order = validation_set.samples.mixture.orders[0]
    for position in range(21):
        video, _ = WINDOWS[order(position)]
        assert int(validation_set[position]["label"]) == {"a": -1, "b": 1, "c": 0}[video]


def test_the_class_context_is_refused_on_sets_without_labels(tmp_path):
    unlabelled = write_windows(tmp_path / "unlabelled", WINDOWS, MEDIA, 50)
    with pytest.raises(UserError, match="context.kind=class: the shard sets have no labels"):
        build_trainable(configure(unlabelled, "context.kind=class"))


def write_embeddings(file: Path, **shapes: tuple[int, ...]) -> Path:
    """Write random float16 tensors of these shapes by name; return ``file``."""
    save_file({name: torch.randn(shape).half() for name, shape in shapes.items()}, file)
    return file


def test_embeddings_are_found_by_path_stem_or_label_and_padded(windows, tmp_path):
    tensors = {"a.mp4": torch.randn(3, 4), "a": torch.randn(1, 4), "b": torch.randn(2, 4).bfloat16()}
    save_file(tensors, tmp_path / "texts.safetensors")
    options = ["context.kind=text", f"context.embeddings={tmp_path}/texts.safetensors", "context.dropout=0"]
    trainable = build_trainable(configure(windows, *options))
    dataset, order = trainable.dataset, trainable.dataset.samples.mixture.orders[0]
    for position in range(21):
        sample, (video, _) = dataset[position], WINDOWS[order(position)]
        length = {"a": 3, "b": 2, "c": 0}[video]
        assert int(sample["context_length"]) == length
        assert sample["context"].shape == (3, 4)
        assert not sample["context"][length:].any()
        if length:
            expected = tensors["a.mp4" if video == "a" else "b"].float()
            assert torch.equal(sample["context"][:length], expected)
    by_label = write_embeddings(tmp_path / "labels.safetensors", rain=(3, 4))
    dataset = LatentDataset(configure(windows, *options, f"context.embeddings={by_label}"))
    order = dataset.samples.mixture.orders[0]
    lengths = {WINDOWS[order(p)][0]: int(dataset[p]["context_length"]) for p in range(21)}
    assert lengths == {"a": 3, "b": 0, "c": 0}
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(copy[0][name], dataset[0][name]) for name in dataset[0])


def test_the_startup_message_counts_embeddings_and_the_inputs_hold_the_files_fingerprint(windows, tmp_path):
    files = [write_embeddings(tmp_path / f"{i}.safetensors", rain=(2, 4)) for i in range(2)]
    options = [["context.kind=text", f"context.embeddings={file}"] for file in files]
    first, second = (build_trainable(configure(windows, *overrides)) for overrides in options)
    assert first.startup_messages[0] == "context.embeddings: 7 of the first 21 samples have an embedding"
    assert first.inputs["context.embeddings"] != second.inputs["context.embeddings"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"rain": (4, 4)}, r"'rain' is F16 \[4, 4\]; must be floats of shape \(n, 4\) with n from 1 to 3"),
        ({"rain": (2, 4), "wind": (2, 5)}, r"'wind' is F16 \[2, 5\]"),
        ({"rain": (4,)}, r"'rain' is F16 \[4\]"),
        ({"storm": (2, 4)}, "context.embeddings: 0 of the first 21 samples have an embedding"),
        ({}, "contains no embedding"),
    ],
)
def test_embeddings_of_other_shapes_or_samples_are_refused(windows, tmp_path, shapes, message):
    file = write_embeddings(tmp_path / "texts.safetensors", **shapes)
    with pytest.raises(UserError, match=message) as caught:
        build_trainable(configure(windows, "context.kind=text", f"context.embeddings={file}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"no such format", None])
def test_an_unreadable_file_of_embeddings_is_refused(windows, tmp_path, content):
    file = tmp_path / "texts.safetensors"
    if content:
        file.write_bytes(content)
    with pytest.raises(UserError, match="context.embeddings=.*: cannot be read as safetensors"):
        build_trainable(configure(windows, "context.kind=text", f"context.embeddings={file}"))


def learn(folder: Path, *options: str) -> Trainable:
    """Train a DiT on videos of two labels, whose latents' means differ by 6 before they are normalised."""
    videos = {f"{name}{i}": name for i in range(8) for name in ("high", "low")}
    windows = [(video, start) for video in videos for start in (0, 4)]
    write_windows(folder / "set", windows, MEDIA, 50, labels=videos, shift={"high": 3.0, "low": -3.0})
    torch.manual_seed(0)
    alone = ["diffusion.audio_conditioned=0", "diffusion.video_conditioned=0"]
    trainable = build_trainable(configure(folder / "set", *alone, *options))
    samples = trainable.dataset.__getitems__(range(320))
    columns = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    optimizer = torch.optim.Adam(trainable.module.parameters(), lr=1e-2)
    for step in range(100):
        first = 32 * step % 320
        output = trainable.module({name: column[first : first + 32] for name, column in columns.items()})
        optimizer.zero_grad()
        output.loss.mean().backward()
        optimizer.step()
    return trainable


def assert_apart(trainable: Trainable, high: dict[str, object], low: dict[str, object]) -> None:
    """Assert that samples of the same noise differ between the conditions ``high`` and ``low``."""
    dit, process = trainable.module.dit, trainable.module.process
    noise = Latents(torch.randn(16, *AUDIO), torch.randn(16, *VIDEO))
    latents = [sample_latents(dit, process, "svg", noise, 10, **conditions) for conditions in (high, low)]
    for modality in ("audio", "video"):
        assert getattr(latents[0], modality).mean() - getattr(latents[1], modality).mean() > 0.5


def test_a_model_learns_to_follow_its_class(tmp_path):
    trainable = learn(tmp_path, "model.depth=1", "context.kind=class")
    assert_apart(trainable, *({"context": {"label": torch.full((16,), number)}} for number in range(2)))


def test_a_model_learns_to_follow_its_text(tmp_path):
    text = {"high": torch.ones(1, 4), "low": -torch.ones(2, 4)}
    save_file(text, tmp_path / "texts.safetensors")
    options = ["model.depth=1", "context.kind=text", f"context.embeddings={tmp_path}/texts.safetensors"]
    trainable = learn(tmp_path, *options)
    contexts = [
        {
            "context": torch.cat([tokens, torch.zeros(3 - len(tokens), 4)]).expand(16, -1, -1),
            "context_length": torch.full((16,), len(tokens)),
        }
        for tokens in text.values()
    ]
    assert_apart(trainable, *({"context": context} for context in contexts))


def test_a_model_learns_to_continue_the_preceding_clip(tmp_path):
    trainable = learn(tmp_path, "model.continuation=true", "diffusion.continued=1")
    samples = trainable.dataset.__getitems__(range(64))
    clips = {name: torch.stack([sample[name] for sample in samples]) for name in ("audio", "video")}
    is_high = clips["video"].mean(dim=(1, 2, 3)) > 0
    for modalities in (["audio", "video"], ["audio"], ["video"]):
        previous = [{name: clips[name][rows][:16] for name in modalities} for rows in (is_high, ~is_high)]
        assert_apart(trainable, *({"previous": latents} for latents in previous))

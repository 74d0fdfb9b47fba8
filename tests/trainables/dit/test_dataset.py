"""What the DiT's samples are conditioned on: the clip before, and a context."""

import pickle
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
MEDIA = MediaConfig(frames=4, fps=10, size=64)
WINDOWS = [(video, start) for video in ("a", "b", "c") for start in range(0, 13, 2)]
LABELS = {"a": "rain", "b": "wind"}  # c has none


@pytest.fixture
def windows(tmp_path: Path) -> Path:
    """Windows of three videos, every second frame, in shards of five."""
    return write_windows(tmp_path / "windows", WINDOWS, MEDIA, 5, labels=LABELS)


def configure(folder: Path, *overrides: str) -> DiTTraining:
    fixed = [f"shards={folder}", f"run={folder}_run", "training.precision=fp32", *SMALL]
    return load(DiTTraining, overrides=[*fixed, *overrides])


def drawn(dataset: LatentDataset, name: str, number: int, mirrored: bool) -> Tensor:
    """The mean of sample ``number``'s posterior for one modality, normalised."""
    sample = latent_sample(number)
    mean = {"audio": sample.audio_mean, "video": sample.mirrored_mean if mirrored else sample.video_mean}[name]
    of = dataset.samples.mixture.statistics[name]
    columns = (np.array(of[key])[:, None, None] for key in ("mean", "std"))
    return torch.from_numpy((mean - next(columns)) / next(columns)).float()


def is_near(latent: Tensor, mean: Tensor) -> bool:
    """Whether ``latent`` can be drawn from a posterior with ``mean``; other samples are 1 apart and more."""
    return bool((latent - mean).square().mean() < 0.5)


def test_the_clip_before_is_the_right_one_mirrored_and_normalised_as_its_successor(windows):
    dataset = build_trainable(configure(windows, *CONTINUING)).dataset
    order, counted = dataset.samples.mixture.orders[0], {"continued": 0, "first": 0, "mirrored": 0}
    for position in range(300):
        sample, index = dataset[position], order(position)
        given = {name: bool(sample[f"previous_{name}_given"]) for name in ("audio", "video")}
        if not any(given.values()):
            assert not sample["previous_audio"].any()
            assert not sample["previous_video"].any()
            continue
        video, start = WINDOWS[index]
        assert start >= 4
        assert not sample["audio_given"]
        assert not sample["video_given"]
        earlier = WINDOWS.index((video, start - 4))
        mirrored = not is_near(sample["video"], drawn(dataset, "video", index, mirrored=False))
        assert is_near(sample["video"], drawn(dataset, "video", index, mirrored))
        for name in ("audio", "video"):
            assert is_near(sample[f"previous_{name}"], drawn(dataset, name, earlier, mirrored))
        counted["continued"] += 1
        counted["mirrored"] += mirrored
    assert abs(counted["continued"] / 300 - 0.5 * 5 / 7) < 0.08  # the first two windows of seven have none before them
    assert 0.35 < counted["mirrored"] / counted["continued"] < 0.65


def test_without_continuation_nothing_more_is_read(windows, monkeypatch):
    dataset = build_trainable(configure(windows)).dataset
    assert not [name for name in dataset[0] if "previous" in name or "context" in name or "label" in name]
    read = []
    shards = dataset.samples.mixture.sets[0]
    original = shards.read
    monkeypatch.setattr(shards, "read", lambda indices: read.extend(indices) or original(indices))
    dataset.__getitems__(range(20))
    assert len(read) == 20


def test_a_sample_is_the_same_alone_in_a_batch_and_in_a_worker(windows):
    settings = configure(windows, *CONTINUING, "context.kind=class", "context.dropout=0.5")
    dataset = build_trainable(settings).dataset
    copy = pickle.loads(pickle.dumps(build_trainable(settings).dataset))
    positions = [9, 2, 40, 3, 17, 41, 9]
    for position, sample in zip(positions, dataset.__getitems__(positions), strict=True):
        for other in (dataset[position], copy[position]):
            assert sample.keys() == other.keys()
            assert all(torch.equal(sample[name], other[name]) for name in sample)


def test_the_clip_before_is_the_same_from_a_stage_that_holds_few_tars(windows, tmp_path):
    plain, staged = (
        build_trainable(configure(windows, *CONTINUING, "reading.window=1", *options)).dataset
        for options in ([], [f"reading.stage={tmp_path / 'stage'}"])
    )
    for one, other in zip(plain.__getitems__(range(42)), staged.__getitems__(range(42)), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_damaged_clip_before_is_quarantined_and_its_successor_trained_without(windows):
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
        sample = dataset[position]  # of another clip
        assert not sample["previous_audio_given"]


def test_sets_in_which_no_clip_follows_another_are_refused(tmp_path):
    apart = write_windows(tmp_path / "apart", [("a", 0), ("b", 0), ("b", 5)], MEDIA, 5)
    with pytest.raises(UserError, match="diffusion.continued: 0 of the first 3 samples have a clip before them"):
        build_trainable(configure(apart, *CONTINUING))


def test_how_many_samples_can_continue_a_clip_is_said(windows):
    trainable = build_trainable(configure(windows, *CONTINUING))
    assert trainable.startup_messages == ["diffusion.continued: 15 of the first 21 samples have a clip before them"]


def label_of(number: int) -> int:
    return {"a": 0, "b": 1, "c": -1}[WINDOWS[number][0]]


def test_the_context_is_the_clips_class_and_a_tenth_drops_it(windows):
    trainable = build_trainable(configure(windows, "context.kind=class"))
    order = trainable.dataset.samples.mixture.orders[0]
    labels = [int(sample["label"]) for sample in trainable.dataset.__getitems__(range(2000))]
    own = [label_of(order(position)) for position in range(2000)]
    assert {(a, b) for a, b in zip(own, labels, strict=True)} == {(0, 0), (0, -1), (1, 1), (1, -1), (-1, -1)}
    dropped = [b < 0 for a, b in zip(own, labels, strict=True) if a >= 0]
    assert abs(np.mean(dropped) - 0.1) < 0.03
    assert trainable.module.dit.classes == 2


def test_classes_of_mixed_and_of_held_out_sets_are_known_by_their_names(windows, tmp_path):
    other = write_windows(tmp_path / "other", WINDOWS, MEDIA, 5, labels={"a": "fire", "b": "rain", "c": "wind"})
    config = configure(windows, f"shards=[{windows},{other}]", "context.kind=class", "context.dropout=0")
    mixed = LatentDataset(config)
    assert mixed.classes == ["rain", "wind", "fire"]
    validation_set = LatentDataset(configure(other, "context.kind=class", "context.dropout=0"), ["wind", "rain"])
    order = validation_set.samples.mixture.orders[0]
    for position in range(21):
        video, _ = WINDOWS[order(position)]
        assert int(validation_set[position]["label"]) == {"a": -1, "b": 1, "c": 0}[video]


def test_sets_without_labels_make_no_class_context(tmp_path):
    unlabelled = write_windows(tmp_path / "unlabelled", WINDOWS, MEDIA, 50)
    with pytest.raises(UserError, match="context.kind=class: the sets of shards have no labels"):
        build_trainable(configure(unlabelled, "context.kind=class"))


def embeddings(file: Path, **shapes: tuple[int, ...]) -> Path:
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
    by_label = embeddings(tmp_path / "labels.safetensors", rain=(3, 4))
    dataset = LatentDataset(configure(windows, *options, f"context.embeddings={by_label}"))
    order = dataset.samples.mixture.orders[0]
    lengths = {WINDOWS[order(p)][0]: int(dataset[p]["context_length"]) for p in range(21)}
    assert lengths == {"a": 3, "b": 0, "c": 0}
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(copy[0][name], dataset[0][name]) for name in dataset[0])


def test_how_many_samples_have_an_embedding_is_said_and_a_run_keeps_to_its_file(windows, tmp_path):
    files = [embeddings(tmp_path / f"{i}.safetensors", rain=(2, 4)) for i in range(2)]
    tasks = [build_trainable(configure(windows, "context.kind=text", f"context.embeddings={file}")) for file in files]
    assert tasks[0].startup_messages == ["context.embeddings: 7 of the first 21 samples have an embedding"]
    assert tasks[0].inputs["context.embeddings"] != tasks[1].inputs["context.embeddings"]


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"rain": (4, 4)}, r"'rain' is F16 \[4, 4\]; floats of shape \(n, 4\) fit, n from 1 to 3"),
        ({"rain": (2, 4), "wind": (2, 5)}, r"'wind' is F16 \[2, 5\]"),
        ({"rain": (4,)}, r"'rain' is F16 \[4\]"),
        ({"storm": (2, 4)}, "context.embeddings: 0 of the first 21 samples have an embedding"),
        ({}, "holds no embedding"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(windows, tmp_path, shapes, says):
    file = embeddings(tmp_path / "texts.safetensors", **shapes)
    with pytest.raises(UserError, match=says) as caught:
        build_trainable(configure(windows, "context.kind=text", f"context.embeddings={file}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"no such format", None])
def test_a_file_of_embeddings_that_cannot_be_read_is_told(windows, tmp_path, content):
    file = tmp_path / "texts.safetensors"
    if content:
        file.write_bytes(content)
    with pytest.raises(UserError, match="context.embeddings=.*: cannot be read as safetensors"):
        build_trainable(configure(windows, "context.kind=text", f"context.embeddings={file}"))


def learn(folder: Path, *options: str) -> Trainable:
    """Train a DiT on videos of two labels, whose latents lie 6 apart before they are normalised."""
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
        values = trainable.module({name: column[first : first + 32] for name, column in columns.items()})
        optimizer.zero_grad()
        values.loss.mean().backward()
        optimizer.step()
    return trainable


def assert_apart(trainable: Trainable, high: dict[str, object], low: dict[str, object]) -> None:
    """What is sampled from the same noise as ``high`` and as ``low`` says lies apart, where else it would be one."""
    dit, process = trainable.module.dit, trainable.module.process
    noise = Latents(torch.randn(16, *AUDIO), torch.randn(16, *VIDEO))
    made = [sample_latents(dit, process, "svg", noise, 10, **told) for told in (high, low)]
    for modality in ("audio", "video"):
        assert getattr(made[0], modality).mean() - getattr(made[1], modality).mean() > 0.5


def test_a_model_learns_what_its_class_says(tmp_path):
    trainable = learn(tmp_path, "model.depth=1", "context.kind=class")
    assert_apart(trainable, *({"context": {"label": torch.full((16,), number)}} for number in range(2)))


def test_a_model_learns_what_its_text_says(tmp_path):
    text = {"high": torch.ones(1, 4), "low": -torch.ones(2, 4)}
    save_file(text, tmp_path / "texts.safetensors")
    options = ["model.depth=1", "context.kind=text", f"context.embeddings={tmp_path}/texts.safetensors"]
    trainable = learn(tmp_path, *options)
    padded = [torch.cat([one, torch.zeros(3 - len(one), 4)]).expand(16, -1, -1) for one in text.values()]
    lengths = [torch.full((16,), len(one)) for one in text.values()]
    told = [{"context": context, "context_length": length} for context, length in zip(padded, lengths, strict=True)]
    assert_apart(trainable, *({"context": one} for one in told))


def test_a_model_learns_to_carry_on_from_the_clip_before(tmp_path):
    trainable = learn(tmp_path, "model.continuation=true", "diffusion.continued=1")
    samples = trainable.dataset.__getitems__(range(64))
    clips = {name: torch.stack([sample[name] for sample in samples]) for name in ("audio", "video")}
    is_high = clips["video"].mean(dim=(1, 2, 3)) > 0
    for seen in (["audio", "video"], ["audio"], ["video"]):
        previous = [{name: clips[name][which][:16] for name in seen} for which in (is_high, ~is_high)]
        assert_apart(trainable, *({"previous": one} for one in previous))

"""The detectors against the truth of the corpus, and the benchmark's numbers of shifted and shuffled sounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.synthetic_detectors import CLASSES, against_truth, corpus_clips
from data_tools.demo.corpus import make_corpus
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors import extractor_class
from mmldm_scale.evaluation.metrics import METRICS
from mmldm_scale.evaluation.metrics.metric import MetricBatch, MetricContext
from mmldm_scale.evaluation.synthetic.agreement import VALUES, record_agreement
from mmldm_scale.evaluation.synthetic.benchmark import benchmark, benchmark_row, shuffle_sounds, table
from mmldm_scale.media.clip import NO_SOUND, Clip
from mmldm_scale.media.pixels import to_signal

SHIFTS = (0, 40, 100, 200)  # ms
NAMES = [name for name, *_ in VALUES]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four videos of each class, of 2.2 s: a clip each, with 0.4 s of sound before it."""
    return make_corpus(tmp_path_factory.mktemp("corpus"), videos=16, seconds=2.2, seed=3, size=64)


@pytest.fixture(scope="module")
def clips(videos) -> dict[int, list[ClipRecord]]:
    return {shift: corpus_clips(videos, shift) for shift in SHIFTS}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_detectors_tell_the_truth(clips, kind):
    found = against_truth([clip for clip in clips[0] if clip.info["class"] == kind])
    assert found.clips == found.seen_classes == found.heard_classes == 4
    seen, heard = found.seen.summary(), found.heard.summary()
    assert min(seen["found"], seen["right"]) > 0.8
    assert min(heard["found"], heard["right"]) > 0.9
    assert seen["median_error_ms"] < 10  # a tenth of a frame
    assert heard["median_error_ms"] < 4


def test_the_sync_error_follows_a_shift_of_the_sound(clips):
    rows = [benchmark_row(str(shift), clips[shift]) for shift in SHIFTS]
    errors = [row.values["sync_error"] for row in rows]
    assert errors == [pytest.approx(shift, abs=15) for shift in SHIFTS]
    assert errors == sorted(errors)
    assert rows[0].values["hits_found"] > 0.9 > 0.2 > rows[3].values["hits_found"]
    assert rows[0].values["hits_invented"] < 0.15 < 0.8 < rows[3].values["hits_invented"]
    assert {row.values["class_agreement"] for row in rows} == {1.0}


def test_shuffled_sounds_are_chance(clips):
    samples, corpus, chance = benchmark(clips[100], clips[0])
    assert [row.clips for row in (samples, corpus, chance)] == [16, 16, 16]
    assert corpus.values["sync_error"] < 10 < 50 < chance.values["sync_error"]
    assert chance.values["class_agreement"] <= 0.5 < corpus.values["class_agreement"] == 1.0
    assert chance.values["hits_found"] < 0.7 < corpus.values["hits_found"]
    assert chance.values["pitch_match"] < 0.5 < 0.9 < corpus.values["pitch_match"]
    lines = table([samples, corpus, chance]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| samples", "| corpus", "| corpus, sounds shuffled"]
    again = shuffle_sounds(clips[0], seed=0)
    assert all(
        np.array_equal(a.clip.waveform, b.clip.waveform)
        for a, b in zip(again, shuffle_sounds(clips[0], 0), strict=True)
    )
    assert not any(np.array_equal(a.clip.waveform, b.clip.waveform) for a, b in zip(again, clips[0], strict=True))


def test_metrics_and_extractor_give_the_same_numbers(clips):
    records = clips[40][:4]
    row = benchmark_row("", records)
    signals = {
        "frames": torch.stack([to_signal(record.clip.frames) for record in records]),
        "waveform": torch.from_numpy(np.stack([record.clip.waveform for record in records])),
    }
    context = MetricContext(MediaConfig(16, 10.0, 64, audio=AudioImageConfig(sample_rate=16000)))
    for name in NAMES:
        metric = METRICS[name](context)
        states = [
            metric.measure(MetricBatch([i], {key: tensor[i : i + 1] for key, tensor in signals.items()}))
            for i in (2, 0, 3, 1)
        ]
        state = metric.merge(states)
        assert metric.value(state) == pytest.approx(row.values[name], nan_ok=True)
        assert len(metric.by_clip(state)) == row.counts[name]
    extractor = extractor_class("synthetic")(None, torch.device("cpu"))
    vectors = extractor.features(torch.stack([extractor.prepare(record) for record in records]))
    expected = [list(record_agreement(record).values().values()) for record in records]
    np.testing.assert_allclose(vectors.numpy(), expected, rtol=1e-6)


def test_other_sizes_and_rates(videos):
    """At 20 frames/s the corpus' own frames are seen, which are drawn at the beginning of their time: 25 ms early."""
    for frame_rate, size, error in ((20.0, 64, 25), (10.0, 48, 4)):
        row = benchmark_row("", corpus_clips(videos, 0, frame_rate, size))
        assert row.values["sync_error"] == pytest.approx(error, abs=8)
        assert row.values["hits_found"] > 0.85
        assert row.values["class_agreement"] == 1.0


def test_silence_and_still_pictures(clips):
    record = clips[0][0]
    silent = replace(record, clip=Clip(record.clip.frames, np.zeros(25600, np.float32)))
    values = record_agreement(silent).values()
    assert (values["hits_found"], values["class_agreement"]) == (0, 0)
    assert math.isnan(values["sync_error"])
    assert math.isnan(values["hits_invented"])
    still = replace(record, clip=Clip(np.full_like(record.clip.frames, 90), record.clip.waveform))
    values = record_agreement(still).values()
    assert values["hits_invented"] == 1
    assert math.isnan(values["hits_found"])


def test_clips_that_cannot_be_measured_are_refused(clips):
    record = clips[0][0]
    with pytest.raises(UserError, match=f"{record.name}: has no sound; the benchmark needs both"):
        benchmark_row("", [replace(record, clip=Clip(record.clip.frames, NO_SOUND))])
    with pytest.raises(UserError, match="16 pixels; must be at least 32"):
        benchmark_row("", [replace(record, clip=Clip(record.clip.frames[:, ::4, ::4], record.clip.waveform))])
    with pytest.raises(UserError, match="1 clips of the corpus; needs at least 2"):
        benchmark([record], [record])
    with pytest.raises(UserError, match="synthetic benchmark: samples: no clips"):
        benchmark([], clips[0])

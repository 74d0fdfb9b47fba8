from benchmarks import reading


def test_latents_are_read_far_faster_than_by_webdataset(tmp_path, monkeypatch):
    """A small set on a busy machine: well below what the benchmark finds, well above what a slow path would give."""
    monkeypatch.setattr(reading, "ROUNDS", 2)
    found = reading.of_latents(reading.make_latents(tmp_path / "latents", shards=2, samples=128))
    assert (found["samples"], found["shards"]) == (256, 2)
    assert min(found["ours_is_times"].values()) > 10


def test_clips_are_read_as_fast_as_by_webdataset(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROUNDS", 2)
    found = reading.of_clips(reading.make_clips(tmp_path / "clips", samples=8))
    times = found["ours_is_times"]
    assert times["ours, all frames / webdataset decode, all frames"] > 0.7
    assert times["ours, one frame of each clip / webdataset decode, all frames"] > 4

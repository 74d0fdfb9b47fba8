import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.evaluation.clip_sets import open_clip_set
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip, MediaError
from mmldm_scale.media.encode import write_video
from mmldm_scale.media.wav import write_wav
from mmldm_scale.sampling.lossless import LosslessSet
from tests.support.datasets.clip_sets import clip, write_clips
from tests.support.tiny_models.tiny_autoencoder import MEDIA

RATE = MEDIA.audio.sample_rate


def test_folders_that_are_linked_are_part_of_the_set(tmp_path):
    video(tmp_path / "elsewhere/waves/0.mp4", 0)
    video(tmp_path / "set/rain/1.mp4", 1)
    (tmp_path / "set/waves").symlink_to(tmp_path / "elsewhere/waves")
    (tmp_path / "set/rain/loop").symlink_to(tmp_path / "set")
    assert open_clip_set(str(tmp_path / "set")).names == ["rain/1", "waves/0"]


def video(path: Path, number: int, sound: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = clip(number).waveform if sound else None
    write_video(path, clip(number).frames, MEDIA.fps, waveform, RATE if sound else None)
    return path


def wav(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, clip(number).waveform, RATE)
    return path


def is_clip(made: Clip, number: int) -> bool:
    """Return whether ``made`` has frames and sound of clip ``number``, as far as codecs leave them."""
    given = clip(number)
    return (
        made.frames.shape == given.frames.shape
        and np.abs(made.frames.astype(int) - given.frames).mean() < 10
        and made.waveform.shape == given.waveform.shape
        and np.corrcoef(made.waveform, given.waveform)[0, 1] > 0.9
    )


def test_a_folder_of_videos(tmp_path):
    for number, name in enumerate(("b/z.mkv.mp4", "b/a.mp4", "c.MP4")):
        video(tmp_path / name, number)
    video(tmp_path / "silent.mp4", 3, sound=False)
    (tmp_path / "notes.txt").write_text("no clip")
    (tmp_path / "._c.mp4").write_text("left by a Mac")
    found = open_clip_set(str(tmp_path))
    assert (found.kind, found.path, len(found)) == ("videos", str(tmp_path), 4)
    assert found.names == ["b/a", "b/z.mkv", "c", "silent"]
    record = found.read(1)
    assert (record.name, record.frame_rate, record.sample_rate, record.info) == ("b/z.mkv", MEDIA.fps, RATE, {})
    assert is_clip(record.clip, 0)
    silent = found.read(3)
    assert (silent.clip.waveform.shape, silent.sample_rate) == ((0,), 0)


def test_videos_with_sound_files_of_their_names_have_the_sound_of_those(tmp_path):
    for number in range(2):
        video(tmp_path / f"{number}.mp4", number, sound=number == 0)
        wav(tmp_path / f"{number}.wav", number + 1)
    found = open_clip_set(str(tmp_path))
    assert (found.kind, found.names) == ("frames and sound", ["0", "1"])
    for number in range(2):
        record = found.read(number)
        np.testing.assert_allclose(record.clip.waveform, clip(number + 1).waveform, atol=1e-4)
        assert is_clip(Clip(record.clip.frames, clip(number).waveform), number)


def test_sound_files_alone(tmp_path):
    for number in (1, 0):
        wav(tmp_path / f"{number}.wav", number)
    found = open_clip_set(str(tmp_path))
    assert (found.kind, found.names) == ("sound", ["0", "1"])
    assert found.read(1).clip.frames.shape == NO_FRAMES.shape
    assert found.read(1).frame_rate == 0
    np.testing.assert_allclose(found.read(1).clip.waveform, clip(1).waveform, atol=1e-4)


def sampled(folder: Path, tasks: tuple[str, ...] = ("svg",), count: int = 3) -> Path:
    """Write what ``mmldm sample`` leaves in its output folder."""
    for task in tasks:
        for number in range(count):
            name = f"{task}_{number:06d}"
            video(folder / f"{name}.mp4", number)
            (folder / f"{name}.json").write_text(json.dumps({"name": name, "task": task, "class": "rain"}))
        (folder / f"{task}.json").write_text("{}")
    video(folder / "inputs" / "a2v_000000.mp4", 4)
    wav(folder / "lossless.wav", 4)
    (folder / ".svg_000009.mp4.0a.tmp").write_bytes(b"not finished")
    (folder / "svg_000009.json").write_text("{}")
    return folder


def test_what_mmldm_sample_wrote_is_its_finished_samples(tmp_path):
    folder = sampled(tmp_path / "samples")
    found = open_clip_set(str(folder))
    assert (found.kind, found.names) == ("videos", ["svg_000000", "svg_000001", "svg_000002"])
    record = found.read(2)
    assert is_clip(record.clip, 2)
    assert record.info == {"name": "svg_000002", "task": "svg", "class": "rain", "label": "rain"}
    (folder / "svg_000001.json").unlink()  # as of an older version
    assert found.read(1).info == {}
    (folder / "svg_000000.json").write_text("[")
    with pytest.raises(MediaError, match=f"corrupt: {folder}/svg_000000.json: not the JSON of a sample"):
        found.read(0)


def test_of_several_tasks_the_record_of_one_names_it(tmp_path):
    folder = sampled(tmp_path / "samples", ("svg", "a2v"))
    says = f"{folder}: contains samples of the tasks svg, a2v; give one of them: {folder}/svg.json or {folder}/a2v.json"
    with pytest.raises(UserError, match=re.escape(says)):
        open_clip_set(str(folder))
    found = open_clip_set(str(folder / "a2v.json"))
    assert (found.path, found.names[0], len(found)) == (str(folder / "a2v.json"), "a2v_000000", 3)


def lossless(folder: Path, clips: list[Clip]) -> Path:
    """Write the set of ``mmldm sample --lossless`` with two samples a shard below ``folder``; return its own folder."""
    made = LosslessSet(folder, "svg", MEDIA, 2)
    with Leases(folder) as leases:
        made.begin({"task": "svg"}, leases)
        for start in range(0, len(clips), 2):
            block = range(start, min(start + 2, len(clips)))
            records = [{"name": f"svg_{index:06d}", "seed": 5, "class": None} for index in block]
            made.write(block, clips[start : block.stop], records, leases, "block")
        made.finish(len(clips), {"task": "svg"}, leases)
    return made.folder


def test_lossless_tars_give_the_very_clips(tmp_path):
    folder = lossless(tmp_path, [clip(number) for number in range(5)])
    found = open_clip_set(str(folder))
    assert (found.kind, found.names) == ("samples", [f"svg_{number:06d}" for number in range(5)])
    record = found.read(4)
    np.testing.assert_array_equal(record.clip.frames, clip(4).frames)
    np.testing.assert_array_equal(record.clip.waveform, clip(4).waveform)
    assert (record.frame_rate, record.sample_rate) == (MEDIA.fps, RATE)
    assert record.info.items() >= {"seed": 5, "label": None, "fps": MEDIA.fps}.items()


def test_lossless_tars_of_one_modality(tmp_path):
    frames = open_clip_set(str(lossless(tmp_path / "frames", [Clip(clip(1).frames, NO_SOUND)]))).read(0)
    assert (frames.clip.waveform.shape, frames.frame_rate, frames.sample_rate) == ((0,), MEDIA.fps, 0)
    sound = open_clip_set(str(lossless(tmp_path / "sound", [Clip(NO_FRAMES, clip(1).waveform)]))).read(0)
    assert (len(sound.clip.frames), sound.frame_rate, sound.sample_rate) == (0, 0, RATE)


def test_a_set_of_clip_shards(tmp_path):
    found = open_clip_set(str(write_clips(tmp_path / "clips", 11, ["rain"])))
    assert found.kind == "clips"
    assert found.names == sorted(f"clip_{number}" for number in range(11))
    record = found.read(found.names.index("clip_10"))
    assert is_clip(record.clip, 10)
    assert record.info == {"class": 0}
    assert (record.frame_rate, record.sample_rate) == (MEDIA.fps, RATE)


def test_a_damaged_clip_is_told_with_its_path(tmp_path):
    folder = write_clips(tmp_path / "clips", 3)
    found = open_clip_set(str(folder))
    tar = folder / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(MediaError, match=f"corrupt: {folder}: sample clip_0: .* do not match their checksum"):
        found.read(0)
    assert is_clip(found.read(1).clip, 1)
    video(tmp_path / "videos/a.mp4", 1).write_text("damaged")
    with pytest.raises(MediaError, match=f"not_media: {tmp_path}/videos/a.mp4: "):
        open_clip_set(str(tmp_path / "videos")).read(0)


def test_a_fingerprint_is_that_of_the_content(tmp_path):
    """It changes with any byte and any name, and not with the place of the folder."""
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        video(place / "a.mp4", 0)
        wav(place / "a.wav", 0)
    one, two = (open_clip_set(str(place)).fingerprint() for place in places)
    assert re.fullmatch("[0-9a-f]{64}", one)
    assert one == two
    wav(places[1] / "a.wav", 1)
    assert open_clip_set(str(places[1])).fingerprint() != one
    for file in places[0].iterdir():
        file.rename(file.with_stem("b"))
    assert open_clip_set(str(places[0])).fingerprint() != one
    shards = [open_clip_set(str(write_clips(tmp_path / name, 2))) for name in ("clips", "same")]
    assert shards[0].fingerprint() == shards[1].fingerprint()
    other = open_clip_set(str(write_clips(tmp_path / "other", 2, first=1)))
    assert other.fingerprint() != shards[0].fingerprint()
    expected = [
        [name, (tmp_path / "two" / name).stat().st_size, _sha256(tmp_path / "two" / name)]
        for name in ("a.mp4", "a.wav")
    ]
    assert (
        open_clip_set(str(tmp_path / "two")).fingerprint() == hashlib.sha256(json.dumps(expected).encode()).hexdigest()
    )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_is_no_set_is_one_line_that_says_what_is_there(tmp_path):
    empty, notes = tmp_path / "empty", tmp_path / "notes"
    empty.mkdir()
    notes.mkdir()
    for number in range(3):
        (notes / f"{number}.txt").write_text("")
    (notes / "a.tar").write_text("")
    partly, twice, sets = tmp_path / "partly", tmp_path / "twice", tmp_path / "sets"
    for number in range(2):
        video(partly / f"{number}.mp4", number)
    wav(partly / "1.wav", 1)
    video(twice / "a.mp4", 1)
    video(twice / "b.mp4", 1).rename(twice / "a.mov")
    lossless(sets, [clip(0)])
    for path, says in (
        (tmp_path / "nowhere", "no such file or folder; must be a folder of videos"),
        (empty, "contains no files; must be a folder of videos, of videos and sound files with equal names"),
        (notes, "contains no media files, but other files (3 .txt, 1 .tar); must be"),
        (notes / "1.txt", "is a file; must be a folder"),
        (partly, "contains 2 videos and 1 sound files, but no sound file of the name of 0.mp4; each video must"),
        (twice, "a.mov and a.mp4 would both be the clip a; names must be unique"),
        (sets / "lossless", "contains no media files, but the shard sets svg; must be"),
    ):
        with pytest.raises(UserError, match=re.escape(f"{path}: {says}")) as caught:
            open_clip_set(str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="s3://bucket/clips: is a URL; must be"):
        open_clip_set("s3://bucket/clips")


def test_sets_that_cannot_be_measured_are_refused(tmp_path):
    folder = lossless(tmp_path, [clip(0)])
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="unfinished shard set; run the command that began it again to finish it"):
        open_clip_set(str(folder))

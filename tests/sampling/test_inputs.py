"""The inputs of a2v and v2a: found in a fixed order, looked at once for all tasks of a job, and not changed since."""

import shutil
from pathlib import Path

import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import MediaConfig
from mmldm_scale.sampling.inputs import choose_inputs, list_videos, read_first_clip

MEDIA = MediaConfig(frames=4, fps=10, size=32)


@pytest.fixture
def select(tmp_path: Path):
    """Choose among videos with a new record; return their names."""

    def run(videos: list[Path], needed: int, media: MediaConfig = MEDIA, need_sound: bool = True) -> list[str]:
        with Leases(tmp_path) as leases:
            record = tmp_path / "inputs.json"
            return [Path(part.path).name for part in choose_inputs(record, videos, needed, media, need_sound, leases)]

    return run


def test_videos_are_found_anywhere_below_a_folder_in_a_fixed_order(videos):
    names = [video.relative_to(videos).as_posix() for video in list_videos(videos)]
    assert names == ["a.mp4", "m_broken.mp4", "n_silent.mp4", "sub/b.mp4", "z.mp4"]
    assert list_videos(videos / "a.mp4") == [videos / "a.mp4"]


def test_an_unusable_video_is_skipped_with_its_reason_in_one_line(videos, select, capfd):
    assert select(list_videos(videos), 10) == ["a.mp4", "b.mp4", "z.mp4"]
    told = [line for line in capfd.readouterr().err.splitlines() if "skipped" in line]
    assert len(told) == 2
    assert told[0].startswith("skipped (not_media): ")
    assert "m_broken.mp4" in told[0]
    assert told[1].startswith("skipped (no_audio_stream): ")
    assert "n_silent.mp4" in told[1]


def test_silent_videos_do_where_only_pictures_are_needed(videos, select):
    assert select(list_videos(videos), 10, need_sound=False) == ["a.mp4", "n_silent.mp4", "b.mp4", "z.mp4"]
    clip = read_first_clip(videos / "n_silent.mp4", MEDIA, need_sound=False)
    assert clip.frames.mean() == pytest.approx(200, abs=3)
    assert not clip.waveform.any()


def test_no_more_are_looked_at_than_needed_and_none_twice(videos, select, capfd):
    assert select(list_videos(videos), 1) == ["a.mp4"]
    assert "skipped" not in capfd.readouterr().err
    assert select(list_videos(videos), 2) == ["a.mp4", "b.mp4"]
    assert capfd.readouterr().err.count("skipped") == 2
    assert select(list_videos(videos), 1) == ["a.mp4"]
    assert select(list_videos(videos), 10) == ["a.mp4", "b.mp4", "z.mp4"]
    assert "skipped" not in capfd.readouterr().err


def test_what_the_first_task_saw_is_what_all_use(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    listed, record = list_videos(tmp_path / "videos"), tmp_path / "inputs.json"
    with Leases(tmp_path) as leases:
        first, *_ = choose_inputs(record, listed, 3, MEDIA, True, leases)
        assert first.read(MEDIA, True).frames.shape == (4, 32, 32, 3)
        content = listed[0].read_bytes()
        for change in (b"", content[:-1], None):
            listed[0].unlink() if change is None else listed[0].write_bytes(change)
            assert choose_inputs(record, listed, 3, MEDIA, True, leases)[0] == first
            with pytest.raises(UserError, match=f"^--input: {listed[0]}: changed since this job's first task looked"):
                first.read(MEDIA, True)
        record.write_text("[1]")
        with pytest.raises(UserError, match="not the record of a sampling job's inputs"):
            choose_inputs(record, listed, 3, MEDIA, True, leases)


def test_nothing_usable_is_an_error(videos, select, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such file or folder"):
        list_videos(tmp_path / "nowhere")
    with pytest.raises(UserError, match="contains no video; allowed endings: .*mp4"):
        list_videos(tmp_path / "empty")
    with pytest.raises(UserError, match=r"none of 1 videos can be used; .*no_audio_stream"):
        select([videos / "n_silent.mp4"], 3)
    (tmp_path / "inputs.json").unlink()
    with pytest.raises(UserError, match=r"none of 3 videos can be used; .*too_short"):
        select(list_videos(videos / "sub") * 3, 3, MediaConfig(frames=400, fps=10, size=32))

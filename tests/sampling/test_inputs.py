import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig
from mmldm_scale.sampling.inputs import list_videos, read_first_clip, select_usable

MEDIA = MediaConfig(frames=4, fps=10, size=32)


def test_videos_are_found_anywhere_below_a_folder_in_a_fixed_order(videos):
    names = [video.relative_to(videos).as_posix() for video in list_videos(videos)]
    assert names == ["a.mp4", "m_broken.mp4", "n_silent.mp4", "sub/b.mp4", "z.mp4"]
    assert list_videos(videos / "a.mp4") == [videos / "a.mp4"]


def test_an_unusable_video_is_skipped_with_its_reason_in_one_line(videos, capfd):
    found = select_usable(list_videos(videos), 10, MEDIA)
    assert [video.name for video in found] == ["a.mp4", "b.mp4", "z.mp4"]
    told = [line for line in capfd.readouterr().err.splitlines() if "skipped" in line]
    assert len(told) == 2
    assert told[0].startswith("skipped (not_media): ")
    assert "m_broken.mp4" in told[0]
    assert told[1].startswith("skipped (no_audio_stream): ")
    assert "n_silent.mp4" in told[1]


def test_silent_videos_do_where_only_pictures_are_needed(videos):
    found = select_usable(list_videos(videos), 10, MEDIA, need_sound=False)
    assert [video.name for video in found] == ["a.mp4", "n_silent.mp4", "b.mp4", "z.mp4"]
    clip = read_first_clip(videos / "n_silent.mp4", MEDIA, need_sound=False)
    assert clip.frames.mean() == pytest.approx(200, abs=3)
    assert not clip.waveform.any()


def test_no_more_are_looked_at_than_needed(videos, capfd):
    assert [video.name for video in select_usable(list_videos(videos), 1, MEDIA)] == ["a.mp4"]
    assert "skipped" not in capfd.readouterr().err


def test_nothing_usable_is_an_error(videos, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        list_videos(tmp_path / "nowhere")
    with pytest.raises(UserError, match="contains no video; allowed endings: .*mp4"):
        list_videos(tmp_path)
    with pytest.raises(UserError, match=r"none of 1 videos can be used; .*no_audio_stream"):
        select_usable([videos / "n_silent.mp4"], 3, MEDIA)
    with pytest.raises(UserError, match=r"none of 3 videos can be used; .*too_short"):
        select_usable(list_videos(videos / "sub") * 3, 3, MediaConfig(frames=400, fps=10, size=32))

import pytest

from data_tools.sources import open_source, read_options
from data_tools.sources.aist import AISTOptions
from mmldm_scale.common.errors import UserError


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")


def videos(folder, **keys):
    return open_source(AISTOptions(**keys), folder).videos()


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("genre", "Break"),
        ("situation", "sBM"),
        ("camera", "c01"),
        ("dancer", "d04"),
        ("music", "mBR0"),
        ("choreography", "BR-ch07"),
    ],
)
def test_the_class_is_the_part_of_the_name_that_was_chosen(tmp_path, label, value):
    put(tmp_path, "aistpp_crop/train/gBR_sBM_c01_d04_mBR0_ch07_slice2.mp4")
    (video,) = videos(tmp_path, label=label)
    assert video.labels[0] == value
    assert set(video.labels) == {"Break", "sBM", "c01", "d04", "mBR0", "BR-ch07"}
    assert (video.split, video.reason) == ("train", "")


def test_cameras_and_clips_of_a_dance_share_their_origin(tmp_path):
    put(
        tmp_path, "gBR_sBM_cAll_d04_mBR0_ch01.mp4", "gBR_sBM_c02_d04_mBR0_ch01_003.mp4", "gBR_sBM_c02_d04_mBR0_ch02.mp4"
    )
    put(tmp_path, "gLO_sGR_c10_d13_d14_d15_mLO2_ch01.mp4")
    assert [video.origin for video in videos(tmp_path)] == [
        "gBR_sBM_cAll_d04_mBR0_ch01",
        "gBR_sBM_cAll_d04_mBR0_ch02",
        "gBR_sBM_cAll_d04_mBR0_ch01",
        "gLO_sGR_cAll_d13_d14_d15_mLO2_ch01",
    ]
    assert "d13_d14_d15" in videos(tmp_path)[3].labels


@pytest.mark.parametrize("name", ["dance.mp4", "gBR_sBM_d04_mBR0_ch01.mp4", "gBR_sBM_c01_d04_mBR0_ch012.mp4"])
def test_other_names_are_dropped(tmp_path, name):
    put(tmp_path, name)
    (video,) = videos(tmp_path)
    assert (video.reason, video.path) == ("bad_name", name)


def test_music_of_its_own(tmp_path):
    put(tmp_path / "videos", "gBR_sBM_c01_d04_mBR0_ch01.mp4", "gPO_sBM_c01_d10_mPO1_ch01.mp4")
    put(tmp_path / "music", "mBR0.mp3", "x/mBR0.wav", "mPO2.mp3", "cover.jpg")
    found = videos(tmp_path / "videos", music=str(tmp_path / "music"))
    assert [(video.audio, video.reason) for video in found] == [("x/mBR0.wav", ""), ("", "no_music")]
    assert "mPO1" in found[1].detail


def test_mistakes_are_one_line(tmp_path):
    put(tmp_path / "videos", "gBR_sBM_c01_d04_mBR0_ch01.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no music"):
        videos(tmp_path / "videos", music=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="empty: holds no videos"):
        videos(tmp_path / "empty")
    with pytest.raises(UserError, match="source.music: only for source.kind=folder, aist, not for landscape"):
        read_options({"kind": "landscape", "music": "x"})

import pytest

from data_tools.sources import open_source
from data_tools.sources.landscape import LandscapeOptions, landscape_class


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")


def videos(folder, **keys):
    return open_source(LandscapeOptions(**keys), folder).videos()


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("train/wind_noise/x.mp4", "wind noise"),
        ("Wind Noise/train/x.mp4", "wind noise"),
        ("train/fire_cracking/thunder_3.mp4", "fire crackling"),  # the folder goes before the name
        ("train/fire_crackling_141_2_1.mp4", "fire crackling"),
        ("underwater_burbling/x.mp4", "underwater bubbling"),
        ("waterfall bubbling/x.mp4", "waterfall burbling"),
        ("squishing_water/x.mp4", "squishing water"),
        ("splashing_water/x.mp4", "splashing water"),
        ("raining/x.mp4", "raining"),
        ("explosion/x.mp4", "explosion"),
        ("train/firework.mp4", None),
        ("train/bUntI90An-U_clip_1_17fps.mp4", None),
    ],
)
def test_classes_by_folder_or_name(path, label):
    assert landscape_class(path) == (() if label is None else (label,))


def test_splits_and_origins(tmp_path):
    folder = tmp_path / "landscape"
    put(folder, "train/ab-_clip_1_17fps.mp4", "train/ab-_clip_2.mp4", "test/thunder/thunder_12_3_1.mp4", "one_2.mp4")
    assert [(v.path, v.split, v.origin, v.labels) for v in videos(folder)] == [
        ("one_2.mp4", "", "one_2", ()),
        ("test/thunder/thunder_12_3_1.mp4", "test", "thunder_12", ("thunder",)),
        ("train/ab-_clip_1_17fps.mp4", "train", "ab-", ()),
        ("train/ab-_clip_2.mp4", "train", "ab-", ()),
    ]
    assert {video.split for video in videos(folder / "train")} == {"train"}
    assert {video.split for video in videos(folder, split="mine")} == {"mine"}


def test_classes_by_list(tmp_path):
    folder = tmp_path / "landscape"
    put(folder, "train/a.mp4", "train/b.mp4", "train/same.mp4", "test/same.mp4", "test/wind_noise/c.mp4")
    rows = "a.mp4,storm\ntrain/b.mp4,rain\nsame.mp4,x\ngone.mp4,x\na.mp4,again\nb.mp4,\n"
    (tmp_path / "classes.csv").write_text("path,label\n" + rows)
    found = videos(folder, list=str(tmp_path / "classes.csv"))
    assert [(video.path, video.labels, video.reason) for video in found] == [
        ("test/same.mp4", (), "not_listed"),
        ("test/wind_noise/c.mp4", (), "not_listed"),
        ("train/a.mp4", ("storm",), ""),
        ("train/b.mp4", ("rain",), ""),
        ("train/same.mp4", (), "not_listed"),
        ("classes.csv:4", (), "two_files"),
        ("classes.csv:5", (), "no_file"),
        ("classes.csv:6", (), "duplicate_row"),
        ("classes.csv:7", (), "bad_row"),
    ]
    assert "test/same.mp4 and train/same.mp4" in found[5].detail

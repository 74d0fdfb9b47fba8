import os
import re

import pytest

from data_tools.sources.folder import FolderOptions, FolderSource
from data_tools.sources.keys import unique_keys
from mmldm_scale.common.errors import UserError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))


def paths(folder):
    return [video.path for video in FolderSource(FolderOptions(), folder).videos()]


def test_media_files_sorted_with_labels(tmp_path):
    touch(tmp_path, "z.mp4", "cat/b.MKV", "cat/deep/a.webm", "dog/a.avi", "dog/notes.txt", "list.csv")
    videos = FolderSource(FolderOptions(), tmp_path).videos()
    assert [(video.path, video.labels) for video in videos] == [
        ("cat/b.MKV", ("cat",)),
        ("cat/deep/a.webm", ("cat",)),
        ("dog/a.avi", ("dog",)),
        ("z.mp4", ()),
        ("dog/notes.txt", ()),
        ("list.csv", ()),
    ]
    assert videos[0].bytes == len("cat/b.MKV")


def test_every_file_is_a_candidate_or_has_a_kind(tmp_path):
    kinds = {
        "clip.VOB": "",
        "clip.mxf": "",
        "clip.gif": "",
        "clip.ogg": "",
        "no_suffix": "",
        "of.unknown": "",
        "poster.JPG": "picture",
        "song.flac": "sound",
        "a.info.json": "text",
        "more.tar": "archive",
        "features.npy": "data",
        "b.mp4.part": "unfinished download",
        ".DS_Store": "hidden or system file",
        "._a.mp4": "hidden or system file",
        "deep/Thumbs.db": "hidden or system file",
    }
    touch(tmp_path, *kinds)
    videos = FolderSource(FolderOptions(), tmp_path).videos()
    assert {video.path: video.detail for video in videos} == kinds
    assert {video.reason for video in videos if video.detail} == {"not_a_video", "hidden_file"}
    assert {video.reason for video in videos if not video.detail} == {""}


def test_the_key_of_a_video_does_not_depend_on_files_beside_it(tmp_path):
    touch(tmp_path, "a.mp4", "a.txt", "a.json", "._a.mp4")
    videos = FolderSource(FolderOptions(), tmp_path).videos()
    assert unique_keys([video.name for video in videos])[0] == "a"


def test_folder_loops_end_and_nothing_comes_twice(tmp_path):
    touch(tmp_path, "real/a.mp4", "b.mp4")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "self").symlink_to(".")
    (tmp_path / "again").symlink_to(tmp_path / "real")
    assert paths(tmp_path) == ["b.mp4", "real/a.mp4"]


def test_linked_folders_outside_are_followed_once(tmp_path):
    touch(tmp_path, "elsewhere/x/c.mp4", "in/a.mp4")
    (tmp_path / "in" / "one").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "two").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert paths(tmp_path / "in") == ["a.mp4", "one/x/c.mp4"]


def test_names_that_are_no_text_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    touch(tmp_path, name)
    assert paths(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "text"), [("missing", "no such folder"), ("file", "is a file"), ("empty", "holds no videos")]
)
def test_what_is_no_folder_of_videos_is_one_line(tmp_path, name, text):
    touch(tmp_path, "file", "empty/readme.txt")
    with pytest.raises(UserError, match=text) as error:
        paths(tmp_path / name)
    assert "\n" not in str(error.value)


def test_readable_names_stay():
    assert unique_keys(["cat/a 1.mp4", "b-c_d.webm", "été.mp4"]) == ["cat_a_1", "b-c_d", "ete"]


def test_keys_are_unique_safe_and_depend_on_the_paths_alone():
    clash = ["a b.mp4", "a_b.mp4", "a/b.mp4", "a.b.mp4", "a_b.avi", "视频.mp4", "音乐.mp4"]
    clash += ["x" * 300 + ".mp4", "x" * 301, "..mp4", "../../etc.mp4"]
    clash += [os.fsdecode(b"caf\xe9.mp4"), os.fsdecode(b"caf\xea.mp4")]
    keys = unique_keys(clash)
    assert len(set(keys)) == len(clash)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,56}", key) for key in keys)
    assert sorted(unique_keys(clash[::-1])) == sorted(keys)


def test_a_name_made_to_look_like_another_s_hash():
    first = unique_keys(["a b.mp4", "a_b.mp4"])
    keys = unique_keys(["a b.mp4", "a_b.mp4", f"{first[0]}.mp4"])
    assert len(set(keys)) == 3

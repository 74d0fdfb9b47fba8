from collections import Counter

import pytest

from data_tools.sources import open_source, read_options
from mmldm_scale.common.errors import UserError

A, B, C, D, E = "-_abcDEF012", "--0PQM4-hqg", "aaaaaaaaaaa", "00000000_30", "zzzzzzzzzzz"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    return tmp_path / "videos"


def put(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"12345")


def videos(folder, *rows, **keys):
    (folder.parent / "vggsound.csv").write_text("".join(row + "\n" for row in rows))
    options = {"kind": "vggsound", "list": str(folder.parent / "vggsound.csv"), **keys}
    return open_source(read_options(options), folder).videos()


def test_the_published_list_finds_files_as_downloaders_name_them(folder):
    put(folder, f"{A}_000030.mp4", f"{B}_1.mp4", f"deep/{C}_30000_40000.mp4", f"{D}.mkv")
    rows = [
        f'{A},30,"waterfall burbling",train',
        f'{B},1,"bird chirping, tweeting",test',
        f'{C},30,"donkey, ass braying",train',
        f'{D},70,"fireworks banging",test',
        f'{E},5,"missing",test',
    ]
    found = videos(folder, *rows)
    assert [(v.path, v.labels, v.split, v.start, v.end, v.reason) for v in found] == [
        (f"{A}_000030.mp4", ("waterfall burbling",), "train", 0, 10, ""),
        (f"{B}_1.mp4", ("bird chirping, tweeting",), "test", 0, 10, ""),
        (f"deep/{C}_30000_40000.mp4", ("donkey, ass braying",), "train", 0, 10, ""),
        (f"{D}.mkv", ("fireworks banging",), "test", 70, 80, ""),
        (E, ("missing",), "test", 5, 15, "no_file"),
    ]
    assert found[3].stretch(10.2) == (0.0, 10.2)  # it was cut to the segment
    assert videos(folder, *rows, split="mine")[1].split == "mine"


def test_every_row_and_every_file_is_accounted_for(folder):
    put(folder, f"{A}_30.mp4", f"deep/{A}_30.mp4", f"{B}.mp4", "holiday.mp4", "notes.txt")
    rows = [
        f'{A},30,"a",train',
        f'{A},30,"b",train',
        f'{C},0,"a",validation',
        f'{C},0,"a"',
        f'{C},-3,"a",test',
        f'{C},1.5,"a",test',
        f'{C},0,"",test',
        'short,0,"a",test',
        "YouTube ID,start seconds,label,train/test split",
        '"',
    ]
    found = videos(folder, *rows, "", "  ")
    assert Counter(video.reason for video in found) == {
        "": 1,
        "duplicate_row": 1,
        "bad_row": 8,
        "two_files": 1,
        "not_listed": 2,
        "not_a_video": 1,
    }
    assert len({video.name for video in found}) == len(found)


def test_mistakes_are_one_line(folder):
    put(folder, f"{A}_30.mp4")
    with pytest.raises(UserError, match="lists no segments"):
        videos(folder)
    with pytest.raises(UserError, match="vggsound.csv: no such file"):
        open_source(read_options({"kind": "vggsound"}), folder)
    with pytest.raises(UserError, match="no such folder"):
        open_source(read_options({"kind": "vggsound"}), folder / "gone").videos()

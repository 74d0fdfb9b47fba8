import json
import os
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.sources import open_source, read_options
from mmldm_scale.common.errors import UserError

ODD = ["a b.mp4", " leading.mp4", "q\"uo'te.mp4", "ünï/视频.mp4", "new\nline.mp4", "com,ma;.mp4"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    put(tmp_path / "videos", "a.mp4", "sub/b.mp4", *ODD)
    return tmp_path / "videos"


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12345")


def videos(folder, file, **keys):
    return open_source(read_options({"list": str(file), **keys}), folder).videos()


def write(folder, kind, rows):
    file = folder.parent / f"clips.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [names, *([row.get(name) for name in names] for row in rows)]
        cells = [[";".join(c) if isinstance(c, list) else "" if c is None else str(c) for c in row] for row in cells]
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
        file.write_text("\n".join(quoted), newline="")
    return file


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_all_columns_in_all_kinds(folder, kind):
    row = {
        "path": "sub/b.mp4",
        "start": 1.5,
        "end": 4.0,
        "labels": ["x", "y; z" if kind != "csv" else "z"],
        "label": "z",
        "split": "test",
        "origin": "O",
        "seconds": 9.0,
        "audio": "song.wav",
        "maybe_trimmed": True,
        "sharpness": 3.25,
    }
    full, bare = videos(folder, write(folder, kind, [row, {"path": "a.mp4"}]), music="songs")
    assert (full.path, full.bytes, full.start, full.end, full.seconds) == ("sub/b.mp4", 5, 1.5, 4.0, 9.0)
    assert full.labels == (("z", "x") if kind == "csv" else ("z", "x", "y; z"))
    assert (full.split, full.origin, full.audio, full.maybe_trimmed) == ("test", "O", "song.wav", True)
    assert (bare.path, bare.start, bare.end, bare.labels, bare.split) == ("a.mp4", 0, None, (), "")
    assert (bare.origin, bare.seconds, bare.audio, bare.maybe_trimmed, bare.reason) == ("a.mp4", None, "", False, "")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_odd_names_survive(folder, kind):
    found = videos(folder, write(folder, kind, [{"path": name} for name in ODD]))
    assert [(video.path, video.reason) for video in found] == [(name, "") for name in ODD]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_forms_of_a_list_and_of_the_disk_may_differ(folder, form):
    written, other = (unicodedata.normalize(name, "été/café.mp4") for name in (form, "NFC" if form == "NFD" else "NFD"))
    put(folder, written)
    found = videos(folder, write(folder, "csv", [{"path": other}, {"path": written}, {"path": other[:-1]}]))
    assert [(video.path, video.reason) for video in found][:1] == [(written, "")]
    assert [video.reason for video in found[1:]] == ["duplicate_row", "no_file"]


def test_names_that_are_no_text_survive(folder):
    name = os.fsdecode(b"caf\xe9.mp4")
    put(folder, name)
    (folder.parent / "a.csv").write_bytes(b"path\ncaf\xe9.mp4\n")
    pq.write_table(pa.table({"path": [b"caf\xe9.mp4"]}), folder.parent / "a.parquet")
    (folder.parent / "a.jsonl").write_text(json.dumps({"path": name}))
    for kind in ("csv", "parquet", "jsonl"):
        (video,) = videos(folder, folder.parent / f"a.{kind}")
        assert (video.path, video.reason) == (name, "")


@pytest.mark.parametrize(
    ("row", "reason", "text"),
    [
        ({"path": "../secret.mp4"}, "bad_row", "leads out of the folder"),
        ({"path": "sub/../../secret.mp4"}, "bad_row", "leads out of the folder"),
        ({"path": "/etc/passwd"}, "bad_row", "leads out of the folder"),
        ({"path": "a\0.mp4"}, "bad_row", "is no path"),
        ({"path": ""}, "bad_row", "is no path"),
        ({"path": 3}, "bad_row", "is no path"),
        ({"path": "a.mp4", "end": 10**400}, "bad_row", "is no number of seconds"),
        ({"path": "a.mp4", "start": "soon"}, "bad_row", "start 'soon' is no number of seconds"),
        ({"path": "a.mp4", "start": -1}, "bad_row", "start -1"),
        ({"path": "a.mp4", "end": float("nan")}, "bad_row", "end nan"),
        ({"path": "a.mp4", "start": 5, "end": 5}, "bad_row", "ends at 5 s, not after its start"),
        ({"path": "a.mp4", "labels": {"a": 1}}, "bad_row", "are no list of names"),
        ({"path": "a.mp4", "split": ["train"]}, "bad_row", "split ['train'] is no text"),
        ({"path": "gone.mp4"}, "no_file", "no such file"),
        ({"path": "./sub/b.mp4"}, "duplicate_row", "sub/b.mp4 from 0 s on is listed twice"),
    ],
)
def test_rows_that_give_nothing_say_why(folder, row, reason, text):
    found = videos(folder, write(folder, "jsonl", [{"path": "sub/b.mp4"}, row, {"path": "a.mp4", "start": 2}]))
    assert [video.reason for video in found] == ["", reason, ""]
    assert text in found[1].detail


def test_rows_that_are_no_rows(folder):
    (folder.parent / "a.csv").write_text("path,start\na.mp4,1\na.mp4\n\na.mp4,1,2\nsub/b.mp4,\n")
    found = videos(folder, folder.parent / "a.csv")
    assert [(video.path, video.reason) for video in found] == [
        ("a.mp4", ""),
        ("a.csv:3", "bad_row"),
        ("a.csv:5", "bad_row"),
        ("sub/b.mp4", ""),
    ]
    (folder.parent / "a.jsonl").write_text('[]\n{"path": "a.mp4"}\n{"path\n' + "[" * 100_000 + "\n")
    found = videos(folder, folder.parent / "a.jsonl")
    assert [video.reason for video in found] == ["bad_row", "", "bad_row", "bad_row"]


def test_stretches_of_one_file_have_names_of_their_own(folder):
    put(folder, "a_2000.mp4")
    rows = [{"path": "a.mp4"}, {"path": "a.mp4", "start": 2}, {"path": "a_2000.mp4"}, {"path": "a.mp4", "end": 1}]
    found = videos(folder, write(folder, "jsonl", rows))
    assert [video.reason for video in found] == [""] * 4
    assert len({video.name for video in found}) == 4


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("gone.csv", None, "No such file"),
        ("a.txt", b"path\n", "unknown kind of list"),
        ("a.csv", b"", "has no column 'path'; its columns: none"),
        ("a.csv", b"file,start\nx,1\n", "its columns: file, start"),
        ("a.csv", b'path\n"a.mp4\n', "line 2: unexpected end of data"),
        ("a.csv", b"path\n" + b"x" * 200_000, "field larger than field limit"),
        ("a.csv", b"path\n", "lists nothing"),
        ("a.jsonl", b"x" * (1 << 21), "no list"),
        ("a.parquet", b"PAR1 is not what this is PAR1", "cannot be read as Parquet"),
        ("a.csv", b"path,audio\na.mp4,b.wav\n", "set source.music to the folder"),
    ],
)
def test_mistakes_are_one_line(folder, name, content, text):
    if content is not None:
        (folder.parent / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        videos(folder, folder.parent / name)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_one_line(folder):
    with pytest.raises(UserError, match="no such folder"):
        videos(folder / "gone", write(folder, "csv", [{"path": "a.mp4"}]))


def test_a_selection_is_read_with_its_source_s_configuration(folder):
    file = write(folder, "parquet", [{"path": "a.mp4"}])
    assert [video.path for video in videos(folder, file, exclude=["Music"], ontology="ontology.json")] == ["a.mp4"]
    with pytest.raises(UserError, match="source.exclude: only for source.kind=audioset, not for folder"):
        read_options({"exclude": ["Music"]})

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from data_tools.sources import open_source
from data_tools.sources.audioset import AudioSetOptions
from data_tools.sources.segments import parse_name
from mmldm_scale.common.errors import UserError

HEAD = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
"""
ONTOLOGY = """[
 {"id": "/m/music", "name": "Music", "child_ids": ["/m/rock", "/m/jazz"], "restrictions": []},
 {"id": "/m/rock", "name": "Rock music", "child_ids": ["/m/punk"]},
 {"id": "/m/punk", "name": "Punk rock", "child_ids": ["/m/rock"]},
 {"id": "/m/jazz", "name": "Jazz", "child_ids": []},
 {"id": "/m/dog", "name": "Dog", "child_ids": ["/m/bark"]},
 {"id": "/m/bark", "name": "Bark", "child_ids": []},
 {"id": "/m/speech", "name": "Male speech, man speaking", "child_ids": []}
]"""
A, B, C, D = "-_abcDEF01-", "Yes_no_may_", "0VHVqjGXmBM", "__________D"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "ontology.json").write_text(ONTOLOGY)
    return tmp_path / "videos"


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1234")


def write(folder: Path, *rows: str, name: str = "eval_segments.csv", head: str = HEAD) -> str:
    file = folder.parent / name
    file.write_text(head + "".join(row + "\n" for row in rows))
    return str(file)


def videos(folder: Path, *rows: str, **keys):
    if rows:
        keys["list"] = write(folder, *rows)
    return open_source(AudioSetOptions(**keys), folder).videos()


@pytest.mark.parametrize(
    ("stem", "youtube_id", "start"),
    [
        (A, A, None),
        (B, B, None),
        ("Y" + A, A, None),
        ("Y" + B, B, None),
        (C + "_30", C, 30),
        (C + "_000030", C, 30),
        (C + "-30-40", C, 30),
        (C + "_30.000_40.000", C, 30),
        (C + "_30000_40000", C, 30000),
        ("Y" + A + "_30_40", A, 30),
        (B + "_5", B, 5),
        ("Y" + D[1:] + "__7", D[1:] + "_", 7),
        (D + "_0", D, 0),
    ],
)
def test_ids_are_cut_off_by_length_never_split(stem, youtube_id, start):
    for path in (f"{stem}.mp4", f"00/{stem}.webm"):
        file = parse_name(path)
        assert (file.path, file.youtube_id, file.start) == (path, youtube_id, start)


@pytest.mark.parametrize("stem", ["short", C + "x", C + "_a", C + "_1_2_3", "ü" + C[1:], "", C + " (1)"])
def test_other_names_are_no_ids(stem):
    assert parse_name(f"{stem}.mp4") is None


def test_rows_become_stretches_of_the_files_that_hold_them(folder):
    put(folder, f"{A}.mp4", f"0V/{C}_000030.mkv", f"Y{D}_20000_30500.mp4")
    rows = videos(
        folder,
        f'{A}, 10.000, 20.000, "/m/speech,/m/dog"',
        f"{C}, 30.000, 40.000, /m/bark",  # as rewritten by other tools: no quotes
        f'{D},20.0,30.500,"/m/jazz"',
        f'{B}, 0.000, 10.000, "/m/dog"',
    )
    whole, seconds, milliseconds, absent = rows
    assert (whole.path, whole.start, whole.end, whole.maybe_trimmed) == (f"{A}.mp4", 10, 20, True)
    assert whole.labels == ("Male speech, man speaking", "Dog")
    assert (whole.bytes, whole.origin, whole.split, whole.reason) == (4, A, "eval", "")
    assert whole.stretch(10.2) == (0.0, 10.2)  # cut to the segment already
    assert whole.stretch(300.0) == (10.0, 20.0)
    # Named by their start, so they begin there.
    assert (seconds.path, seconds.start, seconds.end) == (f"0V/{C}_000030.mkv", 0, 10)
    assert (milliseconds.path, milliseconds.start, milliseconds.end) == (f"Y{D}_20000_30500.mp4", 0, 10.5)
    assert (absent.path, absent.reason, absent.labels) == (B, "no_file", ("Dog",))
    assert len({video.name for video in rows}) == 4


def test_a_file_of_a_video_with_several_segments_is_cut_to_none_of_them(folder):
    put(folder, f"{A}.mp4", f"{A}_90.mp4")
    rows = videos(folder, *(f'{A}, {start}.000, {start + 10}.000, "/m/dog"' for start in (0, 30, 90)))
    assert [(row.path, row.start, row.maybe_trimmed) for row in rows] == [
        (f"{A}.mp4", 0, False),
        (f"{A}.mp4", 30, False),
        (f"{A}_90.mp4", 0, False),
    ]
    assert rows[1].stretch(10.0) == (30.0, 10.0)  # empty: nobody knows which ten seconds these are


def test_every_row_and_every_file_is_accounted_for(folder):
    put(folder, f"{A}.mp4", f"b/{A}.mp4", f"a/{A}_10.webm", f"{B}.mp4", f"{C}_70.mp4", "holiday.mp4", "notes.txt")
    rows = [
        f'{A}, 10.000, 20.000, "/m/dog"',
        f'{A}, 10.000, 20.000, "/m/dog"',
        f'{C}, 30.000, 40.000, "/m/dog"',
        f"{D}, 30.000",
        f'{D}, 30.000, 40.000, "/m/dog", more',
        'too_short, 30.000, 40.000, "/m/dog"',
        f'{D}, 40.000, 30.000, "/m/dog"',
        f'{D}, nan, 30.000, "/m/dog"',
        f'{D}, 0.000, 10.000, "/m/never"',
        f'{D}, 0.000, 10.000, "/m/dog',
        f'{D}, 0.000, 10.000, ","',
        "\udcff\x00\x01".encode("utf-8", "surrogateescape").decode("latin-1"),
    ]
    found = videos(folder, *rows, "", "   ")
    assert Counter(video.reason for video in found[: len(rows)]) == {
        "": 1,
        "duplicate_row": 1,
        "no_file": 1,
        "bad_row": 9,
    }
    assert found[0].path == f"a/{A}_10.webm"  # the name that says most, then the first path
    assert [(video.path, video.reason) for video in found[len(rows) :]] == [
        (f"{A}.mp4", "two_files"),
        (f"{C}_70.mp4", "not_listed"),
        (f"{B}.mp4", "not_listed"),
        (f"b/{A}.mp4", "two_files"),
        ("holiday.mp4", "not_listed"),
        ("notes.txt", "not_a_video"),
    ]
    assert f"a/{A}_10.webm" in found[len(rows)].detail
    assert found[3].path == "eval_segments.csv:7"
    assert f"{D}, 30.000" in found[3].detail
    assert "/m/never" in found[8].detail
    assert len({video.name for video in found}) == len(found)
    assert all("\n" not in video.detail for video in found)


def test_several_lists_each_its_split(folder):
    put(folder, f"{A}.mp4", f"{B}.mp4", f"{C}.mp4")
    lists = [
        write(folder, f'{A}, 0.000, 10.000, "/m/dog"', name="balanced_train_segments.csv"),
        write(folder, f'{B}, 0.000, 10.000, "/m/dog"', f'{A}, 0.000, 9.000, "/m/dog"', name="eval_segments.csv"),
    ]
    found = videos(folder, list=",".join(lists))
    assert [(video.origin, video.split, video.reason) for video in found] == [
        (A, "balanced_train", ""),
        (B, "eval", ""),
        (A, "eval", "duplicate_row"),
        (C, "", "not_listed"),
    ]
    assert videos(folder, list=lists[0], split="mine")[0].split == "mine"


def test_lists_in_the_folder_are_found(folder):
    put(folder, f"{A}.mp4")
    (folder / "unbalanced_train_segments.csv").write_text(f'YTID, start_seconds\n{A}, 0.000, 10.000, "/m/dog"\n')
    (folder / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/dog,"Dog, domestic"\n')
    video, *others = videos(folder)
    assert [other.reason for other in others] == ["not_a_video"] * 2
    assert (video.split, video.labels) == ("unbalanced_train", ("Dog, domestic",))


def test_without_lists_files_are_taken_whole(folder):
    put(folder, f"{A}_30.mp4", f"{A}.mp4", "x.mp4")
    assert [(video.path, video.origin, video.end, video.reason) for video in videos(folder)] == [
        (f"{A}.mp4", A, None, ""),
        (f"{A}_30.mp4", A, None, ""),
        ("x.mp4", "x.mp4", None, ""),
    ]


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        ({}, "ABCD"),
        ({"exclude": ["Music"]}, "CD"),
        ({"exclude": ["/m/rock"]}, "BCD"),
        ({"exclude": ["rock MUSIC", "Bark"]}, "BC"),
        ({"include": ["Dog"]}, "CD"),
        ({"include": ["Dog", "Music"], "exclude": ["Punk rock"]}, "BCD"),
        ({"include": ["Male speech, man speaking"]}, "C"),
    ],
)
def test_labels_stand_for_their_branches(folder, keys, left):
    put(folder, *(f"{name}.mp4" for name in (A, B, C, D)))
    rows = (
        f'{A}, 0.000, 10.000, "/m/punk"',
        f'{B}, 0.000, 10.000, "/m/jazz"',
        f'{C}, 0.000, 10.000, "/m/speech,/m/dog"',
        f'{D}, 0.000, 10.000, "/m/bark"',
    )
    found = videos(folder, *rows, **keys)
    assert len(found) == 4  # nothing is lost, and no file counts as unlisted
    names = dict(zip((A, B, C, D), "ABCD", strict=True))
    assert "".join(names[video.origin] for video in found if not video.reason) == left
    assert {video.reason for video in found} <= {"", "label_excluded", "label_not_included"}
    if keys.get("include") == ["Dog"]:
        assert found[2].labels == ("Dog", "Male speech, man speaking")  # what was asked for is the class


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"exclude": ["Musik"]}, "'Musik': no label of AudioSet; close to it: 'Music'"),
        ({"include": ["zzzzzz"]}, "'zzzzzz': no label of AudioSet"),
        ({"ontology": "nowhere.json"}, "nowhere.json: No such file"),
        ({"ontology": "list.csv"}, "list.csv: not AudioSet's ontology"),
        ({"label_names": "list.csv"}, "list.csv: not AudioSet's label index"),
        ({"list": "train.parquet"}, "a list of clips needs --source folder"),
        ({"list": "nowhere.csv"}, "nowhere.csv: no such file"),
        ({"list": "ontology.json,videos/../ontology.json"}, "two lists have the same name"),
        ({"list": "empty.csv"}, "empty.csv: lists no segments"),
        ({"list": "binary.csv"}, "binary.csv: line 1 has 65536 characters"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, keys, text):
    monkeypatch.chdir(folder.parent)
    put(folder, f"{A}.mp4")
    write(folder, f'{A}, 0.000, 10.000, "/m/dog"', name="list.csv")
    write(folder, name="empty.csv")
    Path("binary.csv").write_bytes(b"\x00\xff" * (1 << 17))
    with pytest.raises(UserError) as error:
        videos(folder, **{"list": "list.csv", **keys})
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_choosing_labels_needs_the_ontology(folder):
    put(folder, f"{A}.mp4")
    (folder.parent / "ontology.json").unlink()
    with pytest.raises(UserError, match=r"ontology\.json"):
        videos(folder, f'{A}, 0.000, 10.000, "/m/dog"', exclude=["Music"])


def test_the_real_evaluation_list(folder):
    media = os.environ.get("MMLDM_TEST_MEDIA")
    lists = Path(media).parent / "audioset" if media else None
    if lists is None or not lists.is_dir():
        pytest.skip("MMLDM_TEST_MEDIA has no audioset/ beside it")
    put(folder, "--4gqARaEJE.mp4", "zz/zzNdwF40ID8_70000.mp4")
    found = videos(folder, list=str(lists / "eval_segments.csv"), exclude=["Music"])
    assert len(found) == 20_371
    assert sum(len(video.labels) for video in found) == 51_804
    assert len({label for video in found for label in video.labels}) == 527
    assert (found[0].path, found[0].start, found[0].end, found[0].reason) == ("--4gqARaEJE.mp4", 0, 10, "")
    assert (found[-2].path, found[-2].reason) == ("zz/zzNdwF40ID8_70000.mp4", "label_excluded")
    nodes = {node["id"]: node["child_ids"] for node in json.loads((lists / "ontology.json").read_text())}
    music, size = {"/m/04rlf"}, 0
    while len(music) > size:
        size, music = len(music), music | {child for mid in music for child in nodes[mid]}
    lines = (lists / "eval_segments.csv").read_text().splitlines()[3:]
    without = sum(music.isdisjoint(line.split('"')[1].split(",")) for line in lines)
    assert Counter(video.reason for video in found) == {
        "": 1,
        "label_excluded": 20_371 - without,
        "no_file": without - 1,
    }

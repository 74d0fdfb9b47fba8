import io
import json
import tarfile
from collections import Counter

import pytest

from data_tools.shard import main
from data_tools.sources import open_source, read_options
from data_tools.sources.keys import unique_keys
from data_tools.sources.tar_members import notes, opened
from mmldm_scale.common.errors import UserError
from mmldm_scale.media.clip import MediaError
from mmldm_scale.shards.reader import ShardSet


def write_tar(file, *members):
    """Write ``members``, pairs of a name and its content (a TarInfo in place of the name: as it is)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def sample(key, **members):
    return [(f"{key}.{suffix}", content) for suffix, content in members.items()]


def videos(folder, **keys):
    return open_source(read_options({"kind": "webdataset", **keys}), folder).videos()


def reasons(found):
    return Counter(video.reason for video in found)


def test_samples_of_all_tars_with_their_sound_class_and_origin(tmp_path):
    facts = json.dumps({"url": "https://example.org/1", "topic": "rain", "clips": [[0, 1]]}).encode()
    write_tar(
        tmp_path / "train" / "0.tar",
        *sample("a/001", mp4=b"video", json=facts, txt=b"it rains"),
        *sample("a/002", webm=b"video!", wav=b"sound", cls=b"7\n"),
    )
    write_tar(tmp_path / "test" / "0.tar", *sample("./a/001", MKV=b"v"))
    found = videos(tmp_path)
    assert [(v.path, v.bytes, v.audio, v.labels, v.split, v.reason) for v in found] == [
        ("test/0.tar/a/001.MKV", 1, "", (), "test", ""),
        ("train/0.tar/a/001.mp4", 5, "", (), "train", ""),
        ("train/0.tar/a/002.webm", 6, "train/0.tar/a/002.wav", ("7",), "train", ""),
    ]
    keys = unique_keys([video.name for video in found])
    assert keys == ["test_0_tar_a_001", "train_0_tar_a_001", "train_0_tar_a_002"]
    chosen = videos(tmp_path, label="topic", origin="url", split="mine")[1]
    assert (chosen.labels, chosen.origin, chosen.split) == (("rain",), "https://example.org/1", "mine")
    assert notes(tmp_path, found[1].path) == {"text": "it rains", "json": json.loads(facts)}
    assert notes(tmp_path, found[0].path) == {}
    with opened(tmp_path, found[2].audio) as file:
        assert file.read_bytes() == b"sound"
    assert not file.exists()


def test_samples_are_those_of_the_webdataset_package(tmp_path):
    import webdataset as wds

    names = ["a.mp4", "a.json", "b.c/d.left.mp4", "b.c/d.txt", "e", "__meta__/f.mp4", "g.MP4", "a.webm", "h.part.mp4"]
    tar = write_tar(tmp_path / "0.tar", *((name, b"x") for name in names))
    theirs = {
        (sample["__key__"], suffix)
        for sample in wds.WebDataset(str(tar), shardshuffle=False, empty_check=False)
        for suffix in sample
        if not suffix.startswith("__")
    }
    found = videos(tmp_path)
    taken = {video.path.removeprefix("0.tar/") for video in found if not video.reason}
    assert taken == {f"{key}.{suffix}" for key, suffix in theirs if suffix.endswith(("mp4", "webm"))} - {"g.mp4"} | {
        "g.MP4"
    }
    assert reasons(found) == {"": 5, "not_in_a_sample": 2}


def test_everything_in_the_folder_and_in_the_tars_is_counted(tmp_path):
    link, folder = tarfile.TarInfo("link.mp4"), tarfile.TarInfo("folder")
    link.type, link.linkname, folder.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.DIRTYPE
    failed = json.dumps({"status": "failed_to_download", "error_message": "403"}).encode()
    write_tar(
        tmp_path / "0.tar",
        *sample("1", json=failed, txt=b""),
        *sample("2", mp4=b"first"),
        *sample("2", mp4=b"second"),
        ("../../outside.mp4", b"v"),
        ("/absolute.mp4", b"v"),
        (link, b""),
        (folder, b""),
        ("no_suffix", b"v"),
        *sample("3", pth=b"a pickle", pyd=b"a pickle"),
    )
    for name in ("0.parquet", "0_stats.json", "loose.mp4", "1.tar.gz", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty.tar").touch()
    found = videos(tmp_path)
    assert reasons(found) == {
        "": 1,
        "no_video_member": 2,
        "duplicate_member": 1,
        "bad_name": 2,
        "not_regular": 1,
        "not_in_a_sample": 1,
        "not_a_video": 2,
        "not_in_a_tar": 1,
        "compressed_tar": 1,
        "hidden_file": 1,
        "damaged_tar": 1,
    }
    assert "failed_to_download: 403" in found[0].detail
    assert len({video.name for video in found}) == len(found)
    with pytest.raises(MediaError, match="missing_file"), opened(tmp_path, "0.tar/link.mp4"):
        pass


@pytest.mark.parametrize("damage", ["cut in a member", "cut between members", "cut at the end", "header", "no tar"])
def test_a_damaged_tar_is_named_and_read_as_far_as_it_goes(tmp_path, damage):
    tar = write_tar(tmp_path / "0.tar", *sample("1", mp4=b"v" * 600), *sample("2", mp4=b"w" * 600))
    data = bytearray(tar.read_bytes())
    size = 512 + 1024  # of each member
    if damage == "header":
        data[size : size + 100] = b"\xff" * 100
    elif damage == "no tar":
        data = b"no tar at all" * 1000
    else:
        data = data[: {"cut in a member": size + 700, "cut between members": size, "cut at the end": 2 * size}[damage]]
    tar.write_bytes(data)
    found = videos(tmp_path)
    assert [video.path for video in found if video.reason == "damaged_tar"] == ["0.tar"]
    assert reasons(found)[""] == {"no tar": 0, "cut at the end": 2}.get(damage, 1)


def test_a_name_that_comes_again_and_sizes_that_cannot_be(tmp_path):
    write_tar(tmp_path / "0.tar", *sample("a", mp4=b"1", txt=b"x"), *sample("b", mp4=b"2"), *sample("a", mp4=b"3"))
    negative = write_tar(tmp_path / "1.tar", *sample("c", mp4=b"4" * 1024))
    content = bytearray(negative.read_bytes())
    content[124:136] = b"\xff" * 12  # the size in binary: -1
    content[148:156] = b"%06o\0 " % sum(content[:148] + b" " * 8 + content[156:512])
    negative.write_bytes(content)
    (tmp_path / "2.tar").write_bytes(2 * write_tar(tmp_path / "d", *sample("d", mp4=b"5")).read_bytes())
    (tmp_path / "d").unlink()
    found = videos(tmp_path)
    taken = [video.name for video in found if not video.reason]
    assert taken == ["0.tar/a.mp4", "0.tar/b.mp4", "2.tar/d.mp4"]
    assert len(unique_keys(taken)) == 3
    assert reasons(found)["duplicate_member"] == 1
    assert [video.detail for video in found if "more follows" in video.detail]


def test_lists_are_brace_and_wildcard_patterns(tmp_path):
    for name in ("a/00.tar", "a/01.tar", "b/00.tar"):
        write_tar(tmp_path / name, *sample("1", mp4=b"v"))

    def chosen(pattern):
        found = videos(tmp_path, list=pattern)
        return [video.path.partition(".tar")[0] for video in found if not video.reason], reasons(found)

    assert chosen("a/{00..02}.tar") == (["a/00", "a/01"], {"": 2, "no_file": 1, "not_listed": 1})
    assert chosen("*/00.tar::a/01.tar")[0] == ["a/00", "b/00", "a/01"]
    for pattern in ("../{0..1}.tar", "/etc/*.tar"):
        with pytest.raises(UserError, match="source.list"):
            videos(tmp_path, list=pattern)
    with pytest.raises(UserError, match="holds no tars like c"):
        videos(tmp_path, list="c/*.tar")
    assert chosen("pipe:touch x.tar")[1] == {"no_file": 1, "not_listed": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a": NaN, "b": [1]}', {"a": None, "b": [1]}),
        (b"[" * 100_000, None),
        (b"[1]", None),
        (b'{"a": 1e999}', None),
        (b"\xff", None),
        (b'{"a": "' + b"x" * (1 << 18) + b'"}', None),
    ],
)
def test_json_that_cannot_be_kept(tmp_path, text, value):
    write_tar(tmp_path / "0.tar", *sample("1", mp4=b"v", json=text))
    assert notes(tmp_path, "0.tar/1.mp4") == {"json": value}


def test_a_list_leads_into_tars(tmp_path):
    write_tar(tmp_path / "videos" / "0.tar", *sample("1", mp4=b"video"))
    (tmp_path / "list.csv").write_text("path\n0.tar/1.mp4\n0.tar/2.mp4\n")
    found = open_source(read_options({"list": str(tmp_path / "list.csv")}), tmp_path / "videos").videos()
    assert [(video.path, video.bytes, video.reason) for video in found] == [
        ("0.tar/1.mp4", 5, ""),
        ("0.tar/2.mp4", 0, "no_file"),
    ]


def test_clips_from_tars_are_those_of_the_files(good_videos, overrides, tmp_path, capsys):
    names = [path.relative_to(good_videos) for path in sorted(good_videos.rglob("*.mp4"))]
    for number, name in enumerate(names):
        notes_of = {"txt": b"a caption", "json": b'{"topic": "%d"}' % (number % 2)}
        parts = sample("1", mp4=(good_videos / name).read_bytes(), **notes_of)
        write_tar(tmp_path / "tars" / f"{number}.tar", *parts, *sample("2", mp4=b"no video"), *sample("3", txt=b""))
    command = ["clips", "--source", "webdataset", "--input", str(tmp_path / "tars"), "--output", str(tmp_path / "set")]
    assert main([*command, "--workers", "0", "source.label=topic", *overrides]) == 0
    assert "9 entries found = 3 taken + 6 dropped (3 not_media, 3 no_video_member)" in capsys.readouterr().out
    assert (
        main(["clips", "--input", str(good_videos), "--output", str(tmp_path / "same"), "--workers", "0", *overrides])
        == 0
    )
    made, same = ShardSet(tmp_path / "set"), ShardSet(tmp_path / "same")
    assert made.key(0) == "0_tar_1-000000"
    for index in range(len(same)):
        ours, theirs = (dict(shards[index].members) for shards in (made, same))
        assert ours.pop("json") != theirs.pop("json")
        assert ours == theirs
    meta = made[0].meta
    assert (meta["text"], meta["json"], meta["label"]) == ("a caption", {"topic": "0"}, "0")
    assert "/proc/" not in (tmp_path / "set" / "dropped.jsonl").read_text()

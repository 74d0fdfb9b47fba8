"""F7: the disk is full while sharding: finished shards stay, one line reports it, and with room it resumes.

The disk is a small file system in memory, which takes root to mount.
"""

import contextlib
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import fault_trials
from tests.support.sandbox import KINDS, Workshop, contents

PAGE = 4096  # bytes; what a file takes is a multiple of it
LINE = re.compile(r"shard\.py: (?P<path>/\S+): the disk is full after [\d,]+ bytes of this file; .* to resume")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("shop"))


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of ``size`` bytes at ``folder``, or skip the test."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small file system ({mounted.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def room(files: dict[str, bytes]) -> int:
    """Return the bytes that ``files`` take on a disk."""
    return sum(-(-len(data) // PAGE) * PAGE for data in files.values())


def trial(shop: Workshop, kind: str, number: int) -> str:
    dice = random.Random(7_000 + number)
    size, expected = 1 + 2 * (number // len(KINDS) % 2), shop.expected(kind)
    top = shop.folder / f"trial-{number}"
    output = top / kind
    with disk(top, dice.randrange(PAGE, room(expected), PAGE)):
        team = [shop.start(kind, output, dice.randrange(3)) for _ in range(size)]
        for process in team:
            out, error = process.communicate(timeout=180)
            line = LINE.fullmatch(error.splitlines()[-1])
            assert process.returncode == 2, (out, error)
            assert line, error
            assert Path(line["path"]).is_relative_to(output)
            assert "Traceback" not in error
        shop.check_deserted()
        kept = contents(output) if output.exists() else {}
        assert {name: data for name, data in kept.items() if expected.get(name) != data} == {}
        subprocess.run(["mount", "-o", f"remount,size={2 * room(expected) + (1 << 20)}", top], check=True)
        done = shop.start(kind, output)
        answer = done.communicate(timeout=180)
        assert done.returncode == 0, answer
        assert contents(output) == expected
    finished = sum(name.endswith((".tar", ".parquet")) for name in kept)
    return f"{kind} by {size}, full {'after some shards' if finished else 'before the first shard'}"


@fault_trials.counts(full=30, short=1)
def test_a_full_disk_is_one_line_and_loses_nothing(count, shop):
    fault_trials.run("F7 the disk is full", count, lambda number: trial(shop, KINDS[number % len(KINDS)], number))

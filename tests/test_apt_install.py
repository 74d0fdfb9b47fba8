"""``.ci/apt-install``, with a stand-in for ``apt-get``: it waits while another process holds apt's locks."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci/apt-install"
LISTS = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"
ARCHIVES = "E: Could not get lock /var/cache/apt/archives/lock. It is held by process 7 (apt-get)"


def install(folder: Path, failures: list[str], wait: int = 60) -> tuple[int, list[str]]:
    """Run the script with an ``apt-get`` that fails once with each of ``failures``; return status and apt's calls."""
    calls, program = folder / "calls", folder / "apt-get"
    for number, message in enumerate(failures):
        (folder / f"failure{number}").write_text(message + "\n")
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\nset -- {folder}/failure*\n'
        '[ -e "$1" ] || exit 0\ncat "$1" >&2; rm "$1"; exit 100\n'
    )
    program.chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "APT_WAIT": str(wait)}
    done = subprocess.run([SCRIPT, "make", "munge"], env=env, capture_output=True, text=True, timeout=30)
    return done.returncode, calls.read_text().splitlines()


@pytest.mark.parametrize("lock", [LISTS, ARCHIVES])
def test_apt_is_called_again_until_the_lock_is_free(tmp_path: Path, lock: str) -> None:
    status, calls = install(tmp_path, [lock, lock])
    assert status == 0
    assert [call.split()[3] for call in calls] == ["update", "update", "update", "install"]
    assert calls[-1] == "-q -o DPkg::Lock::Timeout=60 install -y --no-install-recommends make munge"


def test_another_failure_is_not_repeated(tmp_path: Path) -> None:
    status, calls = install(tmp_path, ["E: Unable to locate package munge"])
    assert (status, len(calls)) == (100, 1)


def test_the_wait_is_bounded(tmp_path: Path) -> None:
    status, calls = install(tmp_path, [LISTS] * 20, wait=3)
    assert (status, len(calls) < 5) == (100, True)

"""What ``make soak`` counted, kept in ``benchmarks/results/soak.jsonl``: a line of JSON for each test and time.

A test that has passed there, with the code as it is, on such a machine and in as many trials as asked for or more, is
left out the next time, so that ``make soak`` can be stopped and started again.
"""

import json
import subprocess
from functools import cache
from pathlib import Path

from benchmarks.report import machine
from tests.support.faults.fault_trials import Counted, lower_percent

ROOT = Path(__file__).parents[3]
FILE = ROOT / "benchmarks/results/soak.jsonl"
CODE = ("mmldm_scale", "data_tools", "tests")  # a change of these makes earlier results those of other code


def passed(test: str, count: int) -> bool:
    """Return whether ``test`` is on file as passed by this code on such a machine, in at least ``count`` trials.

    Code that is not committed is not known again.
    """
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    return any(
        (row["test"], row["code"], row["machine"]["processor"]) == (test, code(), machine()["processor"])
        and row["passed"] == row["of"] >= count
        and not code().endswith("+")
        for row in map(json.loads, lines)
    )


def keep(test: str, counted: Counted, seconds: float) -> None:
    """Add a line for ``test``, whose trials took ``seconds`` together."""
    row = {"test": test, "name": counted.name, "passed": counted.passed, "of": counted.of}
    row |= {"at_least_percent": lower_percent(counted.passed, counted.of), "kinds": counted.kinds}
    row |= {"seconds": round(seconds), "code": code(), "machine": machine()}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("a") as file:
        file.write(json.dumps(row) + "\n")


@cache
def code() -> str:
    """Return the commit that last changed the code, with a "+" if it is not as it was there."""
    commit = _git("log", "-1", "--format=%h", "--", *CODE)
    changed = _git("status", "--porcelain", "--", *CODE) or not commit
    return f"{commit or 'unknown'}+" if changed else commit


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""

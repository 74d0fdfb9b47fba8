"""Findings of checks, and how checks are run: each has a time limit, and a failed check does not stop the others."""

import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "error")  # from best to worst


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        level: "ok", "warning" (training works, but badly) or "error" (training would fail).
        subject: what was checked, in one or two words.
        text: the result.
        remedy: what to do about it; empty if unknown.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def line(self, where: str = "") -> str:
        """Return the finding as one line; ``where`` names the hosts it applies to, if not all."""
        text = f"{where}: {self.text}" if where else self.text
        return f"{self.level:<8} {self.subject:<14} {text}{f'; {self.remedy}' if self.remedy else ''}"


@dataclass(frozen=True)
class Check:
    """A check: ``find`` yields findings, for ``seconds`` at most."""

    subject: str
    find: Callable[[], Iterable[Finding]]
    seconds: float = 20.0


def run_check(check: Check) -> list[Finding]:
    """Return the findings of ``check``; an exception or a time-out is a finding of level "error"."""
    findings: list[Finding] = []

    def find() -> None:
        """Collect the findings as they come, so that those before a time-out are kept."""
        try:
            for finding in check.find():
                findings.append(finding)
        except Exception as error:  # of any kind: the other checks have to run
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = " ".join(str(error).split())[:300]
            findings.append(_error(f"{type(error).__name__}: {message} ({place.filename}:{place.lineno})"))

    def _error(text: str) -> Finding:
        return Finding("error", check.subject, text)

    thread = threading.Thread(target=find, daemon=True)  # a hanging check does not keep the process alive
    thread.start()
    thread.join(check.seconds)
    if thread.is_alive():
        return [*findings, _error(f"no answer within {check.seconds:g} s")]
    return findings


def report_at_once(checks: Iterable[Check]) -> int:
    """Run ``checks`` in this process alone, print each finding as it comes; return 1 if one is an error, else 0."""
    status = 0
    for check in checks:
        for finding in run_check(check):
            print(finding.line(), flush=True)
            status = max(status, finding.level == "error")
    return int(status)


def report(by_rank: list[list[Finding]], hosts: list[str]) -> list[str]:
    """Return the lines for the findings of all ranks, which ran on ``hosts``; equal findings make one line."""
    hosts_of: dict[Finding, list[str]] = {}
    for findings, host in zip(by_rank, hosts, strict=True):
        for finding in findings:
            hosts_of.setdefault(finding, []).append(host)
    lines = []
    for subject in dict.fromkeys(finding.subject for finding in hosts_of):
        of_subject = {finding: where for finding, where in hosts_of.items() if finding.subject == subject}
        all_ok = all(finding.level == "ok" for finding in of_subject)
        first_rank = next(findings for findings in by_rank if any(f.subject == subject for f in findings))
        for finding, where in of_subject.items():
            if finding.level != "ok" or finding in first_rank:  # of "ok" findings one rank's suffice
                lines.append(finding.line("" if all_ok or set(where) == set(hosts) else _names(where)))
    return lines


def worst_level(by_rank: list[list[Finding]]) -> Level:
    """Return the worst level of all findings; "ok" without any."""
    return max((f.level for findings in by_rank for f in findings), key=LEVELS.index, default="ok")


def _names(hosts: list[str], most: int = 4) -> str:
    names = list(dict.fromkeys(hosts))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

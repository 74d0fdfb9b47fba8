"""What a check found, and how checks are run: none takes longer than its time, none that fails hides the others."""

import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "trouble"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "trouble")


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        level: "trouble" is what training would stumble over.
        subject: what was looked at, in a word or two.
        text: what was found.
        remedy: what would help, if that is known.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def line(self, where: str = "") -> str:
        """Return it as printed; ``where`` names the hosts, if not all agree."""
        text = f"{where}: {self.text}" if where else self.text
        return f"{self.level:<8} {self.subject:<14} {text}{f'; {self.remedy}' if self.remedy else ''}"


@dataclass(frozen=True)
class Check:
    """A thing to look at: ``look`` yields what is found, within ``seconds``."""

    subject: str
    look: Callable[[], Iterable[Finding]]
    seconds: float = 20.0


def examine(check: Check) -> list[Finding]:
    """Return what ``check`` finds; that it fails, or takes longer than it may, is trouble found."""
    found: list[Finding] = []

    def look() -> None:
        try:
            for finding in check.look():
                found.append(finding)
        except Exception as error:  # whatever it is, the other checks are to be made
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = " ".join(str(error).split())[:300]
            found.append(_trouble(f"{type(error).__name__}: {what} ({place.filename}:{place.lineno})"))

    def _trouble(text: str) -> Finding:
        return Finding("trouble", check.subject, text)

    thread = threading.Thread(target=look, daemon=True)  # one that hangs does not keep the process
    thread.start()
    thread.join(check.seconds)
    if thread.is_alive():
        return [*found, _trouble(f"no answer within {check.seconds:g} s")]
    return found


def report(by_rank: list[list[Finding]], hosts: list[str]) -> list[str]:
    """Return the lines for what all ranks found, ``hosts`` being where they ran: alike findings once."""
    together: dict[Finding, list[str]] = {}
    for findings, host in zip(by_rank, hosts, strict=True):
        for finding in findings:
            together.setdefault(finding, []).append(host)
    lines = []
    for subject in dict.fromkeys(finding.subject for finding in together):
        alike = {finding: where for finding, where in together.items() if finding.subject == subject}
        fine = all(finding.level == "ok" for finding in alike)
        speaking = next(findings for findings in by_rank if any(f.subject == subject for f in findings))
        for finding, where in alike.items():
            if finding.level != "ok" or finding in speaking:  # that others have more space left is no news
                lines.append(finding.line("" if fine or set(where) == set(hosts) else _names(where)))
    return lines


def worst(by_rank: list[list[Finding]]) -> Level:
    """Return the worst level of all."""
    return max((f.level for findings in by_rank for f in findings), key=LEVELS.index, default="ok")


def _names(hosts: list[str], most: int = 4) -> str:
    names = list(dict.fromkeys(hosts))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

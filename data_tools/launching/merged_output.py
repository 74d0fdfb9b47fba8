"""Many processes that do the same, heard as one.

What a process writes to its standard error goes to :meth:`Chorus.hear`. Lines are passed on once, whoever says them
first. Of the progress bars, which all show the whole work, only one process's are; if it ends, another one's.
"""

import re
import sys

BAR = re.compile(r".*\d+%\|.*\| *\d+/\d+ \[.*|.*\d+ \S+ \[\d+:\d+, .*\]")  # tqdm's, with and without a total


class Chorus:
    """Passes on to standard error what several processes, known by number, say."""

    def __init__(self) -> None:
        self._halves: dict[int, bytes] = {}  # of each process: what it has not finished saying
        self._said: dict[str, int] = {}  # line: who said it first
        self._speaker: int | None = None  # whose bars are shown
        self._on_bar = False

    def hear(self, number: int, data: bytes) -> None:
        """Take what process ``number`` wrote next."""
        *pieces, half = re.split(rb"[\r\n]+", self._halves.get(number, b"") + data)
        if BAR.fullmatch(half.decode(errors="replace")):  # a bar's end of line comes with the next one
            pieces.append(half)
            half = b""
        self._halves[number] = half
        for piece in pieces:
            text = piece.decode(errors="replace")
            if BAR.fullmatch(text):
                self._bar(number, text)
            elif text.strip() and self._said.setdefault(text, number) == number:
                self.say(text)

    def leave(self, number: int) -> None:
        """Process ``number`` has ended: let out what it had not finished saying, and show another one's progress."""
        self.hear(number, b"\n")
        if self._speaker == number:
            self._speaker = None

    def say(self, text: str) -> None:
        """Print a line of our own."""
        print(f"{self._above_bar()}{text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave a bar where it stands."""
        if self._on_bar:
            print(file=sys.stderr, flush=True)
            self._on_bar = False

    def _bar(self, number: int, text: str) -> None:
        self._speaker = number if self._speaker is None else self._speaker
        if number != self._speaker:
            return
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._on_bar = True
        else:
            print(text, file=sys.stderr, flush=True)

    def _above_bar(self) -> str:
        begin = "\r\x1b[K" if self._on_bar else ""
        self._on_bar = False
        return begin

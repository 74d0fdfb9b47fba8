"""Names in lists and names on disk that differ in their Unicode form alone.

"é" is one character (NFC, which most systems write) or two (NFD, which macOS writes), and the two are different names
to Linux. ``OnDisk(folder).path("café.mp4")`` returns the path as it is on disk, whichever form either of them has.
"""

import os
import unicodedata
from pathlib import Path


def same_form(text: str) -> str:
    """Return ``text`` in the form NFC, so that equal names are equal strings."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class OnDisk:
    """Finds files of ``folder`` by names of any Unicode form; each folder that is searched is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, dict[str, str]] = {}  # of each folder that was read: form NFC to name on disk

    def path(self, path: str) -> str:
        """Return ``path``, relative to the folder, as it is on disk; unchanged if no form of it exists."""
        if path.isascii() or os.path.lexists(self._folder / path):
            return path
        found = ""
        for part in path.split("/"):
            name = part if os.path.lexists(self._folder / found / part) else self._in(found).get(same_form(part))
            if name is None:
                return path
            found = f"{found}/{name}" if found else name
        return found

    def _in(self, folder: str) -> dict[str, str]:
        if folder not in self._names:
            try:
                names = sorted(os.listdir(self._folder / folder))
            except OSError:  # a file, or not ours to read: then nothing is found in it
                names = []
            self._names[folder] = {same_form(name): name for name in names}
        return self._names[folder]

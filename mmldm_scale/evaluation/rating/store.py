"""The votes of a study: ``votes.sqlite`` in its folder, with what was asked beside each vote.

A vote is on the disk before the rater's browser hears of it: one transaction, write-ahead log, full sync. Sent twice
(double click, retry), it counts once. A changed vote becomes a new revision; the last revision counts, and earlier ones
stay in the file.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.rating.plan import NOISE_CLIP, Check, CheckKind, Question, ShownClip

FILE = "votes.sqlite"
SCALES = ("audio", "video", "match")  # audio quality, video quality, audio-video match
PREFERENCES = ("left", "none", "right")
BUSY = 30.0  # seconds that a transaction waits for another process, such as a report
SCHEMA = """
CREATE TABLE IF NOT EXISTS raters (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, started REAL NOT NULL);
CREATE TABLE IF NOT EXISTS votes (
    rater INTEGER NOT NULL REFERENCES raters, question INTEGER NOT NULL, revision INTEGER NOT NULL,
    time REAL NOT NULL, seconds REAL NOT NULL, played INTEGER NOT NULL, preference TEXT NOT NULL,
    check_kind TEXT NOT NULL, check_score INTEGER NOT NULL,
    PRIMARY KEY (rater, question, revision));
CREATE TABLE IF NOT EXISTS scores (
    rater INTEGER NOT NULL, question INTEGER NOT NULL, revision INTEGER NOT NULL, place INTEGER NOT NULL,
    set_name TEXT NOT NULL, clip TEXT NOT NULL,
    audio INTEGER NOT NULL, video INTEGER NOT NULL, match INTEGER NOT NULL,
    PRIMARY KEY (rater, question, revision, place),
    FOREIGN KEY (rater, question, revision) REFERENCES votes);
"""

Scores = Mapping[str, int]  # 1 to 5, by scale


@dataclass(frozen=True)
class Vote:
    """What a rater says to a question.

    Attributes:
        scores: of each clip, the left one first.
        preference: one of :data:`PREFERENCES`; "" if not asked.
        played: whether all clips were played to the end.
        seconds: on the page, by the browser's clock.
    """

    scores: Sequence[Scores]
    preference: str = ""
    played: bool = True
    seconds: float = 0.0


@dataclass(frozen=True)
class StoredVote:
    """The last revision of a vote, with what was asked; ``revision`` is 0 unless the rater has changed it."""

    rater: int
    number: int
    revision: int
    question: Question
    vote: Vote


class VoteStore:
    """The votes of one study; threads may share it. Use it as a context manager.

    Args:
        folder: the study's; the file is made if it is missing.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(folder / FILE, timeout=BUSY, isolation_level=None, check_same_thread=False)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{folder / FILE}: cannot be used: {error}") from None

    def __enter__(self) -> "VoteStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def add_rater(self, key: str) -> int:
        """Return the number of the rater with the secret ``key``; a new rater gets the next number."""
        with self._transaction() as database:
            next_number = "SELECT coalesce(max(number) + 1, 0), ?, ? FROM raters"
            database.execute(f"INSERT OR IGNORE INTO raters {next_number}", (key, time.time()))
            row: tuple[int] = database.execute("SELECT number FROM raters WHERE key = ?", (key,)).fetchone()
        return row[0]

    def rater(self, key: str) -> int | None:
        """Return the number of the rater with the secret ``key``; None if there is none."""
        with self._lock:
            row = self._database.execute("SELECT number FROM raters WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def answered(self, rater: int) -> set[int]:
        """Return the numbers of the questions, from 0, that ``rater`` has answered."""
        with self._lock:
            rows = self._database.execute("SELECT DISTINCT question FROM votes WHERE rater = ?", (rater,)).fetchall()
        return {row[0] for row in rows}

    def last_vote(self, rater: int, number: int) -> Vote | None:
        """Return the vote of ``rater`` on question ``number``; None if there is none."""
        with self._lock:
            stored = _last_votes(self._database, "WHERE rater = ? AND question = ?", (rater, number))
        return stored[0].vote if stored else None

    def save(self, rater: int, number: int, question: Question, vote: Vote) -> bool:
        """Write the vote of ``rater`` on question ``number``; return False if the same vote was there already."""
        with self._transaction() as database:
            earlier = _last_votes(database, "WHERE rater = ? AND question = ?", (rater, number))
            if earlier and (earlier[0].vote.scores, earlier[0].vote.preference) == (vote.scores, vote.preference):
                return False
            key = (rater, number, earlier[0].revision + 1 if earlier else 0)
            check = question.check or Check("instruction", 0)
            kind = check.kind if question.check else ""
            facts = (time.time(), vote.seconds, vote.played, vote.preference, kind, check.score)
            database.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*key, *facts))
            rows = [
                (*key, place, clip.set, clip.key, *(scores[scale] for scale in SCALES))
                for place, (clip, scores) in enumerate(zip(question.clips, vote.scores, strict=True))
            ]
            database.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        return True

    def counts(self) -> tuple[int, int]:
        """Return the numbers of raters and of votes, those on attention checks included."""
        with self._lock:
            raters: int = self._database.execute("SELECT count(*) FROM raters").fetchone()[0]
            votes = "SELECT count(*) FROM votes WHERE revision = 0"
            return raters, int(self._database.execute(votes).fetchone()[0])


def read(folder: Path) -> tuple[int, list[StoredVote]]:
    """Return the number of raters, and the last revision of every vote by rater and question, of a study's folder.

    The study may be served meanwhile.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = folder / FILE
    if not file.exists():
        return 0, []
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", timeout=BUSY, uri=True)
        ) as opened:
            opened.execute("BEGIN")  # one state of the file for both
            raters: int = opened.execute("SELECT count(*) FROM raters").fetchone()[0]
            return raters, _last_votes(opened)
    except sqlite3.DatabaseError as error:
        raise UserError(f"{file}: cannot be read: {error}") from None


def _last_votes(database: sqlite3.Connection, where: str = "", values: Sequence[int] = ()) -> list[StoredVote]:
    last = f"SELECT rater, question, max(revision) AS revision FROM votes {where} GROUP BY rater, question"
    rows = database.execute(
        "SELECT rater, question, revision, seconds, played, preference, check_kind, check_score,"
        " set_name, clip, audio, video, match"
        f" FROM ({last}) JOIN votes USING (rater, question, revision) JOIN scores USING (rater, question, revision)"
        " ORDER BY rater, question, place",
        values,
    )
    votes: dict[tuple[int, int, int], list[tuple]] = {}
    for rater, number, revision, *rest in rows:
        votes.setdefault((rater, number, revision), []).append(tuple(rest))
    return [_stored(*key, places) for key, places in votes.items()]


def _stored(rater: int, number: int, revision: int, places: Sequence[tuple]) -> StoredVote:
    seconds, played, preference, kind, score = places[0][:5]
    clips = tuple(ShownClip(*place[5:7]) if place[5] else NOISE_CLIP for place in places)
    scores = [dict(zip(SCALES, place[7:], strict=True)) for place in places]
    check: CheckKind | None = kind or None
    question = Question(clips, Check(check, score) if check else None)
    return StoredVote(rater, number, revision, question, Vote(scores, preference, bool(played), seconds))

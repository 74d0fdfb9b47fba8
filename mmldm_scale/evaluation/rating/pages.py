"""The raters' pages. They hold no name of a set or file; templates lie beside this module."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from werkzeug.wrappers import Response

from mmldm_scale.common.pages import render
from mmldm_scale.evaluation.rating.plan import SCORES, Question
from mmldm_scale.evaluation.rating.store import SCALES, Vote

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Scale:
    """A row of scores on the page."""

    name: str
    title: str
    asks: str


SCALE_TEXTS = (
    Scale(SCALES[0], "Audio quality", "Is the sound clear and natural?"),
    Scale(SCALES[1], "Video quality", "Is the picture sharp and realistic?"),
    Scale(SCALES[2], "Match", "Does the sound fit what is seen, in time?"),
)
WORDS = ("bad", "poor", "fair", "good", "excellent")  # for 1 to 5, as in ITU-T P.800


def page(template: str, status: int = 200, **values: Any) -> Response:
    """Return the page that ``template`` makes of ``values``, under a policy that allows nothing from elsewhere."""
    nonce = secrets.token_urlsafe(16)
    html = render(FOLDER / template, nonce=nonce, **values)
    response = Response(html, status, content_type="text/html; charset=utf-8")
    own = f"'nonce-{nonce}'"
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src {own}; script-src {own}; media-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return response


def question_page(question: Question, number: int, total: int, vote: Vote | None, current: int) -> Response:
    """Return the page of ``question``, the ``number``-th of ``total``, with ``vote`` filled in if there is one.

    Args:
        current: number of the first question that has no answer; total + 1: all have one.
    """
    names = ("Clip A", "Clip B") if len(question.clips) > 1 else ("The clip",)
    clips = [
        {"place": place, "name": name, "scores": vote.scores[i] if vote else {}}
        for i, (place, name) in enumerate(zip(("a", "b"), names, strict=False))
    ]
    values: dict[str, Any] = {"number": number, "total": total, "current": current, "clips": clips}
    values |= {"asks_preference": asks_preference(question), "preference": vote.preference if vote else ""}
    values |= {"heading": _heading(question), "scales": SCALE_TEXTS, "words": _words()}
    return page("question.html", title=f"{number} of {total}", **values)


def asks_preference(question: Question) -> bool:
    """Return whether the page of ``question`` asks which clip is preferred."""
    return len(question.clips) > 1 and (question.check is None or question.check.kind == "noise")


def start_page(questions: int, pairs: bool, checks: bool, new_key: str, progress: tuple[str, int] | None) -> Response:
    """Return the first page.

    Args:
        questions: number of pages with questions.
        checks: whether some of them are attention checks.
        new_key: of a rater who begins now.
        progress: of the rater whom the browser remembers: key, and number of answers.
    """
    values: dict[str, Any] = {
        "questions": questions,
        "pairs": pairs,
        "checks": checks,
        "new_key": new_key,
        "progress": progress,
    }
    return page("start.html", title="Rate videos with sound", scales=SCALE_TEXTS, words=_words(), **values)


def message_page(title: str, text: str, status: int = 200, link: tuple[str, str] | None = None) -> Response:
    """Return a page with ``text`` and, if given, a ``link``: address and text."""
    return page("message.html", status, title=title, text=text, link=link)


def _heading(question: Question) -> str:
    if question.check and question.check.kind == "instruction":
        return f"Attention check: please choose {question.check.score} in every row of this page"
    return "How good are these two clips?" if len(question.clips) > 1 else "How good is this clip?"


def _words() -> Sequence[tuple[int, str]]:
    return list(zip(SCORES, WORDS, strict=True))

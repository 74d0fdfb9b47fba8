"""The web application of a study: its pages, its clips and the receipt of votes.

====================================  =====================================================================
/TOKEN/                               the first page
/TOKEN/begin                          POST: a new rater
/TOKEN/r/KEY/                         the rater's personal link; leads to the first question without answer
/TOKEN/r/KEY/7                        question 7; POST: its answer
/TOKEN/r/KEY/7/a.mp4                  its left clip; b.mp4: the right one
====================================  =====================================================================

TOKEN is the study's secret, KEY the rater's. No address holds a path or the name of a set: a clip is found by the
rater's plan, so there is none that leads out of the study. Questions are answered in order; earlier ones can be
answered anew. Redirections are relative, so that a proxy may add a folder.
"""

import functools
import hmac
import math
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.utils import redirect, send_file
from werkzeug.wrappers import Request, Response

from mmldm_scale.evaluation.rating import pages
from mmldm_scale.evaluation.rating.plan import NOISE_CLIP, SCORES, Question, plan
from mmldm_scale.evaluation.rating.store import PREFERENCES, SCALES, Vote, VoteStore
from mmldm_scale.evaluation.rating.study import NOISE, Study

COOKIE, COOKIE_AGE = "rater", 365 * 24 * 3600  # seconds
CLIP_AGE = 3600  # seconds that a browser keeps a clip
KEY = re.compile(r"[\w-]{22,64}", re.ASCII)  # 128 bits or more
MOST_BYTES = 8192  # of a request's body
MOST_SECONDS = 24 * 3600.0  # on a page
PLACES = ("a", "b")


class RatingRequest(Request):
    """A request whose body is limited to MOST_BYTES."""

    max_content_length = MOST_BYTES
    max_form_memory_size = MOST_BYTES
    max_form_parts = 32


class RatingApplication:
    """The pages of ``study``, as a WSGI application.

    Args:
        token: the secret part of every address.
    """

    def __init__(self, study: Study, store: VoteStore, token: str) -> None:
        self._study, self._store, self._token = study, store, token
        self._plan = functools.lru_cache(maxsize=1024)(functools.partial(plan, study))
        self._routes = Map(
            [
                Rule("/<token>/", endpoint=self._start, methods=["GET"]),
                Rule("/<token>/begin", endpoint=self._begin, methods=["POST"]),
                Rule("/<token>/r/<key>/", endpoint=self._resume, methods=["GET"]),
                Rule("/<token>/r/<key>/<int:number>", endpoint=self._ask, methods=["GET"]),
                Rule("/<token>/r/<key>/<int:number>", endpoint=self._answer, methods=["POST"]),
                Rule("/<token>/r/<key>/<int:number>/<any(a, b):place>.mp4", endpoint=self._clip, methods=["GET"]),
            ],
            merge_slashes=False,
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        request = RatingRequest(environ)
        try:
            response = self._respond(request)
        except HTTPException as error:
            response = _error_page(error)
        headers = response.headers
        headers["Referrer-Policy"] = "no-referrer"  # the address is the secret
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Robots-Tag"] = "noindex"
        headers.setdefault("Cache-Control", "no-store")
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        endpoint, values = self._routes.bind_to_environ(request.environ).match()
        token, others = values["token"], {name: value for name, value in values.items() if name != "token"}
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            raise Forbidden
        view: Callable[..., Response] = endpoint
        return view(request, **others)

    def _start(self, request: Request) -> Response:
        key = request.cookies.get(COOKIE, "")
        rater = self._store.rater(key)
        progress = None if rater is None else (key, len(self._store.answered(rater)))
        study = self._study
        total, pairs = study.questions + study.checks, study.mode == "pairs"
        return pages.start_page(total, pairs, study.checks > 0, secrets.token_urlsafe(16), progress)

    def _begin(self, request: Request) -> Response:
        """Add a rater; a form that is sent twice has the same key, and adds one."""
        key = request.form.get("key", "")
        if not KEY.fullmatch(key):
            raise BadRequest("The form is incomplete.")
        self._store.add_rater(key)
        return redirect(f"r/{key}/", 303)

    def _resume(self, request: Request, key: str) -> Response:
        questions, current = self._progress(key)
        if current <= len(questions):
            response = redirect(str(current), 303)
        else:
            text = f"All {len(questions)} questions are answered, and your answers are saved. You can close this page."
            response = pages.message_page("Thank you!", text, link=(f"{len(questions)}", "Look at the last one again"))
        response.set_cookie(COOKIE, key, max_age=COOKIE_AGE, path=f"/{self._token}/", httponly=True, samesite="Lax")
        return response

    def _ask(self, request: Request, key: str, number: int) -> Response:
        questions, current = self._progress(key)
        if not 1 <= number <= min(current, len(questions)):
            return redirect("./", 303)
        vote = self._store.last_vote(self._rater(key), number - 1)
        return pages.question_page(questions[number - 1], number, len(questions), vote, current)

    def _answer(self, request: Request, key: str, number: int) -> Response:
        questions, current = self._progress(key)
        if not 1 <= number <= min(current, len(questions)):
            raise BadRequest("This question comes later.")
        question = questions[number - 1]
        self._store.save(self._rater(key), number - 1, question, _read_vote(request, question))
        return redirect("./", 303)

    def _clip(self, request: Request, key: str, number: int, place: str) -> Response:
        questions, current = self._progress(key)
        if not 1 <= number <= min(current, len(questions)) or PLACES.index(place) >= len(questions[number - 1].clips):
            raise NotFound
        clip = questions[number - 1].clips[PLACES.index(place)]
        file = self._study.folder / NOISE if clip == NOISE_CLIP else self._study.file(clip.set, clip.key)
        return _send_clip(request, file, f"{place}.mp4", f"{key}-{number}-{place}")

    def _rater(self, key: str) -> int:
        rater = self._store.rater(key)
        if rater is None:
            raise Forbidden
        return rater

    def _progress(self, key: str) -> tuple[tuple[Question, ...], int]:
        """Return the rater's questions, and the number, from 1, of the first without an answer."""
        rater = self._rater(key)
        questions, answered = self._plan(rater), self._store.answered(rater)
        return questions, next((n for n in range(len(questions)) if n not in answered), len(questions)) + 1


def _send_clip(request: Request, file: Path, name: str, tag: str) -> Response:
    """Send ``file`` under ``name``, or the bytes of it that the browser asks for; no header tells which file it is."""
    response = send_file(file.absolute(), request.environ, "video/mp4", download_name=name, etag=tag)
    response.headers.pop("Last-Modified", None)
    response.headers["Cache-Control"] = f"private, max-age={CLIP_AGE}"
    return response


def _read_vote(request: Request, question: Question) -> Vote:
    """Return the vote in the form of ``request``.

    Raises:
        BadRequest: a score is missing or out of range.
    """
    form = request.form
    scores = []
    for place in PLACES[: len(question.clips)]:
        given = {scale: form.get(f"{place}-{scale}", "") for scale in SCALES}
        if any(value not in map(str, SCORES) for value in given.values()):
            raise BadRequest("Every row needs a score from 1 to 5.")
        scores.append({scale: int(value) for scale, value in given.items()})
    preference = form.get("preference", "") if pages.asks_preference(question) else ""
    if pages.asks_preference(question) and preference not in PREFERENCES:
        raise BadRequest("The preference is missing.")
    return Vote(scores, preference, form.get("played") == "1", _seconds(form.get("seconds", "")))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), MOST_SECONDS) if math.isfinite(seconds) else 0.0


def _error_page(error: HTTPException) -> Response:
    """Return the page of ``error``; a redirection is answered as such."""
    response: Any = error.get_response()
    if error.code is None or error.code < 400:
        return response
    texts = {
        403: ("This link is not valid", "Please ask for the whole link, and take care to copy all of it."),
        404: ("There is nothing here", "Please ask for the link to the study again."),
    }
    title, text = texts.get(error.code, ("This did not work", error.description or error.name))
    page = pages.message_page(title, text, error.code)
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            page.headers[name] = value
    return page

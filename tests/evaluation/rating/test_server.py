"""The server: raters lose no vote, see no name, and reach nothing but their study."""

import http.client
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mmldm_scale.cli import main
from mmldm_scale.evaluation.rating import store, study
from mmldm_scale.evaluation.rating.plan import plan
from mmldm_scale.evaluation.rating.store import SCALES
from tests.evaluation.rating.conftest import options, post, served

RATERS, QUESTIONS, CHECKS = 20, 4, 2
KEY = "key-of-a-rater-in-a-test"


def scores(rater: int, number: int) -> dict[str, int]:
    """Return the fields of a form: scores that are of their own for every rater and question."""
    return {
        f"{place}-{scale}": 1 + (rater * 7 + number * 3 + i * 2 + j) % 5
        for i, place in enumerate("ab")
        for j, scale in enumerate(SCALES)
    }


class Rater:
    """A rater who answers one question after another, and knows which answers the server has accepted."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.key = f"key-of-rater-number-{number:04d}"
        self.accepted: set[int] = set()

    def work(self, link: str) -> bool:
        """Answer what is left; return False if the server is gone before the end."""
        try:
            page = post(f"{link}begin", key=self.key)
            while place := page.rpartition("/")[2]:
                fields = scores(self.number, int(place)) | {"preference": "left", "played": 1, "seconds": 2.5}
                page = post(page, **fields)
                self.accepted.add(int(place))
        except (OSError, http.client.HTTPException):
            return False
        return True


def stored(folder: Path) -> dict[tuple[str, int], dict[str, int]]:
    """Return the scores of each vote in the study's file, by the rater's key and the question's number from 1."""
    with store.VoteStore(folder) as votes:
        numbers = {votes.rater(rater.key): rater.key for rater in map(Rater, range(RATERS))}
    return {
        (numbers[vote.rater], vote.number + 1): {
            f"{place}-{scale}": given[scale]
            for place, given in zip("ab", vote.vote.scores, strict=True)
            for scale in SCALES
        }
        for vote in store.read(folder)[1]
    }


def test_twenty_raters_at_once_and_a_killed_server_lose_no_vote(sets, tmp_path) -> None:
    raters = [Rater(number) for number in range(RATERS)]
    words = ["--study", tmp_path / "study", *options(sets), "--questions", QUESTIONS, "--attention", CHECKS]
    with served(*words) as (link, process), ThreadPoolExecutor(RATERS) as pool:
        enough = threading.Event()

        def watched(rater: Rater) -> bool:
            rater.accepted = Watched(rater.accepted, enough, raters)
            return rater.work(link)

        work = [pool.submit(watched, rater) for rater in raters]
        assert enough.wait(100)
        process.kill()
        assert not all(future.result() for future in work)  # the server did not live to the end
    before = stored(tmp_path / "study")
    accepted = {(rater.key, place) for rater in raters for place in rater.accepted}
    assert len(accepted) >= ENOUGH
    assert accepted <= set(before)

    with served("--study", tmp_path / "study") as (link, _), ThreadPoolExecutor(RATERS) as pool:
        assert all(pool.map(lambda rater: rater.work(link), raters))
    after = stored(tmp_path / "study")
    assert after == {
        (rater.key, place): scores(rater.number, place)
        for rater in raters
        for place in range(1, QUESTIONS + CHECKS + 1)
    }
    assert store.read(tmp_path / "study")[0] == RATERS


ENOUGH = 40  # accepted votes after which the server is killed


class Watched(set):
    """The accepted answers of one rater; tells when those of all raters are enough."""

    def __init__(self, values: set[int], enough: threading.Event, raters: list[Rater]) -> None:
        super().__init__(values)
        self._enough, self._raters = enough, raters

    def add(self, value: int) -> None:
        super().add(value)
        if sum(len(rater.accepted) for rater in self._raters) >= ENOUGH:
            self._enough.set()


@pytest.fixture(scope="module")
def link(sets, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    words = ["--study", folder / "study", *options(sets), "--questions", 3, "--attention", 2, "--seed", 1]
    with served(*words) as (address, _):
        FOLDER[address] = folder / "study"
        yield address


FOLDER: dict[str, Path] = {}


def request(
    url: str, method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], str]:
    """Send one request as it stands, without the corrections that clients make; return status, headers, content."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=60)
    try:
        connection.request(method, url.removeprefix(f"http://{parts.netloc}"), body or None, headers or {})
        answer = connection.getresponse()
        content = answer.read().decode("latin-1")
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content
    finally:
        connection.close()


def test_only_the_whole_link_is_valid(link: str) -> None:
    root, token = link[: link.rindex("/", 0, -1) + 1], link.split("/")[-2]
    post(f"{link}begin", key=KEY)
    for wrong in ("x" * len(token), token[:-1], f"{token}x", "%00", "%C3%A9"):
        for path in ("/", f"/r/{KEY}/1", f"/r/{KEY}/1/a.mp4"):
            assert request(f"{root}{wrong}{path}")[0] == 403
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert request(f"{root}{wrong}/begin", "POST", f"key={KEY}".encode(), form)[0] == 403
    assert request(root)[0] == 404
    assert request(f"{link}r/another-rater-who-has-not-begun/1")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "../study.json",
        "../../../../etc/passwd",
        "r/{key}/1/../../../study.json",
        "r/{key}/1/..%2f..%2fstudy.json",
        "r/{key}/1/%2e%2e/%2e%2e/votes.sqlite",
        "r/{key}/1//etc/passwd",
        "r/{key}/1/c.mp4",
        "r/{key}/1/a.mp4/../../token",
        "r/{key}/2/a.mp4",  # comes later
        "r/{key}/0",
        "study.json",
        "token",
    ],
)
def test_no_path_leads_out_of_the_study(link: str, path: str) -> None:
    post(f"{link}begin", key=KEY)
    status, _, content = request(link + path.format(key=KEY))
    assert status in (303, 403, 404)
    assert "sha256" not in content
    assert "root:" not in content


def test_nothing_that_a_rater_receives_names_a_set_or_a_file(link: str, sets) -> None:
    key = "key-of-a-rater-who-looks"
    post(f"{link}begin", key=key)
    questions = plan(study.load(FOLDER[link]), 0)
    names = re.compile(r"first.set|second.set|svg_|\b000\d|" + "|".join(path.name for path in sets.values()))
    for number in range(1, len(questions) + 1):
        url = f"{link}r/{key}/{number}"
        received = [request(url), request(f"{url}/a.mp4"), request(f"{url}/b.mp4")]
        assert [status for status, _, _ in received] == [200, 200, 200]
        for _, headers, _ in received:
            assert not names.search(str(headers))
            assert "last-modified" not in headers
        assert not names.search(received[0][2])
        post(url, **scores(0, number), preference="none")


def test_pages_load_nothing_from_elsewhere_and_tell_nobody_their_address(link: str) -> None:
    _, headers, content = request(link)
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'nonce-")
    assert (headers["referrer-policy"], headers["cache-control"]) == ("no-referrer", "no-store")
    assert "http" not in content


def test_clips_are_sent_in_the_parts_that_browsers_ask_for(link: str) -> None:
    post(f"{link}begin", key=KEY)
    url = f"{link}r/{KEY}/1/a.mp4"
    status, headers, whole = request(url)
    assert (status, headers["accept-ranges"], headers["content-type"]) == (200, "bytes", "video/mp4")
    size = len(whole)
    for asked, part in (("0-1", whole[:2]), ("10-", whole[10:]), ("-5", whole[-5:]), (f"0-{size}", whole)):
        status, headers, content = request(url, headers={"Range": f"bytes={asked}"})
        assert (status, content) == (206, part)
        assert headers["content-range"].endswith(f"/{size}")
    assert request(url, headers={"Range": f"bytes={size}-"})[0] == 416
    status, headers, content = request(url, "HEAD")
    assert (status, headers["content-length"], content) == (200, str(size), "")


def test_votes_that_are_sent_twice_count_once_and_changed_ones_are_kept(link: str) -> None:
    key = "key-of-a-rater-who-doubts"
    post(f"{link}begin", key=key)
    post(f"{link}begin", key=key)  # a double click
    url = f"{link}r/{key}/1"
    with ThreadPoolExecutor(8) as pool:
        following = list(pool.map(lambda _: post(url, **scores(3, 1), preference="none"), range(8)))
    assert set(following) == {f"{link}r/{key}/2"}
    with store.VoteStore(FOLDER[link]) as votes:
        rater = votes.rater(key)
    (vote,) = (vote for vote in store.read(FOLDER[link])[1] if vote.rater == rater)
    assert vote.revision == 0
    post(url, **scores(4, 1), preference="none")
    (vote,) = (vote for vote in store.read(FOLDER[link])[1] if vote.rater == rater)
    assert (vote.revision, vote.vote.scores[0]["audio"]) == (1, scores(4, 1)["a-audio"])


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"a-match": 6}, 400),
        ({"a-match": ""}, 400),
        ({"a-match": "²"}, 400),
        ({"preference": "both"}, 400),
        ({"more": "x" * 10_000}, 413),
    ],
)
def test_a_form_that_is_wrong_or_large_is_no_vote(link: str, fields: dict[str, object], status: int) -> None:
    key = "key-of-a-rater-who-errs-" + str(status)
    post(f"{link}begin", key=key)
    with store.VoteStore(FOLDER[link]) as votes:
        rater = votes.rater(key)
        questions = plan(study.load(FOLDER[link]), rater or 0)
        number = next(i for i, question in enumerate(questions, 1) if not question.check)
        for earlier in range(1, number):
            post(f"{link}r/{key}/{earlier}", **scores(0, earlier), preference="none")
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{link}r/{key}/{number}", **{**scores(0, number), "preference": "none", **fields})
        assert refused.value.code == status
        refused.value.close()
        assert votes.last_vote(rater or 0, number - 1) is None


def test_a_study_is_served_once_at_a_time(link: str, capsys) -> None:
    assert main(["rate", "serve", "--study", str(FOLDER[link])]) == 2
    assert re.fullmatch(r"mmldm: \S+: is served already, by process \d+ on \S+\n", capsys.readouterr().err)


def test_a_port_that_is_taken_is_one_line(link: str, sets, tmp_path, capsys) -> None:
    port = urlsplit(link).port
    words = ["--study", str(tmp_path / "study"), *options(sets), "--port", str(port)]
    assert main(["rate", "serve", *words]) == 2
    assert f"--port {port}: cannot listen there: Address already in use" in capsys.readouterr().err

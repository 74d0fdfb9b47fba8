"""A rating session in a real browser, by keyboard: what a rater sees, and what is stored."""

import re
from pathlib import Path

import pytest

from mmldm_scale.evaluation.rating import store
from tests.evaluation.rating.conftest import options, served
from tests.support import browser as browsers
from tests.support.browser import Browser

pytestmark = pytest.mark.skipif(browsers.PROGRAM is None, reason="needs Chromium")

PLAYED = "[...document.querySelectorAll('.state')].filter(state => state.textContent == 'played ✓').length == {}"
QUESTIONS, CHECKS = 2, 1
TOTAL = QUESTIONS + CHECKS


def answer(browser: Browser, number: int) -> None:
    """Play and rate both clips of question ``number`` by the keyboard, and send."""
    browser.wait(f"document.title == '{number} of {TOTAL}'")
    asked = re.search(r"choose (\d)", browser.evaluate("document.querySelector('h1').textContent"))
    for clip, keys in enumerate(("543", "212"), start=1):
        browser.press(" ")
        browser.wait(PLAYED.format(clip))
        browser.press(asked[1] * 3 if asked else keys)
    browser.press("Enter" if asked else "1")
    if not asked:
        browser.press("Enter")


def test_a_session_from_the_link_to_the_thanks(sets: dict[str, Path], tmp_path: Path) -> None:
    words = ["--study", tmp_path / "study", *options(sets), "--questions", QUESTIONS, "--attention", CHECKS]
    with served(*words) as (link, _), Browser(tmp_path / "profile") as browser:
        browser("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        browser.open(link)
        browser.evaluate("document.querySelector('button').click()")
        browser.wait(f"document.title == '1 of {TOTAL}'")
        assert browser.evaluate("document.documentElement.scrollWidth") == 390  # nothing is wider than a phone

        browser.press("Enter")
        browser.wait("document.getElementById('message').textContent.includes('have no answer yet')")
        video = "document.querySelector('video')"
        browser.wait(f"{video}.readyState >= 2")
        browser.evaluate(f"{video}.currentTime = 0.2")
        browser.wait(f"{video}.currentTime == 0.2 && !{video}.seeking")
        browser.press("5432121")
        browser.evaluate("document.querySelectorAll('input[value=none]').forEach(input => input.click())")
        browser.press("Enter")
        browser.wait("document.getElementById('message').textContent == 'Please play Clip A to its end first'")
        browser.open(f"{link}r/")  # away, without an answer
        browser.open(link)
        browser.wait("document.body.textContent.includes('Continue (0 of 3 done)')")
        browser.evaluate("document.querySelector('a.button').click()")

        answer(browser, 1)
        browser.wait(f"document.title == '2 of {TOTAL}'")
        browser.open(link)
        browser.wait("document.body.textContent.includes('Continue (1 of 3 done)')")
        browser.evaluate("document.querySelector('a.button').click()")
        answer(browser, 2)
        browser.wait(f"document.title == '3 of {TOTAL}'")
        answer(browser, 3)
        browser.wait("document.title == 'Thank you!'")

        browser.evaluate("document.querySelector('a.button').click()")  # the last question again, to change it
        browser.wait(f"document.title == '3 of {TOTAL}' && document.querySelectorAll('input:checked').length >= 6")
        browser.evaluate("document.querySelectorAll('.row:first-of-type input')[0].click()")
        browser.evaluate("for (const i of [1, 2]) document.querySelector('form').requestSubmit()")  # a double click
        browser.wait("document.title == 'Thank you!'")
        complaints = [text for text in browser.complaints if "404" not in text]  # of the page that is none
        assert complaints == []
    raters, votes = store.read(tmp_path / "study")
    assert raters == 1
    assert [vote.number for vote in votes] == [0, 1, 2]
    assert [vote.revision for vote in votes] == [0, 0, 1]
    for vote in votes[:2]:
        given = [tuple(scores[scale] for scale in store.SCALES) for scores in vote.vote.scores]
        check = vote.question.check
        assert given == ([(check.score,) * 3] * 2 if check else [(5, 4, 3), (2, 1, 2)])
        assert vote.vote.preference == ("" if check else "left")
        assert vote.vote.played
        assert 0 < vote.vote.seconds < 300

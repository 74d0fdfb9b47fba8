"""The gallery in a real browser, from file://: what is shown, what plays, and what is loaded."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmldm_scale import cli
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.encode import write_video
from tests.support import browser as browsers
from tests.support.browser import Browser

pytestmark = pytest.mark.skipif(browsers.PROGRAM is None, reason="needs Chromium")

MEDIA = MediaConfig(frames=4, fps=10, size=32)
MANY = 2048
NASTY = "<img src=x onerror=document.title='hacked'>"
SHOWN = "document.querySelectorAll('#samples > li').length"
LOADED = "document.querySelectorAll('video[src], audio[src]').length"
IN_VIEW = "(({top, bottom}) => bottom > 0 && top < innerHeight)(selected.getBoundingClientRect())"
SELECTED = "document.querySelector('[aria-current]').id"
PLAYING = "[...document.querySelectorAll('video, audio')].filter(each => !each.paused)"
COUNT = "document.getElementById('count').textContent"


def choose(browser: Browser, filter_id: str, value: str) -> None:
    browser.evaluate(
        f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input')); }})"
        f"(document.getElementById('{filter_id}'))"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of three tasks, 2,048 of svg, all of which are one file; one has a spectrogram."""
    folder = tmp_path_factory.mktemp("gallery") / "runs #1"
    (folder / "inputs").mkdir(parents=True)
    tone = (0.5 * np.sin(np.arange(MEDIA.audio_samples) / 5)).astype(np.float32)
    write_video(folder / "svg_000000.mp4", np.full((4, 32, 32, 3), 200, np.uint8), 10, tone, 22050)
    for name in ("a2v_000000", "inputs/a2v_000000", "v2a_000000", *(f"svg_{i:06d}" for i in range(1, MANY))):
        os.link(folder / "svg_000000.mp4", folder / f"{name}.mp4")
    (folder / "spectrograms").mkdir()
    Image.new("L", (40, 20), 128).save(folder / "spectrograms/svg_000000.png")
    for index, name in enumerate(("rain", NASTY)):
        (folder / f"svg_00000{index}.json").write_text(json.dumps({"class": name, "prompt": f"prompt {index}"}))
    return folder


def test_a_folder_of_2048_samples_is_filtered_played_and_walked_through(folder: Path, tmp_path: Path) -> None:
    page = folder / "page.html"
    assert cli.main(["gallery", str(folder), "--output", str(page)]) == 0
    assert page.stat().st_size < 250_000
    with Browser(tmp_path / "profile") as browser:
        browser.open(page.as_uri())
        browser.wait(f"{SHOWN} == {MANY + 2} && {LOADED} > 2")
        assert browser.evaluate(COUNT) == "2,050 of 2,050 samples"
        assert browser.evaluate(LOADED) < 100
        picture = "document.querySelector('#svg_000000 img')"
        browser.wait(f"{picture}.complete && {picture}.naturalWidth > 0")

        assert browser.evaluate(SELECTED) == "svg_000000"
        browser.press(" ")
        browser.wait(f"{PLAYING}.length == 1 && {PLAYING}[0].currentTime > 0 && !{PLAYING}[0].muted")
        browser.press("ArrowRight")  # the one before is paused
        browser.wait(f"{SELECTED} == 'svg_000001' && {PLAYING}.length == 0")
        columns = browser.evaluate("columns()")
        browser.press("ArrowDown")
        assert browser.evaluate(SELECTED) == f"svg_{1 + columns:06d}"
        browser.press("End")
        browser.wait(f"{SELECTED} == 'v2a_000000' && document.activeElement.id == 'v2a_000000' && {IN_VIEW}")
        browser.wait(f"document.querySelector('#svg_000000 video') === null && {LOADED} < 100")
        browser.press("?")
        browser.wait("document.getElementById('keys').open")
        browser.press("Escape")
        browser.wait("!document.getElementById('keys').open")

        choose(browser, "task", "a2v")
        browser.wait(f"{SHOWN} == 1 && {LOADED} == 2")
        assert browser.evaluate(COUNT) == "1 of 2,050 samples"
        browser.evaluate("document.activeElement.blur()")
        browser.press("i")
        browser.wait(f"{PLAYING}.length == 1 && 'input' in {PLAYING}[0].parentElement.dataset && !{PLAYING}[0].muted")
        browser.press("a")
        browser.wait(f"{PLAYING}.length == 2")
        browser.press("a")
        browser.wait(f"{PLAYING}.length == 0")
        choose(browser, "task", "")
        choose(browser, "class", NASTY)
        browser.wait(f"{SHOWN} == 1 && {SELECTED} == 'svg_000001'")
        choose(browser, "class", "")
        choose(browser, "text", "PROMPT 0")
        browser.wait(f"{SHOWN} == 1 && {SELECTED} == 'svg_000000'")
        assert browser.evaluate("document.title") == str(folder)
        assert browser.evaluate("document.querySelectorAll('#samples [onerror]').length") == 0
        assert browser.complaints == []


def test_folders_side_by_side_play_together_and_one_is_heard(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("svg_000000", "svg_000001"):
        shutil.copyfile(folder / "svg_000000.mp4", other / f"{name}.mp4")
    few = tmp_path / "few"
    few.mkdir()
    shutil.copyfile(folder / "svg_000000.mp4", few / "svg_000000.mp4")
    page = tmp_path / "pages/both.html"
    assert cli.main(["gallery", str(few), str(other), "--output", str(page)]) == 0
    muted = "[...document.querySelectorAll('#svg_000000 video')].map(each => each.muted).join()"
    with Browser(tmp_path / "profile") as browser:
        browser("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        browser.open(page.as_uri())
        browser.wait(f"{LOADED} == 3")
        assert browser.evaluate("document.documentElement.scrollWidth") == 390  # nothing is wider than a phone
        assert browser.evaluate("document.querySelectorAll('.none').length") == 1
        browser.press(" ")
        browser.wait(f"{PLAYING}.length == 2 && {muted} == 'false,true'")
        browser.press("2")
        browser.wait(f"{PLAYING}.length == 2 && {muted} == 'true,false'")
        assert browser.complaints == []

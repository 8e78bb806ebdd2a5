"""The page in a real browser: a registered voice, an upload, the microphone, text from right to left, its policy."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("fastapi")

CLIP = Path(__file__).parents[3] / "specs/data/quickstart/audio/huda-01.flac"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARABIC = "مرحباً بكم، كيف حالكم اليوم؟ هذا صوتٌ مستنسخ."

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]


def driver() -> Any:
    specification = importlib.util.spec_from_file_location("chromium", Path(__file__).with_name("chromium.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("microphone") / "clip.wav"
    samples, rate = soundfile.read(CLIP)
    soundfile.write(path, samples, rate)
    return path


@pytest.fixture
def browser(tmp_path: Path, microphone: Path) -> Iterator[Any]:
    with driver().chromium(str(CHROMIUM), tmp_path / "profile", microphone) as page:
        yield page


def said(page: Any) -> float:
    """Seconds of what the page has to play."""
    page.until("document.getElementById('status').textContent.startsWith('Said in')")
    page.until("document.getElementById('out').duration > 0")
    return float(page.js("document.getElementById('out').duration"))


def test_a_person_tries_it(serving: Callable[..., Any], browser: Any, microphone: Path, tmp_path: Path) -> None:
    with serving() as server:
        browser.size(900, 640)
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.until("document.getElementById('status').textContent === 'Ready.'")

        # A registered voice, and Arabic, which stands on the right.
        browser.js(f"text.value = {ARABIC!r}; text.oninput(); speak.click()")
        assert 0 < said(browser) <= 3 * 2.1
        assert browser.js("getComputedStyle(text).direction") == "rtl"
        assert browser.js("getComputedStyle(document.body).direction") == "ltr"
        if folder := os.environ.get("HIGGSC_PICTURES"):
            browser.js("document.activeElement.blur()")
            browser.picture(Path(folder) / "serve.png")

        # A file of one's own, with a mistake first, which is explained.
        browser.js("voice.value = ''; voice.onchange()")
        browser.choose_file("#file", microphone)
        browser.js("speak.click()")
        browser.until("document.getElementById('status').className === 'bad'")
        assert "reference_text" in browser.js("document.getElementById('status').textContent")
        browser.js("said.value = 'hello there'; speak.click()")
        assert 0 < said(browser) <= 3 * 2.1

        # The microphone.
        before = server.figure('higgsc_requests_total{route="/generate_speech",status="200"}')
        browser.js("record.click()")
        browser.until("record.textContent === 'End of recording'")
        browser.js("new Promise(done => setTimeout(done, 1500))")
        browser.js("record.click()")
        browser.until("document.getElementById('status').textContent === 'Recorded.'")
        assert browser.js("heard.src.startsWith('blob:')")
        browser.js("speak.click()")
        said(browser)
        assert server.figure('higgsc_requests_total{route="/generate_speech",status="200"}') == before + 1

        # Who stops is not spoken for any more.
        browser.js("text.value = 'A long text that goes on. '.repeat(70); speak.click()")
        server.wait_for("higgsc_speaking", 1)
        browser.js("at('stop').click()")
        browser.until("document.getElementById('status').textContent === 'Stopped.'")
        server.wait_for("higgsc_speaking", 0)

        # On a phone nothing sticks out.
        browser.size(360, 740)
        assert browser.js("document.documentElement.scrollWidth") == 360
        # So far the browser had one thing to say: that a form was refused, once.
        assert [line for line in browser.complaints() if "400 (Bad Request)" not in line] == []
        # Nothing from elsewhere gets in: what is put into the page is not run, and nothing is fetched from others.
        browser.js(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.bad = 1\">');"
            "const s = document.createElement('script'); s.textContent = 'window.bad = 2'; document.body.append(s); 0"
        )
        assert browser.js("fetch('http://127.0.0.2:1/').then(() => 'got', error => error.name)") == "TypeError"
        browser.until("true")
        assert browser.js("window.bad === undefined")
        assert any("Content Security Policy" in line for line in browser.complaints())


def test_a_server_with_a_token_asks_for_it(serving: Callable[..., Any], browser: Any) -> None:
    with serving(token="correct-horse-battery-staple") as server:
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.until("!access.hidden")
        browser.js("token.value = 'correct-horse-battery-staple'; token.onchange()")
        browser.until("document.getElementById('status').textContent === 'Ready.'")
        browser.js("text.value = 'hello'; speak.click()")
        assert said(browser) > 0

"""The report's page: well-formed, whole in itself, safe with hostile data, and with the sound of the worst samples."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")

from higgsc.contract.jobs import DataLimits  # noqa: E402
from higgsc.data.page.pictures import waveform  # noqa: E402
from higgsc.data.report import histogram  # noqa: E402
from higgsc.data.report_html import page  # noqa: E402
from higgsc.data.report_svg import chart  # noqa: E402
from higgsc.data.samples import SourceFile  # noqa: E402
from higgsc.data.validate import Request, validate  # noqa: E402

RATE = 24_000
HOSTILE = "<script>alert(1)</script>\"'&]]><!--<img src=http://evil.example/x onerror=x>"


def wave(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE)).astype(np.float32)


def made(folder: Path, rows: list[dict[str, Any]], depth: str = "full", title: str = "data") -> ElementTree.Element:
    """The page about some targets, parsed as strictly as XML is."""
    soundfile.write(folder / "reference.wav", wave(1, 0.1, seed=9), RATE)
    reference = {"text": "مرجع", "audio": {"path": "reference.wav"}}
    lines = [json.dumps({"references": [reference], **row}) for row in rows]
    (folder / "data.jsonl").write_text("\n".join(lines), "utf-8")
    limits = DataLimits(min_seconds=0.5, max_seconds=30, max_bad_fraction=0.0)
    sources = (SourceFile(path=folder / "data.jsonl"),)
    shown = page(validate(Request(sources=sources, root=folder, limits=limits, depth=depth)), title=title)
    outside = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["'](?!data:)|url\(|@import|https?:""", plain(shown))
    assert not outside
    assert "<script" not in shown
    return ElementTree.fromstring(shown.removeprefix("<!DOCTYPE html>"))


def plain(shown: str) -> str:
    """Tags and styles without what stands between them: what a browser could act on."""
    return "".join(re.findall(r"<style>.*?</style>|<[^>]*>", shown, re.DOTALL))


def texts(root: ElementTree.Element, tag: str, kind: str | None = None) -> list[str]:
    return ["".join(one.itertext()) for one in root.iter(tag) if kind is None or one.get("class") == kind]


def test_hostile_data_is_shown_and_does_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", wave(1, 0.003), RATE)
    rows = [
        {"id": HOSTILE, "speaker": HOSTILE, "target": {"text": f"{HOSTILE} \0\x07\ufffe", "audio": {"path": "a.wav"}}},
        {"id": "b", "target": {"text": HOSTILE, "audio": {"path": f"{HOSTILE}.wav"}}},
    ]
    root = made(tmp_path, rows, title=HOSTILE)
    assert texts(root, "h1") == [HOSTILE]
    assert texts(root, "p", "text") == [f"{HOSTILE} \ufffd\ufffd\ufffd"]
    assert HOSTILE in texts(root, "bdi")
    assert any(HOSTILE in example for example in texts(root, "li"))
    assert {one.tag for one in root.iter()} <= {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "small", "span", "section", "div", "b",
        "details", "summary", "ul", "li", "code", "figure", "figcaption", "svg", "rect", "line", "article", "p",
        "audio", "bdi", "table", "tr", "td",
    }  # fmt: skip
    assert not [name for one in root.iter() for name in one.attrib if name.startswith("on")]
    (policy,) = [one.get("content") for one in root.iter("meta") if one.get("http-equiv")]
    (style,) = [one.text or "" for one in root.iter("style")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'sha256-{digest}'; media-src data:; base-uri 'none'; form-action 'none'"
    assert policy == allowed


def test_texts_from_right_to_left_and_the_sound_of_the_worst(tmp_path: Path) -> None:
    quiet, loud = wave(14, 0.003), np.clip(wave(1, 2.0), -1, 1)
    soundfile.write(tmp_path / "quiet.wav", quiet, RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "loud.wav", loud, RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "good.wav", wave(1, 0.1, seed=2), RATE)
    rows = [
        {"id": name, "speaker": "نور", "target": {"text": f"مرحبا بكم {name}", "audio": {"path": f"{name}.wav"}}}
        for name in ("good", "quiet", "loud")
    ]
    root = made(tmp_path, rows)
    shown = [one for one in root.iter("p") if one.get("class") == "text"]
    assert [(one.text, one.get("dir")) for one in shown] == [("مرحبا بكم loud", "auto"), ("مرحبا بكم quiet", "auto")]
    sounds = []
    for player in root.iter("audio"):
        kind, sound = str(player.get("src")).split(",", 1)
        assert kind == "data:audio/flac;base64"
        sounds.append(soundfile.read(io.BytesIO(base64.b64decode(sound)), dtype="float32"))
    assert [(len(samples), rate) for samples, rate in sounds] == [(RATE, RATE), (12 * RATE, RATE)]
    assert np.abs(sounds[1][0] - quiet[: 12 * RATE]).max() < 1e-4
    assert texts(root, "span", "verdict passed") == ["passed"]
    assert texts(root, "div", "kinds")[0] == "clippingvery loud"


@pytest.mark.parametrize("depth", ["rows", "headers"])
def test_nothing_is_played_that_was_not_decoded(tmp_path: Path, depth: str) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    soundfile.write(tmp_path / "b.wav", wave(1, 0.1)[: RATE // 3 * 2], 8_000)
    root = made(tmp_path, [{"id": n, "target": {"text": n, "audio": {"path": f"{n}.wav"}}} for n in ("a", "b")], depth)
    assert not list(root.iter("audio"))
    assert texts(root, "figcaption")


def test_a_chart_counts_every_value_and_keeps_what_lies_far_out(tmp_path: Path) -> None:
    values = [float(number % 50) for number in range(500)] + [1e6]
    root = ElementTree.fromstring(chart("length", "seconds", values))
    told = [(one.get("class"), str(one[0].text)) for one in root.iter("rect")]
    assert sum(int(text.rsplit(": ")[1].replace(",", "")) for _, text in told) == len(values)
    assert told[-1] == ("tail", next(text for _, text in told[-1:] if "to 1,000,000.0 seconds: 1" in text))
    assert [kind for kind, _ in told[:-1]] == [None] * len(told[:-1])
    for same in ([3.0], [3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 9.0]):
        root = ElementTree.fromstring(chart("x", "y", same))
        assert sum(int(str(one[0].text).rsplit(": ")[1]) for one in root.iter("rect")) == len(same)
    assert histogram([1.0], bins=4) == ([1, 0, 0, 0], 1.0, 1.0)
    for samples in (np.zeros(1), np.ones(7), np.full(1000, -2.0)):
        shape = ElementTree.fromstring(waveform(samples.astype(np.float32)))
        assert all(float(str(bar.get("height"))) > 0 for bar in shape)

"""The evaluation's page: well-formed, whole in itself, safe with hostile texts, right to left where that is due."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torch")

from higgsc.contract.evaluation import Evaluation, Heard, Judge, Kind, Losses, Measured, Prompt, Spoken  # noqa: E402
from higgsc.contract.outcome import StepError  # noqa: E402
from higgsc.data.audio import write_wav  # noqa: E402
from higgsc.data.page.pictures import curves  # noqa: E402
from higgsc.deploy.evaluate.measures import heard, totals  # noqa: E402
from higgsc.deploy.evaluate.report import page  # noqa: E402

HOSTILE = "<script>alert(1)</script>\"'&]]><!--<img src=http://evil.example/x onerror=x>\0\u202e"
SHOWN = HOSTILE.replace("\0", "\ufffd")
KINDS: tuple[Kind, ...] = ("base", "adapter", "merged")
PLACES = ("bosonai/base", "runs/arabic/checkpoints/step-9/adapter", "runs/arabic/merged")


def prompt(folder: Path, number: int, text: str, **changes: Any) -> Prompt:
    """A prompt whose files are there: half a second each, the merged model's with silence and clipping."""
    random = np.random.default_rng(number)
    for who in ("reference", "recording", *KINDS):
        wave = random.normal(0, 0.1, 12_000).astype(np.float32)
        if who == "merged":
            wave[:6_000], wave[-60:] = 0, 1
        write_wav(folder / f"{number}.{who}.wav", wave)
    said: dict[str, Any] = {"finished": True, "duration_ratio": 1.0, "code_accuracy": 0.25, "took_seconds": 0.1}
    fields: dict[str, Any] = {
        "id": f"id-{number}",
        "speaker": "نور",
        "reference_text": "مرجع",
        "target_text": text,
        "seed": number,
        "max_seconds": 3.0,
        "reference": f"{number}.reference.wav",
        "recording": heard(folder / f"{number}.recording.wav"),
        "spoken": {
            kind: Spoken(**heard(folder / f"{number}.{kind}.wav").model_dump(), **said | {"finished": kind != "base"})
            for kind in KINDS
        },
    }
    return Prompt(**(fields | changes))


def merged_with(one: Prompt, **changes: Any) -> Prompt:
    """The prompt, with other figures of what the merged model said."""
    merged = one.spoken["merged"].model_copy(update=changes)
    return one.model_copy(update={"spoken": one.spoken | {"merged": merged}})


def evaluation(prompts: list[Prompt], **changes: Any) -> Evaluation:
    losses = Losses(audio=4.5, text=0.5, audio_codebooks=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0))
    fields: dict[str, Any] = {
        "higgsc": "0",
        "name": "arabic",
        "revision": "abc",
        "audio_tokenizer": "bosonai/tokenizer",
        "store": "runs/arabic/store",
        "store_sha256": "0" * 64,
        "dtype": "bfloat16",
        "device": "cuda",
        "seed": 1,
        "temperature": 0.7,
        "prompts": "held-out",
        "language": None,
        "recogniser": None,
        "similarity": None,
        "spec_sha256": None,
        "held_out": 40,
        "models": {
            kind: Measured(
                place=place,
                losses=losses.model_copy(update={"audio": audio}),
                totals=totals(prompts, lambda one, kind=kind: one.spoken[kind]),
            )
            for kind, place, audio in zip(KINDS, PLACES, (4.5, 3.5, 3.25), strict=True)
        },
        "recordings": totals(prompts, lambda one: one.recording),
        "samples": tuple(prompts),
    }
    return Evaluation(**(fields | changes))


def parsed(found: Evaluation, folder: Path, spec: str | None = None) -> ElementTree.Element:
    """The page, read as strictly as XML is; nothing in it points anywhere."""
    made = page(found, folder, metrics=folder / "metrics.jsonl", spec=spec)
    body = made.removeprefix("<!DOCTYPE html>\n")
    assert body != made
    root = ElementTree.fromstring(body)
    for one in root.iter():
        assert one.tag not in ("script", "link", "iframe", "img", "object", "form", "a", "base")
        for name, value in one.attrib.items():
            assert not name.startswith("on")
            assert name != "style"
            assert name not in ("href", "srcset", "action")
            assert name != "src" or value.startswith("data:audio/flac;base64,")
    (policy,) = [one.get("content", "") for one in root.iter("meta") if one.get("http-equiv")]
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/=]{44}'; media-src data:(; .* 'none')+", policy
    )
    assert "url(" not in next(root.iter("style")).text
    return root


def texts(root: ElementTree.Element, tag: str, kind: str | None = None) -> list[str]:
    return ["".join(one.itertext()) for one in root.iter(tag) if kind is None or one.get("class") == kind]


def rows(root: ElementTree.Element) -> dict[str, list[str]]:
    """The tables' rows by their heads."""
    return {
        texts(row, "th")[0]: texts(row, "td") for row in root.iter("tr") if row.find("th[@scope='row']") is not None
    }


def test_hostile_texts_are_shown_and_do_nothing(tmp_path: Path) -> None:
    one = prompt(tmp_path, 0, HOSTILE, id=HOSTILE, speaker=HOSTILE, reference_text=HOSTILE)
    one = merged_with(one, transcript=HOSTILE, word_errors=2.0)
    judge = Judge(name=HOSTILE, commit=HOSTILE)
    found = evaluation([one], name=HOSTILE, store=HOSTILE, recogniser=judge, spec_sha256="1" * 64)
    hostile = {kind: model.model_copy(update={"place": HOSTILE}) for kind, model in found.models.items()}
    root = parsed(found.model_copy(update={"models": hostile}), tmp_path, spec=f"a: '{HOSTILE}'\n")
    assert texts(root, "h1") == [SHOWN]
    assert texts(root, "p", "text") == [SHOWN, SHOWN, SHOWN]  # said, understood, and the reference's
    assert texts(root, "bdi") == [SHOWN, SHOWN]
    assert any(SHOWN in fact for fact in texts(root, "dd"))
    assert texts(root, "pre") == [f"a: '{SHOWN}'\n"]
    assert texts(root, "title") == [f"{SHOWN}: evaluation"]


def test_texts_run_in_their_own_direction_and_name_their_language(tmp_path: Path) -> None:
    prompts = [prompt(tmp_path, 0, "صباح الخير."), prompt(tmp_path, 1, "Good morning.")]
    shown = [one for one in parsed(evaluation(prompts), tmp_path).iter("p") if one.get("class") == "text"]
    assert [one.get("dir") for one in shown] == ["auto"] * 4
    assert [one.get("lang") for one in shown] == ["und-Arab", "und-Arab", None, "und-Arab"]
    root = parsed(evaluation(prompts, language="ar"), tmp_path)
    assert {one.get("lang") for one in root.iter("p") if one.get("class") == "text"} == {"ar"}
    assert root.get("lang") == "en"


def test_each_prompt_has_five_players_with_the_sound_of_its_files(tmp_path: Path) -> None:
    root = parsed(evaluation([prompt(tmp_path, 0, "a"), prompt(tmp_path, 1, "b")]), tmp_path)
    played = []
    for player in root.iter("audio"):
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(str(player.get("src")).split(",")[1])))
        assert rate == 24_000
        played.append(samples)
    voices = ("merged", "adapter", "base", "recording", "reference")
    order = [f"{number}.{who}.wav" for number in (0, 1) for who in voices]
    for samples, name in zip(played, order, strict=True):
        assert np.array_equal(samples, soundfile.read(tmp_path / name)[0])
    facts = texts(root, "div", "facts soft")
    assert "48% silence" in facts[0]
    assert "0.50% clipped" in facts[0]
    assert "did not end" not in facts[1]
    assert "did not end within 3.0 s" in facts[2]


def test_the_tables_say_what_the_report_says(tmp_path: Path) -> None:
    judged = {"transcript": "a b", "word_errors": 0.5, "character_errors": 0.125, "similarity": 0.875}
    root = parsed(evaluation([merged_with(prompt(tmp_path, 0, "a c"), **judged)]), tmp_path)
    columns = [texts(row, "th") for row in root.iter("tr") if row.find("th[@scope='col']") is not None]
    assert columns == [["base", "adapter", "merged", last] for last in ("change", "recording")]
    shown = rows(root)
    assert shown["audio"] == ["4.500", "3.500", "3.250", "-1.250"]
    assert shown["codebook 7"] == ["8.000", "8.000", "8.000", "+0.000"]
    assert shown["spoken to the end"] == ["0 of 1", "1 of 1", "1 of 1", "–"]
    assert shown["word errors"] == ["–", "–", "50%", "–"]
    assert shown["similarity to the reference voice"] == ["–", "–", "0.88", "–"]
    assert shown["real-time factor"] == ["0.20", "0.20", "0.20", "–"]
    assert "word errors" not in rows(parsed(evaluation([prompt(tmp_path, 0, "a")]), tmp_path))


def test_nothing_said_and_nothing_asked(tmp_path: Path) -> None:
    write_wav(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32))
    nothing = heard(tmp_path / "empty.wav")
    assert nothing == Heard(
        wav="empty.wav", seconds=0, silence=None, clipped=None, transcript=None, word_errors=None,
        character_errors=None, similarity=None,
    )  # fmt: skip
    root = parsed(evaluation([merged_with(prompt(tmp_path, 0, "a"), **nothing.model_dump())]), tmp_path)
    assert "nothing was said" in texts(root, "p", "soft")
    assert rows(root)["real-time factor"] == ["0.20", "0.20", "–", "–"]
    assert not list(parsed(evaluation([]), tmp_path).iter("audio"))


def test_only_so_many_are_played(tmp_path: Path) -> None:
    one = prompt(tmp_path, 0, "a")
    root = parsed(evaluation([one] * 30), tmp_path)
    assert len(list(root.iter("audio"))) == 5 * 24
    assert any("the first 24 of 30" in heading for heading in texts(root, "h2"))


def test_curves_are_of_the_training(tmp_path: Path) -> None:
    lines = [
        {"step": step, "loss/audio": 8.0 - step, "learning_rate": 0.1, "grad_norm": float("nan")} for step in (1, 2, 3)
    ]
    lines.append({"step": 3, "validation/audio_loss": 6.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    root = parsed(evaluation([]), tmp_path)
    told = [str(line[0].text) for line in root.iter("polyline")]
    assert told == [
        "training: 7 at step 1, 5 at step 3",
        "held out: 6.5 at step 3, 6.5 at step 3",
        "training: 0.1 at step 1, 0.1 at step 3",
    ]
    audio = next(root.iter("polyline"))
    assert audio.get("points") == "0.0,0.0 160.0,60.0 320.0,120.0"
    (tmp_path / "metrics.jsonl").write_text("not JSON\n")
    with pytest.raises(StepError, match="not JSON"):
        page(evaluation([]), tmp_path, metrics=tmp_path / "metrics.jsonl", spec=None)


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    points = [(step, float(step % 7)) for step in range(1, 20_001)]
    root = ElementTree.fromstring(curves("a <b>", {"x&y": points}))
    drawn = str(next(root.iter("polyline")).get("points")).split()
    assert 300 <= len(drawn) <= 400
    assert drawn[-1].startswith("320.0,")
    assert curves("a", {"x": [], "y": [(1, float("inf"))]}) == ""

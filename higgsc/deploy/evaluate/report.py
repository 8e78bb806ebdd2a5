"""The evaluation as one page that needs nothing else: figures, curves, and players side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from higgsc.catalog.codec import SAMPLE_RATE
from higgsc.contract.evaluation import Evaluation, Heard, Judge, Kind, Losses, Prompt, Spoken, Totals
from higgsc.contract.outcome import StepError
from higgsc.data.page.document import document, player, section, spoken, text, tiles
from higgsc.data.page.pictures import curves
from higgsc.deploy.evaluate.measures import read_back

_PLAYED = 24
"""Prompts with players: the page holds their sound, up to five recordings each."""
_KINDS: dict[Kind, str] = {
    "base": "the base",
    "adapter": "the unmerged adapter",
    "merged": "the merged model",
    "whole": "a checkpoint of the whole model",
    "model": "this model",
}
_NONE = "–"


def page(found: Evaluation, folder: Path, *, metrics: Path, spec: str | None) -> str:
    """The page as text.

    Args:
        found: What was measured.
        folder: Where its WAV files are.
        metrics: `metrics.jsonl` of the training; without that file there are no curves.
        spec: The resolved spec, as it stands.

    Raises:
        StepError: A line of `metrics` is not what the train step writes (65).
    """
    count = len(found.samples)
    trained = " and ".join(_KINDS[kind] for kind in found.models if kind != "base")
    head = (
        f'<h1 dir="auto">{text(found.name)}</h1><span class="soft">{trained[:1].upper()}{trained[1:]} beside '
        f"the base <bdi>{text(found.models['base'].place)}</bdi>: losses on {found.held_out:,} held-out samples"
        + (f", {count:,} {found.prompts} prompts spoken by each</span>" if count else "</span>")
    )
    listed = found.samples[:_PLAYED]
    note = "the same seed for all; recordings as the audio tokenizer gives them back"
    note += f"; the first {_PLAYED} of {count}" if count > _PLAYED else ""
    cards = "".join(_prompt(prompt, found.language, folder) for prompt in listed)
    parts = [
        _tiles(found),
        section("Listen", note, f'<div class="prompts">{cards}</div>') if cards else "",
        '<div class="pair">',
        section("Losses", "on held-out samples, in nats; lower is better", _losses(found)),
        section("Speech", "over all prompts", _speech(found)) if count else "",
        "</div>",
        _training(metrics),
        section("What was compared", "", _facts(found)),
        _spec(found, spec),
    ]
    return document(f"{found.name}: evaluation", head, "\n".join(filter(None, parts)))


def _tiles(found: Evaluation) -> str:
    last = list(found.models)[-1]
    before, after, told = found.models["base"].losses, found.models[last].losses, found.models[last].totals
    shown = [
        (f"audio loss, base → {last}", f"{before.audio:.2f} → {after.audio:.2f}", _worse(after.audio > before.audio)),
        (f"text loss, base → {last}", f"{before.text:.2f} → {after.text:.2f}", _worse(after.text > before.text)),
    ]
    if told.spoken:
        ended = told.finished or 0
        shown.append(("spoken to the end", f"{ended} of {told.spoken}", _worse(ended < told.spoken)))
        shown.append(("of the recordings' length", _share(told.duration_ratio), ""))
    if told.word_errors is not None:
        shown.append(("word errors", _share(told.word_errors), ""))
    if told.similarity is not None:
        shown.append(("voice similarity", _plain(told.similarity), ""))
    return tiles(shown)


def _worse(it_is: bool) -> str:
    return "failed" if it_is else ""


def _speech(found: Evaluation) -> str:
    voices = (*(one.totals for one in found.models.values()), found.recordings)
    rows: list[tuple[str, Callable[[Totals], str]]] = [
        ("spoken to the end", lambda one: _NONE if one.finished is None else f"{one.finished} of {one.spoken}"),
        ("length over the recordings'", lambda one: _share(one.duration_ratio)),
        ("silence, below -60 dB", lambda one: _share(one.silence)),
        ("clipped samples", lambda one: _share(one.clipped, 2)),
        ("codes as recorded", lambda one: _share(one.code_accuracy)),
        ("word errors", lambda one: _share(one.word_errors)),
        ("character errors", lambda one: _share(one.character_errors)),
        ("similarity to the reference voice", lambda one: _plain(one.similarity)),
        ("real-time factor", lambda one: _plain(one.real_time_factor)),
        ("prompts a second", lambda one: _plain(one.samples_per_second)),
    ]
    shown = [(name, [of(one) for one in voices]) for name, of in rows]
    # What nothing measured, such as word errors without a recogniser, has no row.
    return _table((*found.models, "recording"), ((name, row) for name, row in shown if set(row) != {_NONE}))


def _losses(found: Evaluation) -> str:
    def row(name: str, of: Callable[[Losses], float]) -> tuple[str, list[str]]:
        values = [of(one.losses) for one in found.models.values()]
        return name, [*(f"{value:.3f}" for value in values), f"{values[-1] - values[0]:+.3f}"]

    rows = [row("audio", lambda one: one.audio), row("text", lambda one: one.text)]
    rows += [
        row(f"codebook {k}", lambda one, k=k: one.audio_codebooks[k])  # type: ignore[misc]
        for k in range(len(found.models["base"].losses.audio_codebooks))
    ]
    return _table((*found.models, "change"), rows)


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, list[str]]]) -> str:
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>{"".join(f"<td>{text(value)}</td>" for value in values)}</tr>'
        for name, values in rows
    )
    return f'<div class="wide"><table class="figures"><tr><td></td>{head}</tr>{body}</table></div>'


def _prompt(prompt: Prompt, language: str | None, folder: Path) -> str:
    spoken_by: list[tuple[str, Heard]] = [(kind.capitalize(), one) for kind, one in reversed(prompt.spoken.items())]
    voices = [*spoken_by, ("Recording", prompt.recording)]
    played = "".join(_voice(name, one, _about(one, prompt), prompt, language, folder) for name, one in voices)
    reference = (
        f'<div class="voice reference"><h3>Voice to speak in</h3>{_play(folder / prompt.reference, "reference")}'
        f"{spoken(prompt.reference_text, language)}</div>"
    )
    return (
        f'<article class="sample prompt">{spoken(prompt.target_text, language)}'
        f'<div class="voices">{played}{reference}</div>'
        f'<div class="facts soft"><bdi>{text(prompt.speaker)}</bdi><code dir="auto">{text(prompt.id)}</code>'
        f"<span>seed {prompt.seed}</span></div></article>"
    )


def _about(one: Heard, prompt: Prompt) -> list[tuple[str, bool]]:
    """Facts about what was said, and whether each is bad news."""
    facts = [(f"{one.seconds:.1f} s", False)]
    if isinstance(one, Spoken):
        facts.append((f"{one.duration_ratio:.0%} of the length", False))
        if not one.finished:
            facts.append((f"did not end within {prompt.max_seconds:.1f} s", True))
        facts.append((f"{one.code_accuracy:.0%} of its codes", False))
    if one.silence is not None and one.silence >= 0.005:
        facts.append((f"{one.silence:.0%} silence", one.silence > 0.5))
    if one.clipped:
        facts.append((f"{one.clipped:.2%} clipped", one.clipped > 1e-3))
    if one.word_errors is not None:
        facts.append((f"{one.word_errors:.0%} word errors", False))
    if one.character_errors is not None:
        facts.append((f"{one.character_errors:.0%} character errors", False))
    if one.similarity is not None:
        facts.append((f"similarity {one.similarity:.2f}", False))
    return facts


def _voice(
    name: str, one: Heard, facts: list[tuple[str, bool]], prompt: Prompt, language: str | None, folder: Path
) -> str:
    told = "".join(
        f'<span class="bad">{text(fact)}</span>' if bad else f"<span>{text(fact)}</span>" for fact, bad in facts
    )
    transcript = (
        "" if one.transcript is None else f'<div class="understood">{spoken(one.transcript or "…", language)}</div>'
    )
    label = f"{name.lower()}: {prompt.id}"
    return (
        f'<div class="voice"><h3>{text(name)}</h3>{_play(folder / one.wav, label)}'
        f'{transcript}<div class="facts soft">{told}</div></div>'
    )


def _play(wav: Path, label: str) -> str:
    samples = read_back(wav)
    return player(samples, SAMPLE_RATE, label) if len(samples) else '<p class="soft">nothing was said</p>'


def _training(metrics: Path) -> str:
    """Curves of the training, out of the figures that it logged."""
    if not metrics.is_file():
        return ""
    lines = _read_metrics(metrics)

    def curve(name: str) -> list[tuple[int, float]]:
        return [(int(line["step"]), float(line[name])) for line in lines if name in line]

    pictures = [
        curves("audio loss", {"training": curve("loss/audio"), "held out": curve("validation/audio_loss")}),
        curves("text loss", {"training": curve("loss/text"), "held out": curve("validation/text_loss")}),
        curves("contrastive loss", {"training": curve("loss/contrastive")}),
        curves("gradient norm", {"training": curve("grad_norm")}),
        curves("learning rate", {"training": curve("learning_rate")}),
    ]
    drawn = "".join(pictures)
    return section("Training", "as it was logged", f'<div class="charts">{drawn}</div>') if drawn else ""


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line; the last may still be in writing."""
    lines = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
    try:
        read = [json.loads(line) for line in lines]
    except ValueError as error:
        raise StepError(
            f"a line is not JSON: {error}", path=path, help="the train step writes this file anew"
        ) from error
    return read


def _facts(found: Evaluation) -> str:
    at = f", revision {found.revision}" if found.revision else ""
    facts = [
        *((kind, one.place + (at if kind == "base" else "")) for kind, one in found.models.items()),
        ("audio tokenizer", found.audio_tokenizer),
        ("store", f"{found.store}, SHA-256 of its record {found.store_sha256}"),
        ("computed in", f"{found.dtype} on {found.device}"),
        ("sampling", f"temperature {found.temperature:g}, seed {found.seed}"),
        ("recogniser", _judge(found.recogniser)),
        ("speaker verification", _judge(found.similarity)),
        ("made by", f"higgsc {found.higgsc}"),
    ]
    rows = "".join(f'<dt>{text(name)}</dt><dd dir="auto">{text(fact)}</dd>' for name, fact in facts if fact)
    return f'<dl class="card">{rows}</dl>'


def _judge(judge: Judge | None) -> str:
    return "" if judge is None else judge.name + (f", commit {judge.commit}" if judge.commit else "")


def _spec(found: Evaluation, spec: str | None) -> str:
    if spec is None:
        return ""
    note = f"resolved, SHA-256 {found.spec_sha256}"
    shown = (
        f'<details class="card"><summary>every value, and where it came from</summary><pre>{text(spec)}</pre></details>'
    )
    return section("Spec", note, shown)


def _share(value: float | None, digits: int = 0) -> str:
    return _NONE if value is None else f"{value:.{digits}%}"


def _plain(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"

"""The evaluation as one page that needs nothing else: figures, curves, and players side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from higgsc.catalog.codec import SAMPLE_RATE
from higgsc.contract.evaluation import Evaluation, Heard, Judge, Losses, Prompt, Spoken, Totals
from higgsc.contract.outcome import StepError
from higgsc.data.page.document import document, player, section, spoken, text, tiles
from higgsc.data.page.pictures import curves
from higgsc.deploy.evaluate.measures import read_back

_PLAYED = 24
"""Prompts with players: the page holds their sound, four recordings each."""
_KINDS = {
    "merged": "The merged model",
    "adapter": "Base and adapter, unmerged,",
    "whole": "A checkpoint of the whole model",
    "model": "This model",
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
    head = (
        f'<h1 dir="auto">{text(found.name)}</h1><span class="soft">{text(_KINDS[found.kind])} beside its base '
        f"<bdi>{text(found.base)}</bdi>: losses on {found.held_out:,} held-out samples"
        + (f", {count:,} {found.prompts} prompts spoken by both</span>" if count else "</span>")
    )
    listed = found.samples[:_PLAYED]
    note = "the same seed for both; recordings as the audio tokenizer gives them back"
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
    before, after, told = found.base_losses, found.trained_losses, found.trained_totals
    shown = [
        ("audio loss, base → trained", f"{before.audio:.2f} → {after.audio:.2f}", _worse(after.audio > before.audio)),
        ("text loss, base → trained", f"{before.text:.2f} → {after.text:.2f}", _worse(after.text > before.text)),
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
    voices = (found.base_totals, found.trained_totals, found.recordings)
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
    return _table(("base", "trained", "recording"), ((name, row) for name, row in shown if set(row) != {_NONE}))


def _losses(found: Evaluation) -> str:
    def row(name: str, of: Callable[[Losses], float]) -> tuple[str, list[str]]:
        before, after = of(found.base_losses), of(found.trained_losses)
        return name, [f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"]

    rows = [row("audio", lambda one: one.audio), row("text", lambda one: one.text)]
    rows += [
        row(f"codebook {k}", lambda one, k=k: one.audio_codebooks[k])  # type: ignore[misc]
        for k in range(len(found.base_losses.audio_codebooks))
    ]
    return _table(("base", "trained", "change"), rows)


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, list[str]]]) -> str:
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>{"".join(f"<td>{text(value)}</td>" for value in values)}</tr>'
        for name, values in rows
    )
    return f'<div class="wide"><table class="figures"><tr><td></td>{head}</tr>{body}</table></div>'


def _prompt(prompt: Prompt, language: str | None, folder: Path) -> str:
    voices = [
        ("Trained", prompt.trained, _about(prompt.trained, prompt)),
        ("Base", prompt.base, _about(prompt.base, prompt)),
        ("Recording", prompt.recording, _about(prompt.recording, prompt)),
    ]
    played = "".join(_voice(name, one, facts, prompt, language, folder) for name, one, facts in voices)
    reference = (
        f'<div class="voice"><h3>Voice to speak in</h3>{_play(folder / prompt.reference, "reference")}'
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
        ("trained", found.trained),
        ("base", f"{found.base}{at}"),
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

"""`higgsc generate`: texts in the voice of a recording."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from higgsc.catalog.codec import FRAMES_PER_SECOND, RELEASED_TOKENIZER
from higgsc.cli.compiling import relative
from higgsc.cli.quiet import quiet_libraries
from higgsc.contract.jobs import TextJob
from higgsc.spec.data import Format

Command = TypeVar("Command", bound=Callable[..., Any])

LARGEST_SEED = 2**63 - 1


def text_options(command: Command) -> Command:
    """An option for each key of `data.text`, so that a text is spoken in the form that was learned."""
    for name, field in TextJob.model_fields.items():
        choice = click.Choice(get_args(field.annotation))
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, type=choice, default=field.default, show_default=True, help="As `data.text`.")(
            command
        )
    return command


def model_options(command: Command) -> Command:
    """What to speak with, beside the model."""
    for decorate in reversed(
        (
            click.option("--adapter", type=click.Path(path_type=Path), help="Adapter in PEFT format, not merged yet."),
            click.option("--revision", help="Commit of the model on the hub."),
            click.option("--audio-tokenizer", default=RELEASED_TOKENIZER, show_default=True),
            click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
            text_options,
        )
    ):
        command = decorate(command)
    return command


@click.command("generate")
@click.option("--model", required=True, help="Folder of a merged model or a base, hub id, or builtin:tiny.")
@click.option("--reference", type=click.Path(path_type=Path), help="Recording of the voice.")
@click.option("--reference-text", help="What is said in the recording.")
@click.option("--text", help="What to say.")
@click.option("--file", type=click.Path(path_type=Path), help="What to say: a text on each line, UTF-8.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="Recording, its text and what to say, of each row: ChatML or any other format of training data.",
)
@click.option("--format", "form", type=click.Choice(get_args(Format)), help="Of the prompts [auto].")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The WAV file to write; with --file the folder, for 0001.wav and so on; with --prompts for ID.wav.",
)
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, LARGEST_SEED),
    multiple=True,
    default=(0,),
    show_default=True,
    help="Same seed, same speech; given several times, each text is said with each.",
)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True, help="0: likeliest code.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Default: the checkpoint's.")
@click.option("--top-k", type=click.IntRange(1), help="Default: the checkpoint's.")
@click.option("--ras-window", type=click.IntRange(0), help="Rows that are looked back on for repeats; 0: none.")
@click.option("--ras-max-repeats", type=click.IntRange(1), help="Repeats among them that make a code be redrawn.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(0.04, 600),
    default=30.0,
    show_default=True,
    help="Where to cut off what does not end by itself, for each piece of some 200 characters.",
)
@model_options
def command(
    model: str,
    reference: Path | None,
    reference_text: str | None,
    text: str | None,
    file: Path | None,
    prompts: Path | None,
    form: str | None,
    output: Path,
    force: bool,
    seeds: tuple[int, ...],
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    ras_window: int | None,
    ras_max_repeats: int | None,
    max_seconds: float,
    adapter: Path | None,
    revision: str | None,
    audio_tokenizer: str,
    device: str,
    **text_options: Any,
) -> None:
    """Speak a text, or each line of a file, in the voice of a recording; or each prompt of a file in its own.

    Long texts are said some sentences at a time, always from the same recording."""
    if sum(source is not None for source in (text, file, prompts)) != 1:
        raise click.UsageError("say what to speak with one of --text, --file and --prompts")
    given = {"--reference": reference, "--reference-text": reference_text}
    if prompts is not None and (twice := [name for name, value in given.items() if value is not None]):
        raise click.UsageError(f"--prompts have a reference each: leave {' and '.join(twice)} out")
    if prompts is None and (missing := [name for name, value in given.items() if value is None]):
        raise click.UsageError(f"say whose voice it is with {' and '.join(missing)}")
    if prompts is None and form is not None:
        raise click.UsageError("--format is that of --prompts")
    quiet_libraries()
    from higgsc.deploy.prompts import read_prompts
    from higgsc.deploy.takes import check, each_line, each_prompt, one_text
    from higgsc.deploy.voice import read_reference, spoken_text

    options, seeds = TextJob(**text_options), tuple(dict.fromkeys(seeds))
    if prompts is not None:
        takes = each_prompt(read_prompts(prompts, form or "auto", text=options), seeds, output)
    elif file is not None:
        takes = each_line(file, seeds, output)
    else:
        takes = one_text(text or "", seeds, output)
    check(takes, options, file=file, force=force)
    if reference is not None and reference_text is not None:  # mistakes that cost nothing to find
        spoken_text(reference_text, options)
        read_reference(reference)

    from higgsc.data.audio import write_wav
    from higgsc.deploy.generate import Speaker
    from higgsc.train.speech.sampling import Sampling

    sampling = Sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, ras_window=ras_window, ras_max_repeats=ras_max_repeats
    )
    speaker = Speaker.load(model, audio_tokenizer, adapter=adapter, revision=revision, text=options, device=device)
    voice_of = cache(speaker.voice)  # a recording is encoded once, however many texts are said in its voice
    for number, take in enumerate(takes, start=1):
        own = take.prompt
        voice = voice_of(reference, reference_text) if own is None else voice_of(own.reference, own.reference_text)
        setting: dict[str, Any] = {} if own is None else {"system": own.system, "scene": own.scene}
        with _progress(f"{number}/{len(takes)} {take.wav.name}") as after_row:
            speech = speaker.speak(
                voice, take.text, seed=take.seed, sampling=sampling, max_seconds=max_seconds, after_row=after_row,
                **setting,
            )  # fmt: skip
        write_wav(take.wav, speech.wave)
        end = "" if speech.finished else f"; a piece of it did not end by itself within {max_seconds:g} s"
        click.echo(f"{relative(take.wav)}: {speech.seconds:.2f} s{end}")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[], None] | None]:
    """On a terminal, how many seconds have been spoken; called after each row."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    rows = 0
    with Console(stderr=True).status(what) as status:

        def after_row() -> None:
            nonlocal rows
            rows += 1
            status.update(f"{what}  {rows / FRAMES_PER_SECOND:.1f} s")

        yield after_row

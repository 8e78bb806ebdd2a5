"""`higgsc generate`: a text in the voice of a recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from higgsc.cli.compiling import relative
from higgsc.cli.quiet import quiet_libraries
from higgsc.contract.jobs import TextJob

Command = TypeVar("Command", bound=Callable[..., Any])


def text_options(command: Command) -> Command:
    """An option for each key of `data.text`, so that a text is spoken in the form that was learned."""
    for name, field in TextJob.model_fields.items():
        choice = click.Choice(get_args(field.annotation))
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, type=choice, default=field.default, show_default=True, help="As `data.text`.")(
            command
        )
    return command


@click.command("generate")
@click.option("--model", required=True, help="Folder of a merged model, hub id, or builtin:tiny.")
@click.option("--audio-tokenizer", default="bosonai/higgs-audio-v2-tokenizer", show_default=True)
@click.option("--reference", required=True, type=click.Path(path_type=Path), help="Recording of the voice.")
@click.option("--reference-text", required=True, help="What is said in the recording.")
@click.option("--text", required=True, help="What to say.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The WAV file to write.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True, help="0: likeliest code.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--max-seconds", type=click.FloatRange(0.04, 600), default=30.0, show_default=True)
@text_options
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def command(
    model: str,
    audio_tokenizer: str,
    reference: Path,
    reference_text: str,
    text: str,
    output: Path,
    temperature: float,
    seed: int,
    max_seconds: float,
    device: str,
    **text_options: Any,
) -> None:
    """Speak TEXT in the voice of a recording."""
    quiet_libraries()
    from higgsc.data.audio import write_wav
    from higgsc.deploy.generate import Speaker

    speaker = Speaker.load(model, audio_tokenizer, text=TextJob(**text_options), device=device)
    speech = speaker.speak(reference, reference_text, text, seed=seed, temperature=temperature, max_seconds=max_seconds)
    write_wav(output, speech.wave)
    end = "" if speech.finished else f", cut off at {max_seconds:g} s without end-of-stream"
    click.echo(f"{relative(output)}: {speech.seconds:.2f} s{end}")

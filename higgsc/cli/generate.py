"""`higgsc generate`: a text in the voice of a recording."""

from __future__ import annotations

from pathlib import Path

import click

from higgsc.cli.compiling import relative
from higgsc.cli.quiet import quiet_libraries


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
) -> None:
    """Speak TEXT in the voice of a recording."""
    quiet_libraries()
    from higgsc.data.audio import write_wav
    from higgsc.deploy.generate import Speaker

    speaker = Speaker.load(model, audio_tokenizer, device=device)
    speech = speaker.speak(reference, reference_text, text, seed=seed, temperature=temperature, max_seconds=max_seconds)
    write_wav(output, speech.wave)
    end = "" if speech.finished else f", cut off at {max_seconds:g} s without end-of-stream"
    click.echo(f"{relative(output)}: {speech.seconds:.2f} s{end}")

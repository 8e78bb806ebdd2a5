"""`higgsc serve`: a model behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from higgsc.cli.generate import model_options
from higgsc.cli.quiet import quiet_libraries
from higgsc.contract.jobs import TextJob


@click.command("serve")
@click.argument("model")
@click.option("--voices", type=click.Path(path_type=Path), help="Folder of NAME.wav with what it says in NAME.txt.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than this machine's own take a token.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True)
@click.option("--token-file", type=click.Path(path_type=Path), help="Or the variable HIGGSC_SERVE_TOKEN.")
@click.option("--name", default="higgs-audio-v2", show_default=True, help="What clients call the model.")
@click.option("--queue", type=click.IntRange(1, 1_000), default=16, show_default=True, help="Then 429.")
@click.option("--max-characters", type=click.IntRange(1, 50_000), default=4_096, show_default=True)
@click.option("--max-upload-mb", type=click.FloatRange(0.001, 1_000), default=16.0, show_default=True)
@click.option("--max-reference-seconds", type=click.FloatRange(0.5, 60), default=30.0, show_default=True)
@click.option("--max-seconds", type=click.FloatRange(0.04, 600), default=30.0, show_default=True, help="Of a piece.")
@click.option("--timeout", type=click.FloatRange(0.1), default=300.0, show_default=True, help="Seconds of a request.")
@click.option("--body-timeout", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Seconds to send it.")
@click.option("--drain", type=click.IntRange(1), default=120, show_default=True, help="Seconds to finish, on SIGTERM.")
@model_options
def command(
    model: str,
    voices: Path | None,
    host: str,
    port: int,
    token_file: Path | None,
    name: str,
    queue: int,
    max_characters: int,
    max_upload_mb: float,
    max_reference_seconds: float,
    max_seconds: float,
    timeout: float,
    body_timeout: float,
    drain: int,
    adapter: Path | None,
    revision: str | None,
    audio_tokenizer: str,
    device: str,
    **text_options: Any,
) -> None:
    """Serve MODEL (folder, hub id or builtin:tiny) over HTTP: OpenAI's /v1/audio/speech, /generate_speech, a page."""
    quiet_libraries()
    from higgsc.deploy.serve.settings import Limits, Settings, check_address, read_token

    # Before the model is loaded: a mistake that costs nothing to find.
    settings = Settings(
        name=name,
        host=host,
        port=port,
        token=read_token(token_file),
        limits=Limits(
            queue=queue,
            characters=max_characters,
            upload_bytes=round(max_upload_mb * 1_000_000),
            reference_seconds=max_reference_seconds,
            piece_seconds=max_seconds,
            request_seconds=timeout,
            body_seconds=body_timeout,
            drain_seconds=drain,
        ),
    )
    check_address(settings)

    from higgsc.deploy.generate import Speaker
    from higgsc.deploy.serve.app import serve

    speaker = Speaker.load(
        model, audio_tokenizer, adapter=adapter, revision=revision, text=TextJob(**text_options), device=device
    )
    serve(speaker, settings, voices=voices)

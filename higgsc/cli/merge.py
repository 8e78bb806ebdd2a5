"""`higgsc merge`: an adapter into its base."""

from __future__ import annotations

from pathlib import Path

import click

from higgsc.cli.compiling import relative


@click.command("merge")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="Hub id, local folder, or builtin:tiny: what the adapter was trained on.")
@click.option("--revision", help="Commit of the base on the hub.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the merged model.")
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
def command(adapter: Path, base: str, revision: str | None, output: Path, dtype: str) -> None:
    """Fold ADAPTER (a folder in PEFT format) into its base model, for plain transformers."""
    from higgsc.deploy.merge import merge_adapter

    merge_adapter(base, adapter, output, dtype=dtype, revision=revision)
    click.echo(f"merged model: {relative(output)}")

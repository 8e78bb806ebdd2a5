"""`higgsc merge`: an adapter into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from higgsc.cli.compiling import relative
from higgsc.cli.quiet import quiet_libraries


@click.command("merge")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="Hub id, local folder, or builtin:tiny: what the adapter was trained on.")
@click.option("--revision", help="Commit of the base on the hub.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the merged model.")
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="For the check.")
def command(
    adapter: Path,
    base: str,
    revision: str | None,
    output: Path,
    dtype: Literal["bf16", "fp32"],
    device: Literal["cpu", "cuda"],
) -> None:
    """Fold ADAPTER (a folder in PEFT format) into its base model, for plain transformers.

    The merged model is checked against base and adapter before it appears."""
    quiet_libraries()
    from higgsc.deploy.merge.fold import merge_adapter

    report = merge_adapter(base, adapter, output, dtype=dtype, revision=revision, device=device)
    click.echo(f"merged model: {relative(output)}")
    click.echo(f"  logits differ from base + adapter by at most {report.logits.max_difference:.2g}")
    click.echo(f"  rounding to {dtype} costs up to {report.largest_rounding:.1%} of a tensor's change")

"""`higgsc merge`: an adapter into its base."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Literal

import click

from higgsc.cli.compiling import relative
from higgsc.cli.launching import run_folder
from higgsc.cli.quiet import quiet_libraries
from higgsc.contract.outcome import ExitCode, StepError


@click.command("merge")
@click.argument("what", metavar="RUN|ADAPTER", type=click.Path(path_type=Path))
@click.option("--base", help="Hub id, local folder, or builtin:tiny; else what the adapter says it was trained on.")
@click.option("--revision", help="Commit of the base on the hub.")
@click.option("--select", metavar="best|last|step-N", help="Which checkpoint of a RUN [best].")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the merged model.")
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option(
    "--quantize", type=click.Choice(["int8", "fp8"]), help="Linear weights in 8 bits, by torchao; measured.",
)  # fmt: skip
@click.option(
    "--layout", type=click.Choice(["transformers", "original"]), default="transformers", show_default=True,
    help="Whose names the tensors get: transformers', or the original release's.",
)  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="For the check.")
def command(
    what: Path,
    base: str | None,
    revision: str | None,
    select: str | None,
    output: Path,
    dtype: Literal["bf16", "fp32"],
    quantize: Literal["int8", "fp8"] | None,
    layout: Literal["transformers", "original"],
    device: Literal["cpu", "cuda"],
) -> None:
    """Fold an adapter into its base model, for plain transformers.

    RUN is a run's folder or name, or a spec; ADAPTER a folder in PEFT's format, or a checkpoint. The merged model is
    checked against base and adapter before it appears. A merge that was killed is gone on with."""
    quiet_libraries()
    from higgsc.deploy.merge.fold import merge_adapter
    from higgsc.deploy.merge.source import find_source
    from higgsc.train.model.adapter import open_adapter

    source = find_source(run_folder(what), select)
    adapter = open_adapter(source.adapter)
    if base is None and adapter.base is None:
        raise StepError(
            "the adapter does not say what it was trained on",
            code=ExitCode.USAGE,
            path=source.adapter,
            help="name it with `--base`",
        )
    started, shown = time.monotonic(), sys.stderr.isatty()

    def progress(number: int, total: int, name: str) -> None:
        if shown:
            click.echo(f"\r\x1b[K{number}/{total} {name}", nl=number == total, err=True)

    report = merge_adapter(
        base or str(adapter.base),
        source.adapter,
        output,
        dtype=dtype,
        quantize=quantize,
        store=source.store,
        layout=layout,
        revision=revision if base is not None or revision is not None else adapter.revision,
        device=device,
        provenance=source.facts,
        progress=progress,
    )
    click.echo(f"merged model: {relative(output)}  ({time.monotonic() - started:.0f} s)")
    if "run" in source.facts:
        click.echo(f"  of {source.facts['run']}")
    click.echo(f"  logits differ from base + adapter by at most {report.logits.max_difference:.2g}")
    click.echo(f"  rounding to {dtype} costs up to {report.largest_rounding:.1%} of a tensor's change")
    if report.quantization is not None:
        click.echo(f"  quantised {report.quantization.words}")
        click.echo(f"  which changed: {report.quantization.difference.words}")
    if report.largest_rounding > report.ROUNDING_WORTH_A_WORD:
        name = max(report.tensors, key=lambda name: report.tensors[name].rounding)
        click.echo(
            f"warning: {name} changes by {report.tensors[name].change:.2g} of its size, too little for {dtype}: "
            f"{report.largest_rounding:.0%} of it is lost; merge with --dtype fp32, or serve the adapter unmerged",
            err=True,
        )

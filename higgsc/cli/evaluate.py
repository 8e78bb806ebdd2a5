"""`higgsc evaluate`: what was trained beside its base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import higgsc
from higgsc.cli.compiling import relative
from higgsc.cli.launching import run_folder
from higgsc.cli.quiet import quiet_libraries
from higgsc.contract.evaluation import PAGE_FILE
from higgsc.contract.jobs import EvaluateJob, ModelRef, StepContext, load_job
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.launch.journal import read_journal


@click.command("evaluate")
@click.argument("what", metavar="RUN|MODEL", type=click.Path(path_type=Path))
@click.option("--select", metavar="best|last|step-N", help="A checkpoint of a RUN; else the merged one, or the best.")
@click.option("--merged", type=click.Path(path_type=Path), help="A merge of the adapter [RUN/merged].")
@click.option("--base", help="Hub id, folder, or builtin:tiny; else what the RUN was trained on.")
@click.option("--revision", help="Commit of the base on the hub.")
@click.option("--audio-tokenizer", help="Hub id, folder, or builtin:tiny; else that of the RUN.")
@click.option("--store", type=click.Path(path_type=Path), help="Held-out samples; else the store of the RUN.")
@click.option("--samples", type=click.IntRange(0), help="Prompts that each model speaks [8].")
@click.option("--prompts", type=click.Choice(["held-out", "training"]), help="Which prompts [held-out].")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Of the sampling; 0: likeliest code [0.7].")
@click.option("--seed", type=int, help="Of the sampling; else that of the RUN.")
@click.option("--language", help="Of the texts, such as ar.")
@click.option("--recogniser", help="A Whisper, for word errors; such as openai/whisper-large-v3.")
@click.option("--similarity", help="A WavLM, to compare voices; such as microsoft/wavlm-base-plus-sv.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Else that of the RUN.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write [RUN/evaluation].")
def command(
    what: Path,
    select: str | None,
    merged: Path | None,
    base: str | None,
    revision: str | None,
    audio_tokenizer: str | None,
    store: Path | None,
    output: Path | None,
    **asked: Any,
) -> None:
    """Compare base, adapter and merged model: losses, and prompts that each speaks.

    RUN is a run's folder or name, or a spec; MODEL a checkpoint, a merged model, or an adapter in PEFT's format. What
    is not given is as in the RUN's own evaluate step. Writes evaluation.json and one page with players."""
    quiet_libraries()
    from higgsc.deploy.evaluate.step import evaluate, summary
    from higgsc.deploy.evaluate.trained import find_trained

    found = find_trained(run_folder(what), select, merged)
    if found.missing is not None:
        click.echo(f"warning: {found.missing}", err=True)
    root, job = _as_planned(found.run, found.job)
    if base is not None:
        job["model"] |= {"base": base, "revision": revision}
    elif revision is not None:
        job["model"] |= {"revision": revision}
    if audio_tokenizer is not None:
        job["model"] |= {"audio_tokenizer": audio_tokenizer, "audio_tokenizer_revision": None}
    if store is not None:
        job["store"] = str(store.resolve())
    missing = [name for name, value in (("--base", job["model"].get("base")), ("--store", job["store"])) if not value]
    if missing:
        raise StepError(
            "this is not part of a run, so what it is compared on is not known",
            code=ExitCode.USAGE,
            path=what,
            help=f"give {' and '.join(missing)}",
        )
    folder = output or (found.run or found.trained[0].folder) / "evaluation"
    job |= {name: value for name, value in asked.items() if value is not None}
    job |= {"evaluation": str(folder.resolve()), "model": ModelRef(**job["model"])}
    made = EvaluateJob(**job)
    context = StepContext(job_path=root / "evaluate", root=root, rank=0, world_size=1)

    def beat(done: int, total: int, message: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{done}/{total} {message}", nl=done == total, err=True)

    told = evaluate(made, context, found.trained, beat)
    click.echo(f"{relative(folder / PAGE_FILE)}: {summary(told)}")


def _as_planned(run: Path | None, training: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The project root, and the fields of the evaluate job: those of the run's build, or else of its training."""
    fields: dict[str, Any] = {
        "higgsc": higgsc.__version__,
        "name": "evaluation" if run is None else run.name,
        "root": ".",
        "run": ".",
        "seed": 0,
        "device": "cpu",
        "model": {
            "base": None,
            "revision": None,
            "audio_tokenizer": "bosonai/higgs-audio-v2-tokenizer",
            "audio_tokenizer_revision": None,
        },
        "store": None,
        "merged": None,
        "samples": 8,
        "prompts": "held-out",
        "temperature": 0.7,
    }
    if run is None:
        return Path.cwd(), fields
    root = _root_of(run, str(training["run"]))
    fields |= {name: training[name] for name in ("name", "run", "seed", "device", "model", "store")}
    journal = read_journal(run)
    if journal is not None:
        planned = run / journal.root / journal.build / "jobs" / "evaluate.json"
        if planned.is_file():
            fields |= load_job(planned).model_dump()
    return root, fields


def _root_of(run: Path, named: str) -> Path:
    """The project root: the run's folder less what the job calls it."""
    above, parts = run.resolve(), Path(named).parts
    return above.parents[len(parts) - 1] if parts and above.parts[-len(parts) :] == parts else Path.cwd()

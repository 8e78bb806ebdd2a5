"""The front door: one file a command, each imported only when it is called."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from importlib import import_module

import click

from higgsc import __version__
from higgsc.contract.outcome import ExitCode, StepError

# pydantic looks for plugins among all installed packages, which takes 25 ms of every start.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

COMMANDS = {
    "init": "Write a first spec, commented.",
    "build": "Compile specs and write their scripts, job files and reports.",
    "check": "Compile specs and report what is wrong; write nothing.",
    "plan": "Show the steps of a spec, its memory and speed before anything runs.",
    "submit": "Build a spec and hand its steps to Slurm or another scheduler.",
    "run": "Build a spec and carry its plan out on this machine.",
    "status": "Show how far runs are, what waits and why.",
    "logs": "Print what the steps of a run print, or follow it.",
    "cancel": "End a run, its work saved.",
    "doctor": "Compare a site with its cluster and say what is wrong.",
    "data": "Convert and validate speech data.",
    "checkpoint": "List, validate, compare, find and convert checkpoints and adapters.",
    "merge": "Fold a LoRA adapter into its base model.",
    "evaluate": "Compare a trained model with its base, in figures and to listen to.",
    "generate": "Speak texts in the voice of a recording.",
    "serve": "Serve a model over HTTP, for OpenAI's clients and with a page.",
    "explain": "Explain a diagnostic code, or where a value came from.",
    "diff": "Show what changed between two specs or git revisions, and what it means.",
    "schema": "Print the JSON Schema of specs, for editors.",
    "run-step": "Carry out one job file (what the emitted scripts call).",
}


TRAIN_EXTRA = {
    "accelerate",
    "msgspec",
    "numpy",
    "peft",
    "safetensors",
    "soundfile",
    "soxr",
    "tensorboard",
    "torch",
    "transformers",
}
"""What the extra `train` brings; a login node does without."""

SERVE_EXTRA = {"fastapi", "multipart", "prometheus_client", "python_multipart", "starlette", "uvicorn"}
"""What `serve` needs beyond it."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = import_module(f"higgsc.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            from higgsc.compiler.diagnostics import did_you_mean

            hint = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"no command `{args[0]}`" + (f"; {hint}" if hint else ""), context)
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="higgsc %(version)s")
def group() -> None:
    """Compile a typed experiment spec into launch scripts, and run them: LoRA fine-tuning of Higgs Audio v2."""


def main() -> None:
    """Run the command line; every ending has its exit code (`higgsc.contract.outcome.ExitCode`)."""
    gc.set_threshold(100_000)  # short-lived: collecting between imports would cost 5 % of the time
    try:
        group(prog_name="higgsc", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except StepError as error:
        click.echo(f"{click.style('error', fg='red', bold=True)}: {error}", err=True)
        sys.exit(error.code)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in TRAIN_EXTRA | SERVE_EXTRA:
            raise
        extras = "train,serve" if missing in SERVE_EXTRA else "train"
        click.echo(
            f"{click.style('error', fg='red', bold=True)}: this command needs {error.name}, which is not installed\n"
            f"  = help: pip install 'higgsc[{extras}]'",
            err=True,
        )
        sys.exit(ExitCode.MISSING_INPUT)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(ExitCode.DONE)
    except OSError as error:
        click.echo(f"{click.style('error', fg='red', bold=True)}: {error}", err=True)
        sys.exit(ExitCode.IO)
    except Exception:  # noqa: BLE001 - the last resort: say that it is our fault, show everything, exit 70
        traceback.print_exc()
        click.echo("this is a bug in higgsc, not in your spec; the lines above say where", err=True)
        sys.exit(ExitCode.INTERNAL)

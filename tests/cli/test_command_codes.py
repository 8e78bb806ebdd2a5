"""The diagnostics that a command finds, beside those of compiling: on the command line, on this machine, in a cluster.

Pairs in `tests/fixtures/diagnostics/commands`, as for the codes of the compiler (tests/compiler/test_diagnostics.py);
`HIGGSC_UPDATE_FIXTURES=1` rewrites the texts. The cluster is the one of tests/launch/test_doctor.py; what a real one
says is in tests/launch/test_slurm.py.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from higgsc.cli import check, doctor, submit
from higgsc.compiler import presence
from higgsc.compiler.codes import CODES
from higgsc.contract.outcome import StepError
from higgsc.launch.built import Target
from higgsc.launch.scheduler import Submission
from higgsc.launch.slurm import refusal
from higgsc.launch.slurm import scheduler as slurm_scheduler
from higgsc.launch.slurm.client import Answer
from tests.launch.test_doctor import CLUSTER

FIXTURES = Path(__file__).parent.parent / "fixtures" / "diagnostics"
COMMANDS: dict[str, tuple[click.Command, tuple[str, ...]]] = {
    "HC202-no-value": (check.command, ("--set", "lora.rank")),
    "HC411-misspelt": (check.command, ()),
    "HC414-no-trackio": (check.command, ()),
    "HC601-refused": (submit.command, ()),
    "HC602-partition": (doctor.command, ()),
    "HC603-few-nodes": (doctor.command, ()),
}


def refuse(target: Target, _: object) -> None:
    """What the Slurm back end makes of sbatch's complaint."""
    submission = Submission(step=target.plan.steps[0], key="higgsc:0", after=())
    slurm_scheduler.SlurmScheduler(retry_for=0).check(target, [submission])


def complain(*_: object, **__: object) -> Answer:
    return Answer(1, "", "sbatch: error: invalid partition specified: gpus")


def no_answer() -> None:
    raise StepError("scontrol does not answer")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_diagnostic_reads_as_expected(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURES, tmp_path / "f")
    monkeypatch.chdir(tmp_path / "f" / "commands")
    monkeypatch.setattr(doctor, "ask_cluster", lambda: CLUSTER)
    monkeypatch.setattr(submit, "submit", refuse)
    monkeypatch.setattr(slurm_scheduler, "call", complain)
    monkeypatch.setattr(refusal, "ask_cluster", no_answer)
    monkeypatch.setattr(presence, "find_spec", lambda package: None if package == "trackio" else "here")
    command, options = COMMANDS[name]
    result = CliRunner().invoke(command, [f"{name}.yaml", *options])
    code = name.split("-")[0]
    assert result.exit_code == (1 if CODES[code].severity == "error" else 0), result.output
    assert f"[{code}]" in result.output
    text = result.output.replace(str(tmp_path), "…")
    expected = FIXTURES / "commands" / f"{name}.txt"
    if os.environ.get("HIGGSC_UPDATE_FIXTURES"):
        expected.write_text(text, "utf-8")
    assert text == expected.read_text("utf-8")

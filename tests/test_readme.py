"""What the README shows of a command is what the command says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
EXPLAIN = "higgsc explain specs/arabic.yaml training.accumulation"
SHOWN: dict[str, str] = dict(re.findall(r"```text\n\$ (higgsc (?:plan|build) .*)\n([^`]*)```", README))
SHOWN[EXPLAIN] = re.findall(rf"`{re.escape(EXPLAIN)}`[^`]*```text\n([^`]*)```", README)[0]


@pytest.mark.parametrize("command", SHOWN)
def test_the_readme_shows_what_the_command_says(command: str) -> None:
    # `build` says first what `plan` says; what it writes is not written here.
    argv = [sys.executable, "-m", *shlex.split(command.replace(" build ", " plan "))]
    said = iter(subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines())
    for line in SHOWN[command].splitlines():
        if line.strip() != "…" and not line.startswith(("wrote ", "next: ")):  # something is left out there
            assert any(one.startswith(line) for one in said), f"{line!r} is not said, or not in this place"


def test_there_is_something_to_compare() -> None:
    assert len(SHOWN) == 3

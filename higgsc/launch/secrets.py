"""Files with secrets, which job scripts read where the environment of a node does not hold them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.emit.shell import quote_argv

OF_OTHERS = 0o077
"""Permissions of the group and of everybody else."""


def secret_file(name: str) -> Path:
    """Where the job scripts look for a secret (templates/slurm/secrets.sh.j2)."""
    return Path("~/.config/higgsc/secrets").expanduser() / name


def exposed(names: Iterable[str]) -> list[Path]:
    """The files, of the secrets named, that others than their owner may read or change."""
    files = (secret_file(name) for name in names)
    return [file for file in files if file.is_file() and file.stat().st_mode & OF_OTHERS]


def way_out(files: Iterable[Path]) -> str:
    """The command that takes the permissions back."""
    command = quote_argv(["chmod", "600", *map(str, files)])
    return f"run `{command}`; a secret that others have seen is better replaced"


def refuse_exposed(names: Iterable[str]) -> None:
    """Refuse to go on with a secret that the whole cluster can read.

    Raises:
        StepError: One of the files can be read or changed by others (1).
    """
    if files := exposed(names):
        raise StepError(
            f"others can read or change {', '.join(map(str, files))}, which holds a secret",
            code=ExitCode.DIAGNOSTICS,
            help=way_out(files),
        )

"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from higgsc.contract.outcome import ExitCode, StepError

_REFUSED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
)
"""What a file system answers when it will not take the folder: a user's matter, not a defect."""


@contextmanager
def publish_folder(
    folder: Path, *, marker: str, goes_on_from: Callable[[Path], bool] = lambda partial: False
) -> Iterator[Path]:
    """Give out an empty folder to write into, and put it in place when the block ends well.

    The folder lies beside its destination, as `.<name>.partial`, so that putting it in place is a rename. When
    the block raises, nothing is left. After a killed process the partial folder is left; the next call removes it,
    or goes on from it.

    Args:
        folder: The destination. An earlier result is replaced, and stays until the new one is complete.
        marker: Name of a file that every such result holds. A folder without it was made by something else
            and is never replaced.
        goes_on_from: Asked about a partial folder that was left: whether it is of use. What is, is given out as it
            is, and is also left when the block is interrupted.

    Raises:
        StepError: The destination holds something else (2), or the disk is full or not writable (74).
    """
    if folder.exists() and not (folder / marker).is_file() and not _is_empty_folder(folder):
        raise StepError(
            f"already exists and was not written by this step (it holds no {marker})",
            code=ExitCode.USAGE,
            path=folder,
            help="name another folder, or move this one away",
        )
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        if not (partial.is_dir() and goes_on_from(partial)):
            _remove(partial)
            partial.mkdir(parents=True)
        yield partial
        _flush_tree(partial)
        _put_in_place(partial, folder)
    except OSError as error:
        _remove(partial)
        if (refused := refused_by_disk(error, folder)) is not None:
            raise refused from error
        raise
    except BaseException as error:
        # An interruption counts: no half of a result stays, unless the next call can use it.
        if isinstance(error, Exception) or not (partial.is_dir() and goes_on_from(partial)):
            _remove(partial)
        raise


def refused_by_disk(error: OSError, folder: Path) -> StepError | None:
    """What to tell a user (74) whose file system will not take something, or None if that is not the error.

    Args:
        error: The error.
        folder: Where something was to be written.
    """
    if error.errno not in _REFUSED:
        return None
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StepError(
        f"cannot write: {error.strerror}" + (f" ({free_space(folder) / 1e6:,.1f} MB are free there)" if full else ""),
        code=ExitCode.IO,
        path=error.filename or folder,
        help="no half of it was left behind; make room or name another folder",
    )


def free_space(folder: Path) -> int:
    """Bytes that may still be written where a folder lies or will lie; quotas are not seen."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _put_in_place(partial: Path, folder: Path) -> None:
    # A rename cannot replace a folder that holds files, so the old result steps aside first.
    replaced = folder.with_name(f".{folder.name}.replaced")
    _remove(replaced)
    if folder.exists():
        folder.rename(replaced)
    try:
        partial.rename(folder)
    except BaseException:  # an interruption here must not cost the old result either
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise
    flush_file(folder.parent)
    _remove(replaced)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush_file(path)
    flush_file(folder)


def flush_file(path: Path) -> None:
    """Wait until a file's or a folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

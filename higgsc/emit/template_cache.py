"""Compiled templates beside Python's own bytecode: compiling them anew takes a tenth of a build's time."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path

from jinja2 import BytecodeCache
from jinja2.bccache import Bucket


class TemplateCache(BytecodeCache):
    """Keeps to what Python does with modules: `PYTHONPYCACHEPREFIX` moves it, `PYTHONDONTWRITEBYTECODE` keeps it from
    writing, and a folder that cannot be written just means
    compiling again. Jinja drops an entry whose template has changed.
    """

    def load_bytecode(self, bucket: Bucket) -> None:
        """Read a compiled template, if there is one."""
        with suppress(OSError), self._path(bucket).open("rb") as file:
            bucket.load_bytecode(file)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Write a compiled template in one piece, so that a build beside this one never reads half of it."""
        if sys.dont_write_bytecode:
            return
        path = self._path(bucket)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # gone again, even where the disk is full
                compiled = Path(folder) / path.name
                with compiled.open("wb") as file:
                    bucket.write_bytecode(file)
                os.replace(compiled, path)

    @staticmethod
    def _path(bucket: Bucket) -> Path:
        return Path(cache_from_source(__file__)).parent / f"{bucket.key}.jinja"

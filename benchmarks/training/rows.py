"""Rows as the trainer makes them: from a store, and what samples begin with alike is there once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence as Listing
from pathlib import Path

import numpy as np

from higgsc.data.store import Store, StoredSample
from higgsc.train.rows.assemble import assemble
from higgsc.train.rows.row import PackedBatch
from higgsc.train.rows.sequence import AudioTokens, Sequence
from higgsc.train.rows.shared import shared_beginnings
from training.run import write_store


class StoredRows:
    """Makes rows of samples that lie in a store of their own.

    Args:
        samples: What the store holds.
        sequences: The same samples, as the other ways of training get them.
        tokens: Ids of the model.
    """

    def __init__(self, samples: Listing[StoredSample], sequences: Listing[Sequence], tokens: AudioTokens) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "store"
        write_store(path, samples)
        self._store, self._tokens = Store.open(path), tokens
        self._shared = shared_beginnings(self._store, self._store.train)
        self._numbers = {id(sequence): number for number, sequence in enumerate(sequences)}

    def __call__(self, batch: Listing[Sequence]) -> PackedBatch:
        """The row of a batch."""
        return assemble(
            self._store, np.array([self._numbers[id(sequence)] for sequence in batch]), self._tokens, self._shared
        )

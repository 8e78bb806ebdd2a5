"""Rows made of whole arrays are the rows made sample by sample."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from higgsc.contract.outcome import StepError
from higgsc.data.layout import Segments
from higgsc.data.store import Store
from higgsc.data.store_writer import StoreWriter
from higgsc.train.rows.assemble import assemble
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

TOKENS = AudioTokens(placeholder=300, delay=301, stream_bos=1024, stream_eos=1025, vocabulary=400)


def write(path: Path, lengths: list[tuple[int, int, int, int]], largest: int = 256) -> Store:
    """A store of random samples with these lengths of prefix, middle, reference and target."""
    random = np.random.default_rng(0)
    with StoreWriter(path, made_by={}) as store:
        for number, (prefix, middle, *frames) in enumerate(lengths):
            clips = [
                store.add_clip(random.integers(0, 1024, (n, 8)).astype(np.uint16), audio=bytes(32)) for n in frames
            ]
            ids = [random.integers(0, largest, n) for n in (prefix, middle)]
            store.add_sample(
                Segments(prefix=ids[0], middle=ids[1], suffix=np.array([263, 261])),
                reference=clips[0],
                target=clips[1],
                speaker="",
                validation=False,
                record={"id": f"sample {number}"},
            )
    return Store.open(path)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_it_is_the_row_of_the_single_sequences(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    length = st.integers(1, 12)
    lengths = data.draw(st.lists(st.tuples(length, length, length, length), min_size=1, max_size=6))
    store = write(tmp_path_factory.mktemp("store") / "store", lengths)
    indices = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8)))
    narrow = assemble(store, indices, TOKENS)
    assert (narrow.input_ids.dtype, narrow.audio_input_ids.dtype) == (torch.int32, torch.int16)
    made = narrow.to(torch.device("cpu"))
    expected = pack([build_sequence(store.sample(int(index)), TOKENS) for index in indices])
    routes = made.routes, expected.routes
    for one, other in ((made, expected), routes, (routes[0].labelled, routes[1].labelled)):
        for field in fields(one):
            found, wanted = getattr(one, field.name), getattr(other, field.name)
            if isinstance(found, torch.Tensor):
                assert found.dtype == wanted.dtype, field.name
                assert torch.equal(found, wanted), field.name
            elif field.name not in ("routes", "labelled"):
                assert found == wanted, field.name
    assert made.tokens == int(store.lengths[indices].sum())


def test_a_text_id_beyond_the_vocabulary_is_an_error_that_names_the_sample(tmp_path: Path) -> None:
    store = write(tmp_path / "store", [(3, 3, 3, 3)] * 3, largest=200)
    few = AudioTokens(placeholder=1, delay=2, stream_bos=1024, stream_eos=1025, vocabulary=263)
    with pytest.raises(StepError, match=r"sample sample 1: text id 263 is not in the base's vocabulary of 263"):
        assemble(store, np.array([1, 2]), few)

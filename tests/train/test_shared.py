"""Samples that begin alike: found whoever wrote them, and exact in a row where they share it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from higgsc.data.layout import Segments
from higgsc.data.store import Store
from higgsc.data.store_writer import StoreWriter
from higgsc.train.decoder.routes import ALONE
from higgsc.train.objective.loss import LossModule
from higgsc.train.rows.assemble import assemble
from higgsc.train.rows.row import PackedBatch, pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence
from higgsc.train.rows.shared import Shared, shared_beginnings

CPU = torch.device("cpu")
SUFFIX = np.array([54, 50])


def write(path: Path, members: list[int], *, prefixes: list[int] | None = None) -> Store:
    """A store in which sample i has reference `members[i]`, and the text before it that goes with `prefixes[i]`."""
    random = np.random.default_rng(1)
    texts = [random.integers(2, 50, 6) for _ in range(9)]
    with StoreWriter(path, made_by={}) as store:

        def clip() -> int:
            frames = int(random.integers(1, 9))
            return store.add_clip(random.integers(0, 1024, (frames, 8)).astype(np.uint16), audio=bytes(32))

        references = {number: clip() for number in sorted(set(members))}
        for number, member in enumerate(members):
            prefix = texts[member if prefixes is None else prefixes[number]]
            middle = np.r_[SUFFIX, random.integers(2, 50, int(random.integers(1, 6))), 52]
            store.add_sample(
                Segments(prefix=np.r_[prefix, 52], middle=middle, suffix=SUFFIX),
                reference=references[member],
                target=clip(),
                speaker="",
                validation=False,
                record={"id": f"sample {number}"},
            )
    return Store.open(path)


def beginnings(store: Store) -> Shared:
    shared = shared_beginnings(store, store.train)
    assert shared is not None
    return shared


def test_found_where_ids_and_reference_are_the_same(tmp_path: Path) -> None:
    store = write(tmp_path / "store", [0, 1, 0, 2, 0, 1, 0], prefixes=[0, 1, 0, 2, 3, 1, 0])
    shared = beginnings(store)
    alike = [set(np.flatnonzero(shared.groups == group).tolist()) for group in np.unique(shared.groups)]
    assert sorted(alike, key=min) == [{0, 2, 6}, {1, 5}, {3}, {4}]  # 4 has another text before the same reference
    expected = [len(store.sample(number).prefix) + len(store.sample(number).reference) + 9 for number in range(7)]
    assert shared.prefixes.tolist() == expected
    assert shared_beginnings(store, np.array([0, 1, 3, 4])) is None


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write(tmp_path_factory.mktemp("store") / "store", [0, 0, 0, 1, 1, 2, 0, 3])


def visible(batch: PackedBatch) -> torch.Tensor:
    """What each position of a row sees, bool `[L, L]`: its own segment up to itself, and all of its prefix."""
    starts = batch.routes.starts.long()
    own = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    prefix = batch.routes.prefixes[own]
    places = torch.arange(batch.tokens)
    return ((own[:, None] == own) & (places[:, None] >= places)) | (prefix[:, None] == own)


@settings(deadline=None, max_examples=40)
@given(row=st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True))
def test_a_row_holds_each_beginning_once(eight: Store, row: list[int]) -> None:
    """Position by position against the samples by themselves, for rows in any order."""
    store = eight
    shared, indices = beginnings(store), np.array(row)
    tokens = AudioTokens(placeholder=51, delay=53, stream_bos=1024, stream_eos=1025, vocabulary=64)
    made = assemble(store, indices, tokens, shared).to(CPU)
    alone = [pack([build_sequence(store.sample(number), tokens)]) for number in row]
    spared = np.where(shared.follows(indices), shared.prefixes[indices], 0)
    assert made.tokens == int((store.lengths[indices] - spared).sum())
    assert made.routes.shared == bool(spared.any())
    seen, start, frames = visible(made), 0, 0
    codes = torch.full((made.tokens, 8), -1)
    codes[made.routes.audio] = made.audio_input_ids[0]
    audio_labels, text_labels = torch.full((made.tokens, 8), -1), torch.full((made.tokens,), -1)
    audio_labels[made.audio_positions], text_labels[made.text_positions] = made.audio_labels, made.text_labels
    beginning = torch.empty(0, dtype=torch.int64)
    for number, sample, less in zip(row, alone, spared.tolist(), strict=True):
        own = torch.arange(start, start + sample.tokens - less)
        places = torch.cat((beginning, own)) if less else own  # where the sample's positions are in the row
        assert torch.equal(made.input_ids[0, places], sample.input_ids[0])
        assert torch.equal(made.position_ids[0, places], torch.arange(sample.tokens))
        assert torch.equal(codes[places][sample.routes.audio], sample.audio_input_ids[0])
        assert torch.equal(audio_labels[places][sample.audio_positions], sample.audio_labels)
        assert torch.equal(text_labels[places][sample.text_positions], sample.text_labels)
        assert torch.equal(seen[places][:, places], torch.ones(sample.tokens, sample.tokens).tril().bool())
        assert int(seen[own].sum()) == int(torch.ones(sample.tokens, sample.tokens).tril()[less:].sum())
        if not less:
            beginning = own[: shared.prefixes[number]]
        start += len(own)
        frames += len(sample.audio_labels)
    assert start == made.tokens
    assert len(made.audio_labels) == frames
    routes = made.routes
    assert torch.equal(torch.cat((routes.text, routes.audio))[routes.by_place], torch.arange(made.tokens))
    assert routes.longest == int(routes.starts.diff().max())


def test_where_nothing_is_shared_the_row_is_that_of_the_samples(tmp_path: Path, tokens: AudioTokens) -> None:
    store = write(tmp_path / "store", [0, 1, 2, 0])
    made = assemble(store, np.array([0, 1, 3, 2]), tokens, beginnings(store))  # 0 and 3 do not follow each other
    expected = assemble(store, np.array([0, 1, 3, 2]), tokens)
    assert not made.routes.shared
    assert made.routes.prefixes.tolist() == [ALONE] * 4
    for one, other in ((made, expected), (made.routes, expected.routes)):
        for field in fields(one):
            found, wanted = getattr(one, field.name), getattr(other, field.name)
            if isinstance(found, torch.Tensor):
                assert torch.equal(found, wanted), field.name


def test_shared_samples_have_their_loss_and_gradients(model: Any, tokens: AudioTokens, tmp_path: Path) -> None:
    """Four targets of one reference, one of another, three of a third: as if each were alone."""
    store = write(tmp_path / "store", [0, 0, 0, 0, 1, 2, 2, 2])
    module, row = LossModule(model), np.arange(8)

    def sums_and_gradients(batches: list[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        module.zero_grad()
        total = torch.zeros(9)
        for batch in batches:
            sums = module(batch)
            (sums.audio.sum() / 400 + sums.text / 24).backward()
            total += torch.cat((sums.audio.detach(), sums.text.detach()[None]))
        return total, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    alone = [assemble(store, row[number : number + 1], tokens).to(CPU) for number in range(8)]
    together = assemble(store, row, tokens, beginnings(store)).to(CPU)
    assert together.routes.shared
    assert together.tokens < sum(batch.tokens for batch in alone)
    apart, apart_gradients = sums_and_gradients(alone)
    found, gradients = sums_and_gradients([together])
    torch.testing.assert_close(found, apart, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == apart_gradients.keys()
    for name, gradient in apart_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_targets_that_saw_each_other_would_be_noticed(model: Any, tokens: AudioTokens, tmp_path: Path) -> None:
    """The check above can fail: with a causal mask alone, the loss is another."""
    store = write(tmp_path / "store", [0, 0, 0])
    together = assemble(store, np.arange(3), tokens, beginnings(store)).to(CPU)
    module = LossModule(model)
    with torch.no_grad():
        right = module(together)
        together.routes.prefixes.fill_(ALONE)
        wrong = module(together)
    assert (right.audio - wrong.audio).abs().max() > 1e-3

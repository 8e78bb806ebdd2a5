"""A merge in blocks of rows: the same bits whatever their size, and gone on with after a kill."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file  # noqa: E402
from transformers import HiggsAudioV2ForConditionalGeneration  # noqa: E402

import higgsc.deploy.merge.fold as fold  # noqa: E402
import higgsc.deploy.rewrite as rewrite  # noqa: E402
import higgsc.deploy.weights as weights_module  # noqa: E402
from higgsc.catalog.original_names import to_original  # noqa: E402
from higgsc.contract.outcome import StepError  # noqa: E402
from higgsc.deploy.merge.fold import merge_adapter  # noqa: E402
from tests.deploy.conftest import MakeAdapter  # noqa: E402


def state(folder: Path) -> dict[str, Any]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("values", [1, 1000, 2**16])
def test_blocks_of_any_size_give_what_peft_gives(
    values: int, dora: bool, base: Path, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if values == 1 and dora:
        pytest.skip("one row at a time is slow enough without")
    monkeypatch.setattr(weights_module, "BLOCK_VALUES", values)
    adapter = make_adapter(use_dora=dora, modules_to_save=["audio_lm_head"])
    report = merge_adapter(base, adapter, tmp_path / "merged", dtype="fp32")
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(base, use_text_head=True, dtype=torch.float32)
    expected = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    merged = state(tmp_path / "merged")
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        if values > 1:
            assert torch.equal(tensor, expected[name]), name
        else:  # a product with one row is another routine of the library, which adds in another order
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)
    assert "audio_lm_head.weight" in report.tensors


def test_any_number_of_threads_gives_the_same_bytes(
    sharded_base: Path, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(modules_to_save=["audio_lm_head"])
    reached: list[tuple[int, int, str]] = []
    merge_adapter(sharded_base, adapter, tmp_path / "one", dtype="bf16", progress=lambda *step: reached.append(step))
    torch.set_num_threads(4)
    monkeypatch.setattr(rewrite, "COPY_BYTES", 10_000)
    merge_adapter(sharded_base, adapter, tmp_path / "four", dtype="bf16")
    assert torch.get_num_threads() == 4, "as it was before"
    one, four = contents(tmp_path / "one"), contents(tmp_path / "four")
    for found in (one, four):
        del found["README.md"]  # is headed by the folder's name
    assert one == four
    assert [number for number, _, _ in reached] == list(range(1, 62))
    # A shard that nothing changes is copied as it is, and there are some of either kind.
    kept = {path.name for path in sharded_base.glob("model-*.safetensors") if one[path.name] == path.read_bytes()}
    index = json.loads((sharded_base / "model.safetensors.index.json").read_text())["weight_map"]
    changed = json.loads((tmp_path / "one" / "merge.json").read_text())["tensors"]
    assert kept == set(index.values()) - {index[name] for name in changed}
    assert 0 < len(kept) < len(set(index.values()))


def test_a_disk_that_fails_while_a_file_is_written(
    base: Path, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of a lost page once: the flush at the end of the file would find nothing."""
    adapter, failures, fsync = make_adapter(), [OSError(errno.EIO, "Input/output error")], os.fsync

    def once(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        fsync(descriptor)

    monkeypatch.setattr(rewrite, "SYNC_BYTES", 10_000)
    monkeypatch.setattr(os, "fsync", once)
    with pytest.raises(OSError, match="Input/output error"):
        merge_adapter(base, adapter, tmp_path / "merged", dtype="bf16")
    assert not (tmp_path / "merged").exists()
    merge_adapter(base, adapter, tmp_path / "merged", dtype="bf16")
    merge_adapter(base, adapter, tmp_path / "calm", dtype="bf16")
    for path in (tmp_path / "calm").glob("*.safetensors"):
        assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()


def test_the_page_cache_is_not_filled_with_what_was_written(
    sharded_base: Path, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Path]] = []
    fsync, advise = os.fsync, os.posix_fadvise

    def noted(descriptor: int) -> Path:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))

    def flushed(descriptor: int) -> None:
        calls.append(("flushed", noted(descriptor)))
        fsync(descriptor)

    def forgotten(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        calls.append(("forgotten", noted(descriptor)))
        advise(descriptor, offset, length, advice)

    monkeypatch.setattr(rewrite, "SYNC_BYTES", 10_000)
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "posix_fadvise", forgotten)
    merge_adapter(sharded_base, make_adapter(), tmp_path / "merged", dtype="bf16")
    shards = {path.name for path in sharded_base.glob("model-*.safetensors")}
    for before, (what, path) in pairwise([("", tmp_path), *calls]):
        if what == "forgotten":
            assert before == ("flushed", path), "a page that is not on disk yet stays"
            shards.discard(path.name)
    assert not shards


@pytest.mark.slow
def test_twenty_kills_leave_no_output_and_the_same_bytes(
    sharded_base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter, merged, partial = make_adapter(), tmp_path / "merged", tmp_path / ".merged.partial"
    started = time.monotonic()
    merge_adapter(sharded_base, adapter, tmp_path / "calm" / "merged", dtype="bf16")
    takes = time.monotonic() - started
    expected = contents(tmp_path / "calm" / "merged")
    generator = random.Random(5)

    def start() -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                merge_adapter(sharded_base, adapter, merged, dtype="bf16")
                code = 0
            finally:
                os._exit(code)
        return child

    kills = taken_up = 0
    while kills < 20:
        before = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
        child = start()
        time.sleep(generator.uniform(0, takes))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0 or merged.exists():  # it was faster, or just had put its output in place
            assert contents(merged) == expected
            shutil.rmtree(merged)
            continue
        kills += 1
        now = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
        taken_up += sum(now.get(name) == written for name, written in before.items())
    assert taken_up > 0
    assert os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1]) == 0
    assert contents(merged) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "calm", "merged"}


def test_what_was_made_from_something_else_is_not_taken_up(
    sharded_base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    def interrupt(number: int, total: int, name: str) -> None:
        if number > total // 2:
            raise KeyboardInterrupt

    adapter, merged = make_adapter(), tmp_path / "merged"
    with pytest.raises(KeyboardInterrupt):
        merge_adapter(sharded_base, adapter, merged, dtype="bf16", progress=interrupt)
    assert list((tmp_path / ".merged.partial").glob("*.safetensors"))
    reached: list[str] = []
    other = make_adapter(folder="other", r=2)
    merge_adapter(sharded_base, other, merged, dtype="bf16", progress=lambda n, total, name: reached.append(name))
    assert len(reached) == 61, "every tensor was written again"
    merge_adapter(sharded_base, other, tmp_path / "again", dtype="bf16")
    assert state(merged).keys() == state(tmp_path / "again").keys()
    for name, tensor in state(merged).items():
        assert torch.equal(tensor, state(tmp_path / "again")[name])


def test_the_original_release_s_layout(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter(modules_to_save=["audio_lm_head"])
    merge_adapter(base, adapter, tmp_path / "merged", dtype="bf16")
    merge_adapter(base, adapter, tmp_path / "original", dtype="bf16", layout="original")
    here, there = state(tmp_path / "merged"), state(tmp_path / "original")
    assert there.keys() == {to_original(name) for name in here}
    assert "audio_decoder_proj.text_lm_head.weight" in there
    for name, tensor in here.items():
        assert torch.equal(tensor, there[str(to_original(name))]), name
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    tokens = json.loads((base / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    assert config["model_type"] == "higgs_audio"
    assert config["audio_in_token_idx"] == ids["<|AUDIO|>"]
    assert config["audio_out_token_idx"] == ids["<|AUDIO_OUT|>"]
    assert config["audio_out_bos_token_id"] == ids["<|audio_out_bos|>"]
    assert config["audio_codebook_size"] == 1024
    assert config["audio_dual_ffn_layers"] == [0, 1, 2, 3]
    assert config["text_config"]["rope_scaling"]["rope_type"] == "llama3"
    assert "transformers cannot load it" in (tmp_path / "original" / "README.md").read_text()


def test_the_model_card_says_where_it_comes_from(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    facts = {"run": "runs/a, step-5", "trained on": "a | b"}
    report = merge_adapter(base, make_adapter(), tmp_path / "merged", dtype="bf16", provenance=facts)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "| run | runs/a, step-5 |" in card
    assert "| trained on | a \\| b |" in card
    assert report.adapter_sha256 in card
    assert card.startswith("---\n")
    assert card.startswith("---\nbase_model_relation"), "the adapter of this test names a folder, which the hub lacks"


def test_a_base_that_is_not_what_its_configuration_says(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    poor = tmp_path / "base"
    poor.mkdir()
    for path in base.iterdir():
        (poor / path.name).write_bytes(path.read_bytes())
    config = json.loads((poor / "config.json").read_text())
    (poor / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(StepError, match=r"model\.layers\.4\..* is missing"):
        merge_adapter(poor, make_adapter(), tmp_path / "merged", dtype="bf16")
    (poor / "config.json").write_text(json.dumps(config | {"model_type": "higgs_audio"}))
    with pytest.raises(StepError, match="original implementation's format"):
        merge_adapter(poor, make_adapter(), tmp_path / "merged", dtype="bf16")


def test_a_file_that_is_cut_while_it_is_copied(
    base: Path, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "base"
    copy.mkdir()
    for path in base.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    write = fold.Rewriter.write

    def cut(*arguments: Any) -> None:
        os.truncate(copy / "model.safetensors", 5_000_000)
        write(*arguments)

    monkeypatch.setattr(fold.Rewriter, "write", cut)
    with pytest.raises((StepError, Exception), match=r"middle of a tensor|incomplete|invalid|Invalid"):
        merge_adapter(copy, make_adapter(), tmp_path / "merged", dtype="fp32")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "base"}

"""The way out of what is wrong on the command line, between files, and in what `--fix` must leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.compiler.diagnostics import Diagnostic
from higgsc.compiler.render import render
from higgsc.compiler.words.spelling import typo_of

FIXTURES = Path(__file__).parent.parent / "fixtures"
COMPLETE = (FIXTURES / "mistakes" / "parts" / "complete.yaml").read_text("utf-8")


def only(spec: Path, *overrides: str, site: str | None = None) -> Diagnostic:
    found = compile_spec(spec, overrides=overrides, site=site).diagnostics
    assert len(found) == 1, render(found, "text")
    return found[0]


@pytest.mark.parametrize(
    "override, help_",
    [
        ("lr=1e-4", "write `training.learning_rate`"),
        ("seed:3", "write `--set seed=3`"),
        ("hardware.gpu=H100", "replace the short form as a whole: `--set hardware=8xH100`"),
        ("data.train.0.path=x.json", "lists are replaced whole"),
        ("lora.rank=8,lora.alpha=16", "give each key a `--set` of its own"),
        ("lora.rank=", "write the value, or `lora.rank=null` to take one back"),
        ("training.steps=1000", "add `--set training.epochs=null`"),
    ],
)
def test_the_way_out_of_an_override(tmp_path: Path, override: str, help_: str) -> None:
    (tmp_path / "spec.yaml").write_text(COMPLETE)
    assert (only(tmp_path / "spec.yaml", override).help or "").startswith(help_)


def test_an_override_of_a_swept_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(f"{COMPLETE}sweep: {{lora.rank: [8, 16]}}\n")
    found = only(tmp_path / "spec.yaml", "lora.rank=8")
    assert found.code == "HC202"
    assert found.secondary[0].span.text == "lora.rank"
    assert compile_spec(tmp_path / "spec.yaml", overrides=("lora.rank=8", "sweep=null")).compiled


@pytest.mark.parametrize(
    "site, help_", [("exmaple", "did you mean `example`?"), ("a/example.yaml", "`--site example`")]
)
def test_a_wrong_site_option_is_shown_as_such(tmp_path: Path, site: str, help_: str) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "example.yaml").write_text("partition: gpu\n")
    (tmp_path / "spec.yaml").write_text(COMPLETE)
    found = only(tmp_path / "spec.yaml", site=site)
    assert help_ in (found.help or "")
    assert str(found.primary.span) == "--site:1:1"


def test_a_site_and_what_is_inherited_about_it_add_up(tmp_path: Path) -> None:
    """`site: NAME` is short for a mapping: neither of the two forms throws the other one away."""
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "example.yaml").write_text("partition: gpu\nexclusive: true\n")
    (tmp_path / "base.yaml").write_text(f"{COMPLETE}site: {{account: mine, exclusive: false}}\n")
    (tmp_path / "spec.yaml").write_text("extends: base.yaml\nname: x\nsite: example\n")
    (compiled,) = compile_spec(tmp_path / "spec.yaml").compiled
    assert (compiled.plan.site.partition, compiled.plan.site.account) == ("gpu", "mine")
    assert not compiled.plan.site.exclusive


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("sites/example.yaml", "partition: gpu\n", "this is a site, not a spec"),
        ("part.yaml", "model: {family: higgs-audio-v2}\nlora: {rank: 8}\n", "this is a part of specs"),
    ],
)
def test_what_is_no_spec_is_told_so_once(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / name).write_text(content)
    assert message in only(tmp_path / name).message


@pytest.mark.parametrize(
    "asked, help_",
    [
        ("arabic", "did you mean `specs/arabic.yaml`?"),
        ("specs/arabic.yml", "did you mean `specs/arabic.yaml`?"),
        ("specs/nope.yaml", None),
        ("lora.rank=16", "write `--set lora.rank=16`"),
    ],
)
def test_the_way_out_of_a_spec_that_is_not_there(tmp_path: Path, asked: str, help_: str | None) -> None:
    (tmp_path / "specs").mkdir()
    for name in ("arabic", "two-node"):
        (tmp_path / "specs" / f"{name}.yaml").write_text(COMPLETE)
    assert only(tmp_path / asked).help == help_


@pytest.mark.parametrize(
    "word, known, meant",
    [
        ("comprehensiv", ["comprehensive", "audio_focused"], "comprehensive"),
        ("rnak", ["rank", "alpha"], "rank"),
        ("BF16", ["bf16", "fp32"], "bf16"),
        ("keep-last", ["keep_last"], "keep_last"),
        ("fp16", ["bf16", "fp32"], None),
        ("higgs-audio-v1", ["higgs-audio-v2"], None),
        ("every_epochs", ["every_steps"], None),
        ("global_batch_size", ["global_batch"], None),
        ("lowest", ["best", "last"], None),
        ("bat", ["cat", "rat"], None),
    ],
)
def test_only_a_slip_is_replaced_unseen(word: str, known: list[str], meant: str | None) -> None:
    assert typo_of(word, known) == meant

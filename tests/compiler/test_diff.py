"""The edit list between two specs, and what it says about a run that has begun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.compiler.composition.provenance import leaves, values_of
from higgsc.compiler.diff import diff, effect_of, worst

ROOT = Path(__file__).parent.parent.parent
ARABIC = ROOT / "specs" / "arabic.yaml"


def edits_of(*overrides: str) -> dict[str, tuple[object, object, str]]:
    (before,) = compile_spec(ARABIC).compiled
    (after,) = compile_spec(ARABIC, overrides=overrides).compiled
    return {edit.path: (edit.before, edit.after, edit.effect) for edit in diff(before.ir, after.ir)}


@pytest.mark.parametrize(
    "override, effect",
    [
        ("training.learning_rate=1e-4", "resume-safe"),
        ("training.epochs=5", "resume-safe"),
        ("hardware=2x8xH200", "resume-safe"),
        ("lora.rank=32", "breaks resume"),
        ("lora.alpha=64", "breaks resume"),
        ("lora.heads=[audio]", "breaks resume"),
        ("model.revision=abc", "breaks resume"),
        ("seed=1", "changes the data order"),
        ("training.global_batch.samples=64", "changes the data order"),
        ("data.train=[{path: other.json}]", "changes the data order"),
        ("training.weight_decay=0.1", "needs a new optimizer"),
        ("site.time_limit=1:00:00", "cosmetic"),
        ("merge=null", "cosmetic"),
    ],
)
def test_each_change_says_what_it_means(override: str, effect: str) -> None:
    overrides = (override, "evaluate=null") if override == "merge=null" else (override,)
    (before,) = compile_spec(ARABIC).compiled
    (after,) = compile_spec(ARABIC, overrides=overrides).compiled
    edits = diff(before.ir, after.ir)
    assert worst(edits) == effect
    own = [edit for edit in edits if not edit.derived]
    assert own
    assert own == list(edits)[: len(own)], "what follows comes last"


def test_what_follows_is_told_apart() -> None:
    edits = edits_of("lora.rank=32")
    assert edits["lora.rank"][:2] == (64, 32)
    assert edits["training.trainable_parameters"][:2] == (157_810_688, 78_905_344)
    assert set(edits) == {"lora.rank", "training.trainable_parameters"}


def test_the_same_spec_has_no_difference() -> None:
    assert edits_of() == {}


def test_every_value_of_a_spec_has_an_effect() -> None:
    for spec in sorted((ROOT / "specs").glob("*.yaml")):
        for made in compile_spec(spec).compiled:
            for path in leaves(values_of(made.ir)):
                effect_of(path)


def test_the_command_compares_files_and_revisions(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "specs" / "base").mkdir(parents=True)
    for name in ("arabic.yaml", "base/voice-cloning.yaml"):
        (project / "specs" / name).write_text((ROOT / "specs" / name).read_text())
    git = ["git", "-C", str(project), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], check=True)
    spec = project / "specs" / "arabic.yaml"
    spec.write_text(spec.read_text().replace("2e-4", "1e-4").replace("rank: 64", "rank: 32"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "higgsc", "diff", *arguments]
        return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)

    result = run("HEAD", "specs/arabic.yaml")
    assert result.returncode == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        "~ lora.rank 64 → 32 specs/arabic.yaml:8:38 breaks resume: adapter shapes change",
        "~ training.learning_rate 0.0002 → 0.0001 specs/arabic.yaml:13:18 resume-safe",
        "~ training.trainable_parameters 157810688 → 78905344 follows",
        "all in all: breaks resume",
    ]
    rows = json.loads(run("--json", "HEAD", "specs/arabic.yaml").stdout)["edits"]
    assert [row["path"] for row in rows] == ["lora.rank", "training.learning_rate", "training.trainable_parameters"]
    assert run("specs/arabic.yaml", "specs/arabic.yaml").stdout == "no difference\n"
    missing = run("no-such-revision", "specs/arabic.yaml")
    assert missing.returncode == 66
    assert "neither a spec nor a git revision" in missing.stderr

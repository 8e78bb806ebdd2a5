"""Overrides, sites and sweeps: what they set, how they are named, where they point."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgsc.compiler.compile import Compilation, compile_spec
from higgsc.compiler.composition.provenance import explain, origin_of

BASE = """\
apiVersion: higgsc/v1
name: t
model: {family: higgs-audio-v2, revision: abc}
data: {train: [{path: d.json}]}
hardware: 8xH200
training: {epochs: 1, global_batch: {samples: 128}, learning_rate: 1e-4}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    sites = tmp_path / "specs" / "sites"
    sites.mkdir(parents=True)
    (sites / "alpha.yaml").write_text("partition: gpu\ntime_limit: '12:00:00'\ncpus_per_node: 96\n")
    (sites / "beta.yaml").write_text("account: b42\n")
    return tmp_path


def compile_text(
    project: Path, text: str = "", *, site: str | None = None, overrides: tuple[str, ...] = ()
) -> Compilation:
    spec = project / "specs" / "s.yaml"
    spec.write_text(BASE + text)
    return compile_spec(spec, site=site, overrides=overrides)


def codes(compilation: Compilation) -> list[str]:
    return [diagnostic.code for diagnostic in compilation.diagnostics]


@pytest.mark.parametrize(
    "override, path, value",
    [
        ("lora.rank=16", ("lora", "rank"), 16),
        ("training.learning_rate=5e-5", ("training", "learning_rate"), 5e-5),
        ("lora.heads=[audio, text]", ("lora", "heads"), ("audio", "text")),
        ("hardware=2x8", ("hardware", "nodes"), 2),
        ("checkpoint.every_steps=7", ("checkpoint", "every_steps"), 7),
        ("name=other", ("name",), "other"),
        ("merge.select=last", ("merge", "select"), "last"),
        ("model.base=./local=model", ("model", "base"), "./local=model"),
    ],
)
def test_overrides_are_typed_and_remember_themselves(
    project: Path, override: str, path: tuple[str, ...], value: object
) -> None:
    compilation = compile_text(project, overrides=(override,))
    (made,) = compilation.compiled
    found: object = made.ir.spec
    for part in path:
        found = getattr(found, part)
    assert found == value
    assert str(origin_of(made.ir, path)).startswith(f"--set {override}")


def test_the_last_override_wins_and_says_what_it_replaced(project: Path) -> None:
    (made,) = compile_text(project, overrides=("training.epochs=2", "training.epochs=3")).compiled
    lines = explain(made.ir, "training.epochs")
    assert lines == [
        "training.epochs = 3.0",
        "  --set training.epochs=3",
        "  instead of 2  --set training.epochs=2",
        "  instead of 1  specs/s.yaml:6:20",
    ]


@pytest.mark.parametrize(
    "override, code",
    [
        ("lora.rank", "HC202"),
        ("=3", "HC202"),
        ("lora..rank=3", "HC202"),
        ("lora.rank=[1", "HC202"),
        ("name.first=x", "HC202"),
        ("lora.rnak=3", "HC101"),
        ("lora.rank='3'", "HC103"),
        ("lora.rank=0", "HC105"),
    ],
)
def test_wrong_overrides_point_at_the_command_line(project: Path, override: str, code: str) -> None:
    compilation = compile_text(project, overrides=(override,))
    assert codes(compilation) == [code]
    assert compilation.diagnostics[0].primary.span.source.text == override


def test_a_site_lies_below_what_the_spec_says(project: Path) -> None:
    (made,) = compile_text(project, "site: {profile: alpha, cpus_per_node: 64}\n").compiled
    site = made.plan.site
    assert (site.partition, site.time_limit, site.cpus_per_node) == ("gpu", "12:00:00", 64)
    assert str(origin_of(made.ir, ("site", "partition"))) == "specs/sites/alpha.yaml:1:12"
    (made,) = compile_text(project, "site: alpha\n").compiled
    assert made.plan.site.cpus_per_node == 96


def test_a_site_from_the_command_line_replaces_the_specs(project: Path) -> None:
    for given in ("", "site: alpha\n", "site: {profile: alpha}\n"):
        compilation = compile_text(project, given, site="beta")
        (made,) = compilation.compiled
        assert (made.plan.site.account, made.plan.site.partition) == ("b42", None)
        assert {source.name for source in compilation.sources} == {"specs/s.yaml", "specs/sites/beta.yaml"}
    compilation = compile_text(project, site="betta")
    assert codes(compilation) == ["HC204"]
    assert compilation.diagnostics[0].help == "did you mean `beta`?"


def test_a_sweep_is_the_product_of_its_axes(project: Path) -> None:
    text = "sweep:\n  training.learning_rate: [1e-4, 2e-4]\n  lora.rank, lora.alpha: [[16, 32], [64, 128]]\n"
    compilation = compile_text(project, text)
    assert [made.plan.name for made in compilation.compiled] == [
        "t-learning_rate-1e-4-rank-16-alpha-32",
        "t-learning_rate-1e-4-rank-64-alpha-128",
        "t-learning_rate-2e-4-rank-16-alpha-32",
        "t-learning_rate-2e-4-rank-64-alpha-128",
    ]
    second = compilation.compiled[1]
    assert (second.ir.spec.training.learning_rate, second.ir.spec.lora.rank, second.ir.spec.lora.alpha) == (
        1e-4,
        64,
        128,
    )
    assert second.plan.build == f"generated/t/{second.plan.name}"
    assert second.plan.run == f"runs/{second.plan.name}"
    assert len({made.plan.run for made in compilation.compiled}) == 4
    assert str(origin_of(second.ir, ("lora", "rank"))) == "specs/s.yaml:9:38"


def test_points_of_a_sweep_get_a_folder_each_below_a_given_output(project: Path) -> None:
    compilation = compile_text(project, "output: /scratch/x/\nsweep: {lora.rank: [8, 16]}\n")
    assert [made.plan.run for made in compilation.compiled] == ["/scratch/x/t-rank-8", "/scratch/x/t-rank-16"]


def test_long_and_equal_names_become_numbers(project: Path) -> None:
    text = "sweep: {model.base: [./a/b, ./a-b], training.learning_rate: [1e-4]}\n"
    assert [made.plan.name for made in compile_text(project, text).compiled] == ["t-0", "t-1"]
    text = f"sweep: {{model.base: [./{'x' * 70}]}}\n"
    assert [made.plan.name for made in compile_text(project, text).compiled] == ["t-0"]


@pytest.mark.parametrize(
    "sweep, code",
    [
        ("[1, 2]", "HC203"),
        ("{}", "HC203"),
        ("{lora.rank: 8}", "HC203"),
        ("{lora.rank: []}", "HC203"),
        ("{'lora.rank, lora.alpha': [[1, 2], [3]]}", "HC203"),
        ("{lora.rnak: [8]}", "HC101"),
        ("{lora.rank: [8, x]}", "HC103"),
        ("{name.x: [8]}", "HC202"),
        (f"{{seed: [{', '.join(map(str, range(200)))}], lora.rank: [{', '.join(map(str, range(1, 101)))}]}}", "HC203"),
    ],
)
def test_wrong_sweeps_are_one_message(project: Path, sweep: str, code: str) -> None:
    compilation = compile_text(project, f"sweep: {sweep}\n")
    assert codes(compilation) == [code]
    assert compilation.compiled == ()


def test_explain_knows_every_value_of_resolved(project: Path) -> None:
    """No value without an origin, no chain without an end."""
    from higgsc.compiler.composition.provenance import known_paths

    (made,) = compile_text(project).compiled
    paths = known_paths(made.ir)
    assert "training.accumulation" in paths
    for path in paths:
        assert explain(made.ir, path), path
    assert explain(made.ir, "training.nothing") is None

"""What a spec says of encoding: shards are a step, the cache is shared, and URLs that fsspec knows may be named."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgsc.compiler.compile import Compilation, compile_spec
from higgsc.compiler.presence import missing_files
from higgsc.contract.jobs import EncodeJob, PrepareJob

SPEC = """\
apiVersion: higgsc/v1
name: t
model: {family: higgs-audio-v2, base: builtin:tiny, audio_tokenizer: builtin:tiny}
hardware: 1xCPU
training: {steps: 8, global_batch: {samples: 2}, micro_batch: {samples: 2}, learning_rate: 1e-3}
"""


def compiled(folder: Path, data: str, more: str = "") -> Compilation:
    (folder / "spec.yaml").write_text(f"{SPEC}data: {data}\n{more}")
    return compile_spec(folder / "spec.yaml")


def test_shards_are_a_step_before_prepare(tmp_path: Path) -> None:
    (made,) = compiled(tmp_path, "{train: [{path: a.json}], prepare: {shards: 4, workers: 3}}").compiled
    encode, prepare = made.plan.step("encode"), made.plan.step("prepare")
    assert [step.name for step in made.plan.steps[:3]] == ["encode", "prepare", "train"]
    assert (encode.tasks, encode.needs, prepare.tasks, prepare.needs) == (4, (), 1, ("encode",))
    assert isinstance(encode.job, EncodeJob)
    assert isinstance(prepare.job, PrepareJob)
    assert (encode.job.shards, encode.job.workers) == (4, 3)
    shared = set(EncodeJob.model_fields) & set(PrepareJob.model_fields) - {"step"}
    assert {name: getattr(encode.job, name) for name in shared} == {
        name: getattr(prepare.job, name) for name in shared
    }, "what one encodes is what the other looks for"


def test_without_shards_there_is_no_encode_step(tmp_path: Path) -> None:
    (made,) = compiled(tmp_path, "{train: [{path: a.json}]}").compiled
    assert [step.name for step in made.plan.steps] == ["prepare", "train", "merge", "evaluate"]
    assert made.plan.step("prepare").needs == ()


@pytest.mark.parametrize(
    "more, cache",
    [("", "runs/.codes"), ("output: out", ".codes"), ("output: /w/runs/t", "/w/runs/.codes")],
)
def test_the_cache_is_beside_the_runs(tmp_path: Path, more: str, cache: str) -> None:
    (made,) = compiled(tmp_path, "{train: [{path: a.json}]}", more).compiled
    job = made.plan.step("prepare").job
    assert isinstance(job, PrepareJob)
    assert job.cache == cache


def test_the_points_of_a_sweep_share_the_cache_and_not_the_store(tmp_path: Path) -> None:
    made = compiled(tmp_path, "{train: [{path: a.json}]}", "sweep: {lora.rank: [8, 16]}").compiled
    jobs = [point.plan.step("prepare").job for point in made]
    assert len({job.cache for job in jobs if isinstance(job, PrepareJob)}) == 1
    assert len({job.store for job in jobs if isinstance(job, PrepareJob)}) == 2


def test_data_may_be_somewhere_else(tmp_path: Path) -> None:
    urls = (
        "{train: [{path: s3://b/a.json}, {path: hf://datasets/u/d/a.json}], roots: [gs://b/audio], store: abfs://b/s}"
    )
    compilation = compiled(tmp_path, urls)
    (made,) = compilation.compiled
    job = made.plan.step("prepare").job
    assert isinstance(job, PrepareJob)
    assert [source.path for source in job.sources] == ["s3://b/a.json", "hf://datasets/u/d/a.json"]
    assert (job.roots, job.store) == (("gs://b/audio",), "abfs://b/s")
    assert missing_files(compilation) == (), "whether they are there, the prepare step finds out"


@pytest.mark.parametrize(
    "data, at",
    [
        ("{train: [{path: ftp://b/a.json}]}", "data.train.0.path"),
        ("{train: [{path: a.json}], roots: [~/audio]}", "data.roots.0"),
        ("{train: [{path: a.json}], prepare: {cache: s3://b/codes}}", "data.prepare.cache"),
        ("{train: [{path: a.json}], prepare: {cache: $SCRATCH/codes}}", "data.prepare.cache"),
        ("{train: [{path: a.json}], store: https://b/s}", "data.store"),
    ],
)
def test_what_cannot_be_a_place_is_refused(tmp_path: Path, data: str, at: str) -> None:
    compilation = compiled(tmp_path, data)
    assert not compilation.compiled
    (diagnostic,) = compilation.diagnostics
    assert diagnostic.code == "HC106"
    assert f"`{at}`" in diagnostic.message

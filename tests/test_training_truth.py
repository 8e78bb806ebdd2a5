"""The truth about the training: overfit one sample, and the merged model says exactly that sample, then stops.

The way is the real one: prepare, train and merge from their job files. What comes out is judged by transformers
alone, in a process that imports nothing of this project. It renders the prompt with the merged model's own chat
template and delays the reference with transformers' own processor.

That the test can fail is shown with the two mistakes that give a perfect loss and no speech: labels that are not
shifted, so that the model learns to copy its input, and no label for the end of the stream.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from higgsc.catalog.codec import STREAM_EOS  # noqa: E402
from higgsc.catalog.higgs_audio_v2 import TINY  # noqa: E402
from higgsc.contract.jobs import (  # noqa: E402
    BatchJob,
    CheckpointJob,
    DataLimits,
    DataSource,
    JobBase,
    LoraJob,
    LossJob,
    MergeJob,
    MeshJob,
    ModelRef,
    OptimizerJob,
    PrepareJob,
    StepContext,
    TrainJob,
)
from higgsc.data import prepare  # noqa: E402
from higgsc.data.delay import IGNORE  # noqa: E402
from higgsc.data.store import Store  # noqa: E402
from higgsc.deploy.merge import step as merge  # noqa: E402
from higgsc.train import step  # noqa: E402
from higgsc.train.rows import assemble  # noqa: E402

pytestmark = pytest.mark.slow

QUICKSTART = Path(__file__).parents[1] / "specs" / "data" / "quickstart"
REFERENCE_TEXT, TARGET_TEXT = "ستمطر السماء غدا.", "صَبَاحُ الْخَيْرْ."  # the clean-up would put the stop
TARGETS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"{network}.{name}_proj" for network in ("mlp", "audio_mlp") for name in ("gate", "up", "down")),
    "audio_lm_head",
    "text_lm_head",
)
STEPS = 100

# Run in a process of its own. Greedy, without repetition-aware sampling, which draws at random where codes repeat.
SPEAK = """
import json, sys
from types import SimpleNamespace
import numpy as np, torch
from transformers import AutoTokenizer, HiggsAudioV2ForConditionalGeneration
from transformers.models.higgs_audio_v2.processing_higgs_audio_v2 import HiggsAudioV2Processor

assert not any(name.startswith("higgsc") for name in sys.modules)
torch.set_num_threads(1)
request = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(request["model"])
model = HiggsAudioV2ForConditionalGeneration.from_pretrained(request["model"]).eval()
model.generation_config.ras_win_len = None

codes = torch.tensor(request["reference"]).T[None]
marks = SimpleNamespace(audio_stream_bos_id=1024, audio_stream_eos_id=1025)
framed = torch.nn.functional.pad(torch.nn.functional.pad(codes, (1, 0), value=1024), (0, 1), value=1025)
rows = HiggsAudioV2Processor.build_delay_pattern(marks, framed)[0].T[None]

text = tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
before, after = text.split("<|AUDIO_OUT|>")
placeholders = "<|AUDIO_OUT|>" * (rows.shape[1] - 7) + "<|reserved_special_token_6|>" * 7
ids = tokenizer(before + placeholders + after, add_special_tokens=False, return_tensors="pt").input_ids
spoken = model.generate(
    input_ids=ids,
    attention_mask=torch.ones_like(ids),
    audio_input_ids=rows,
    audio_input_ids_mask=torch.ones(rows.shape[:2], dtype=torch.bool),
    do_sample=False, temperature=None, top_k=None, top_p=None,
    max_new_tokens=request["max_rows"],
)[0, rows.shape[1]:]
print(json.dumps(spoken.tolist()))
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one overfitted sample."""

    target: np.ndarray
    """Codes of the sample's target, `[T, 8]`."""
    rows: np.ndarray
    """Rows that the merged model spoke, with delay."""
    max_rows: int
    """Where it would have been cut off."""
    audio_loss: float
    """At the last step."""

    @property
    def stopped(self) -> bool:
        """Whether every codebook ended before the speech would have been cut off."""
        return len(self.rows) < self.max_rows and bool((self.rows[-1] == 1025).all())

    @property
    def exact(self) -> bool:
        """Whether the rows are the target's, from the first to the end of the stream in the last codebook."""
        frames = len(self.target)
        if len(self.rows) != frames + 9:
            return False
        spoken = np.stack([self.rows[k + 1 : k + 1 + frames, k] for k in range(8)], axis=1)
        return bool((spoken == self.target).all())


def write_sample(root: Path) -> None:
    """One sample of the quickstart data, cut to a second of each clip."""

    def audio(name: str, duration: float) -> dict[str, Any]:
        return {"type": "audio", "audio_url": f"{name}.flac", "offset": 0.3, "duration": duration}

    for name in ("salim-01", "salim-02"):
        (root / f"{name}.flac").write_bytes((QUICKSTART / "audio" / f"{name}.flac").read_bytes())
    request = f"Please generate speech for given text in reference audio's voice: {TARGET_TEXT}"
    messages = [
        {"role": "system", "content": "Generate audio following instruction."},
        {"role": "user", "content": [{"type": "text", "text": REFERENCE_TEXT}, audio("salim-02", 1.0), request]},
        {"role": "assistant", "content": [{"type": "text", "text": TARGET_TEXT}, audio("salim-01", 1.2)]},
    ]
    (root / "sample.json").write_text(json.dumps([{"messages": messages}]), "utf-8")


def jobs(mesh: MeshJob, *, whole: bool) -> tuple[PrepareJob, TrainJob, MergeJob]:
    model = ModelRef(base="builtin:tiny", revision=None, audio_tokenizer="builtin:tiny", audio_tokenizer_revision=None)
    shapes = [
        shape
        for name, shape in TINY.linear_modules().items()
        if any(name == target or name.endswith(f".{target}") for target in TARGETS)
    ]
    common: dict[str, Any] = {"higgsc": "0", "name": "one", "root": ".", "run": "run", "seed": 0, "device": "cpu"}
    common["model"] = model
    return (
        PrepareJob(
            **common,
            sources=(DataSource(path="sample.json", format="chatml"),),
            validation_fraction=0.0,
            limits=DataLimits(min_seconds=0.5, max_seconds=30, max_bad_fraction=0.0),
            store="store",
            cache="codes",
        ),
        TrainJob(
            **common,
            store="store",
            precision="bf16" if whole else "fp32",
            mesh=mesh,
            batch=BatchJob(global_samples=mesh.data_parallel, micro_samples=1, accumulation=1),
            lora=None
            if whole
            else LoraJob(
                rank=16,
                alpha=32,
                dropout=0.0,
                targets=TARGETS,
                module_count=len(shapes),
                trainable_parameters=sum(16 * (rows + columns) for rows, columns in shapes),
            ),
            optimizer=OptimizerJob(
                learning_rate=1e-3 if whole else 5e-3,
                warmup_steps=10,
                decay="cosine",
                weight_decay=0.0,
                max_grad_norm=1.0,
                epochs=None,
                steps=STEPS,
            ),
            loss=LossJob(text=1.0, audio=1.0),
            checkpoint=CheckpointJob(every_steps=STEPS, keep_last=1),
            checkpoints="run/checkpoints",
            log_every_steps=STEPS // 4,
        ),
        MergeJob(**common, checkpoints="run/checkpoints", select="last", dtype="fp32", merged="merged"),
    )


def overfit_and_speak(root: Path, mesh: MeshJob | None = None, *, whole: bool = False) -> Outcome:
    write_sample(root)
    prepare_job, train_job, merge_job = jobs(mesh or MeshJob(replicate=1, shard=1), whole=whole)

    def context(job: JobBase) -> StepContext:
        path = root / "job.json"
        path.write_text(job.model_dump_json(), "utf-8")
        return StepContext.of(path, job)

    prepare.run(prepare_job, context(prepare_job))
    if mesh is None:
        step.run(train_job, context(train_job))
    else:
        train_on_ranks(context(train_job).job_path, mesh.processes)
    if not whole:
        merge.run(merge_job, context(merge_job))

    sample = Store.open(root / "store").sample(0)
    max_rows = 2 * len(sample.target) + 9
    messages = [
        {"role": "system", "content": "Generate audio following instruction."},
        {"role": "user", "content": REFERENCE_TEXT},
        {"role": "assistant", "content": [{"type": "audio"}]},
        {"role": "user", "content": TARGET_TEXT},
    ]
    model = root / train_job.checkpoints / f"step-{STEPS}" if whole else root / "merged"
    request = {"model": str(model), "messages": messages, "max_rows": max_rows}
    finished = subprocess.run(
        [sys.executable, "-c", SPEAK, json.dumps(request | {"reference": sample.reference.tolist()})],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=root,
        env=os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    last = json.loads((root / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    return Outcome(
        target=sample.target,
        rows=np.array(json.loads(finished.stdout)),
        max_rows=max_rows,
        audio_loss=last["loss/audio"],
    )


def train_on_ranks(job: Path, processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    finished = subprocess.run(
        [*command, "-m", "higgsc", "run-step", str(job)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": str(QUICKSTART.parents[2]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_an_overfitted_sample_is_spoken_exactly_and_ends(tmp_path: Path) -> None:
    outcome = overfit_and_speak(tmp_path)
    assert len(outcome.target) == 30
    assert outcome.stopped
    assert outcome.exact


def test_it_is_spoken_exactly_after_training_with_tensor_and_sequence_parallelism(tmp_path: Path) -> None:
    outcome = overfit_and_speak(tmp_path, MeshJob(replicate=1, shard=1, tensor=2, sequence=True))
    assert outcome.stopped
    assert outcome.exact


def test_a_whole_model_is_its_checkpoint(tmp_path: Path) -> None:
    """Trained in bfloat16 on two shards; plain transformers loads the checkpoint as it is."""
    outcome = overfit_and_speak(tmp_path, MeshJob(replicate=1, shard=2), whole=True)
    assert outcome.stopped
    assert outcome.exact


def test_labels_that_are_not_shifted_teach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each position is to predict its own input: the loss is as good, and the speech is not."""
    monkeypatch.setattr(assemble, "predicting", lambda positions: positions)
    outcome = overfit_and_speak(tmp_path)
    assert outcome.audio_loss < 0.05
    assert not outcome.exact


def test_an_end_that_is_not_labelled_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target_labels = assemble.target_labels

    def without_end(*arguments: Any) -> Any:
        labels = target_labels(*arguments)
        return np.where(labels == STREAM_EOS, IGNORE, labels)

    monkeypatch.setattr(assemble, "target_labels", without_end)
    outcome = overfit_and_speak(tmp_path)
    assert not outcome.stopped

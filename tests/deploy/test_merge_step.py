"""The merge step of a plan: which checkpoint, what it reports, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("soundfile")

from safetensors.torch import load_file  # noqa: E402

from higgsc.contract.heartbeat import read_heartbeat  # noqa: E402
from higgsc.contract.jobs import StepContext  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.merge import step as merge  # noqa: E402
from higgsc.train.model.build import adapter_parameters  # noqa: E402
from tests.deploy.small_run import TINY, lora, merge_job, save  # noqa: E402


def test_merge_step(tmp_path: Path, context: StepContext) -> None:
    model = lora(rank=4)
    for step, loss in ((1, 5.0), (2, 4.0), (3, 6.0)):
        with torch.no_grad():
            for name, parameter in adapter_parameters(model).items():
                if "lora_B" in name:
                    parameter.fill_(0.01 * step)
        save(tmp_path, model, step, loss)
    result = merge.run(merge_job(), context)
    merged = tmp_path / "runs/t/merged"
    assert result.outputs == (merged,)
    assert result.figures["merge/checkpoint_step"] == 2
    assert result.figures["merge/tensors"] == 42
    assert (
        0 <= float(result.figures["merge/max_logit_difference"]) < 1e-4 < float(result.figures["merge/adapter_effect"])
    )
    assert {path.name for path in result.inputs} >= {"adapter_model.safetensors", "manifest.json"}
    assert all(path.is_file() for path in result.inputs)
    last = merge.run(merge_job(select="last"), context)
    assert last.figures["merge/checkpoint_step"] == 3
    beat = read_heartbeat(tmp_path / "runs/t")
    assert beat is not None
    assert beat.done == beat.total == len(load_file(merged / "model.safetensors"))

    adapter = tmp_path / "runs/t/checkpoints/step-2/adapter/adapter_model.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    adapter.write_bytes(content)
    with pytest.raises(StepError, match=r"adapter_model\.safetensors.*hash"):
        merge.run(merge_job(), context)


def test_merge_step_mistakes(tmp_path: Path, context: StepContext) -> None:
    with pytest.raises(StepError) as raised:
        merge.run(merge_job(), context)
    assert raised.value.code == ExitCode.MISSING_INPUT
    save(tmp_path, lora(rank=2), 1, 5.0, ref=TINY.model_copy(update={"revision": "abc"}))
    with pytest.raises(StepError, match="at revision abc"):
        merge.run(merge_job(), context)
    assert not (tmp_path / "runs/t/merged").exists()

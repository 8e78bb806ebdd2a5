"""Kinds of LoRA: PEFT reads what is trained here, what PEFT wrote is where training starts, ranks share the work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer

from higgsc.catalog.adapter import AdapterShape
from higgsc.catalog.higgs_audio_v2 import TINY
from higgsc.contract.jobs import BatchJob, LoraJob, MeshJob, ModelRef
from higgsc.contract.outcome import StepError
from higgsc.data.store import Store
from higgsc.train.model.build import adapter_parameters, add_lora, load_base
from higgsc.train.model.start import start_from
from higgsc.train.objective.loss import LossModule
from higgsc.train.objective.validate import validation_losses
from higgsc.train.parallel.mesh import Mesh

from .conftest import Project
from .ranks import train

CPU = torch.device("cpu")
TARGETS = ("self_attn.q_proj", "audio_mlp.down_proj", "text_lm_head")
BASE = ModelRef(base="builtin:tiny", revision=None, audio_tokenizer="builtin:tiny", audio_tokenizer_revision=None)
KINDS: dict[str, dict[str, Any]] = {
    "patterns": {
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "q_proj": 6},
        "alpha_pattern": {r"audio_mlp\.[^.]*": 3.5},
    },
    "rslora": {"scaling": "rslora"},
    "DoRA": {"dora": True},
    "a whole head": {"full": ("audio_lm_head",)},
    "all of it": {"dora": True, "scaling": "rslora", "full": ("audio_lm_head",), "rank_pattern": {"q_proj": 2}},
}


def lora(**options: Any) -> LoraJob:
    """A job whose predictions fit the tiny base."""
    targets, rank = options.pop("targets", TARGETS), options.pop("rank", 4)
    shape = AdapterShape(
        targets=targets,
        rank=rank,
        rank_pattern=tuple(options.get("rank_pattern", {}).items()),
        dora=options.get("dora", False),
        full=options.get("full", ()),
    )
    return LoraJob(
        rank=rank,
        targets=targets,
        module_count=len(shape.modules(TINY)),
        trainable_parameters=sum(shape.parameters(TINY).values()),
        **{"alpha": 8, "dropout": 0, **options},
    )


def base(dtype: torch.dtype = torch.float32) -> Any:
    return load_base(BASE, root=Path(), dtype=dtype, device=CPU)


def as_peft(job: LoraJob) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha,
        target_modules=list(job.targets),
        rank_pattern=job.rank_pattern,
        alpha_pattern=job.alpha_pattern,
        use_rslora=job.scaling == "rslora",
        use_dora=job.dora,
        modules_to_save=list(job.full) or None,
    )


def made_by_peft(folder: Path, job: LoraJob) -> Path:
    """An adapter as after training, written by PEFT alone."""
    model = peft.get_peft_model(base(), as_peft(job))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.save_pretrained(folder)
    return folder


def held_out_loss(project: Project, model: torch.nn.Module, autocast: torch.dtype | None = None) -> float:
    store = Store.open(project.root / "store")
    return validation_losses(
        LossModule(model).eval(),
        store,
        [store.validation],
        mesh=Mesh.single(CPU),
        autocast=autocast,
        before_row=lambda number: None,
    ).audio


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_what_was_trained(project: Project, kind: str) -> None:
    job = lora(**KINDS[kind])
    project.train(project.job(lora=job))
    folder = project.root / "run" / "checkpoints" / "step-3" / "adapter"
    loaded = peft.PeftModel.from_pretrained(base(), folder)
    (figures,) = (line for line in project.metrics() if "validation/audio_loss" in line)
    assert held_out_loss(project, loaded) == pytest.approx(figures["validation/audio_loss"], rel=1e-6)
    assert held_out_loss(project, base()) != pytest.approx(figures["validation/audio_loss"], rel=1e-5)

    config, plain = json.loads((folder / "adapter_config.json").read_text()), as_peft(job).to_dict()
    for field in ("r", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save", "bias"):
        assert config[field] == plain[field], field
    # The order decides which pattern counts.
    assert list(config["rank_pattern"].items()) == list(job.rank_pattern.items())
    expected = peft.get_peft_model_state_dict(peft.get_peft_model(base(), as_peft(job)), save_embedding_layers=False)
    assert {name: tensor.shape for name, tensor in project.adapter(3).items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_starts_from_what_peft_wrote(project: Project, tmp_path: Path, kind: str) -> None:
    job = lora(**KINDS[kind])
    folder = made_by_peft(tmp_path / "made", job)
    model = add_lora(base(), job, seed=0)
    start_from(folder, model, BASE)
    theirs = peft.PeftModel.from_pretrained(base(), folder)
    assert held_out_loss(project, model) == held_out_loss(project, theirs) != held_out_loss(project, base())


def test_training_goes_on_without_the_adapter_it_started_from(project: Project) -> None:
    """The first step's loss is that of the adapter; a training that has checkpoints no longer needs it."""
    job = lora(start="made")
    made_by_peft(project.root / "made", job)
    project.train(project.job(lora=job))
    first = project.metrics()[0]["loss/audio"]
    project.forget()
    project.train(project.job(lora=lora()))
    assert abs(project.metrics()[0]["loss/audio"] - first) > 1e-3
    project.forget()

    steps = project.job().optimizer.model_copy(update={"steps": 2, "decay": "constant"})
    project.train(project.job(lora=job, optimizer=steps))
    shutil.rmtree(project.root / "made")
    with pytest.raises(StepError, match=r"lora\.start made → None \(the training began somewhere else\)"):
        project.train(project.job(lora=lora()))
    assert project.train(project.job(lora=job, optimizer=steps.model_copy(update={"steps": 4}))).figures["steps"] == 4


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rank": 8}, r"audio_mlp\.down_proj`: rank 4 instead of 8"),
        ({"alpha": 16}, r"down_proj`: scaled by 2 instead of 4; .*; and 6 more"),
        ({"scaling": "rslora"}, "scaled by 2 instead of 4"),
        ({"rank_pattern": {"text_lm_head": 5}}, "that the spec describes: `text_lm_head`: rank 4 instead of 5"),
        ({"dora": True}, "without DoRA"),
        ({"targets": ("self_attn.q_proj", "audio_mlp.down_proj")}, "`text_lm_head` has an adapter there"),
        ({"targets": (*TARGETS, "audio_lm_head")}, "`audio_lm_head` gets an adapter here and has none there"),
        ({"full": ("audio_lm_head",)}, "`audio_lm_head` is trained whole here and not there"),
    ],
)
def test_an_adapter_of_another_kind_is_no_start(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = made_by_peft(tmp_path / "made", lora())
    with pytest.raises(StepError, match=message) as caught:
        start_from(folder, add_lora(base(), lora(**changes), seed=0), BASE)
    assert caught.value.path == folder / "adapter_config.json"


def test_another_name_of_the_base_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = made_by_peft(tmp_path / "made", lora())
    start_from(folder, add_lora(base(), lora(), seed=0), BASE)
    assert "was trained on" in caplog.text


@pytest.mark.parametrize("kind", ["DoRA", "a whole head"])
def test_a_bf16_base_is_left_as_it_is_at_the_start(project: Project, kind: str) -> None:
    """PEFT's own DoRA would start from row lengths that are rounded to bfloat16."""
    adapted = add_lora(base(torch.bfloat16), lora(**KINDS[kind]), seed=0)
    assert {parameter.dtype for parameter in adapter_parameters(adapted).values()} == {torch.float32}
    for module in adapted.modules():
        if isinstance(module, LoraLayer) and KINDS[kind].get("dora"):
            lengths = torch.linalg.norm(module.get_base_layer().weight.float(), dim=1)
            assert torch.equal(module.lora_magnitude_vector["default"].weight, lengths)
    expected = held_out_loss(project, base(torch.bfloat16), torch.bfloat16)
    assert held_out_loss(project, adapted, torch.bfloat16) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_two_shards_with_checkpointed_layers_train_all_of_it_as_one_process_does(project: Project) -> None:
    job = lora(**KINDS["all of it"])
    project.train(project.job(lora=job))
    alone = project.adapter(3)
    project.forget()
    batch = BatchJob(global_samples=4, micro_samples=1, accumulation=2)
    mesh = MeshJob(replicate=1, shard=2)
    finished = train(project, 2, project.job(lora=job, batch=batch, mesh=mesh, activation_checkpointing="full"))
    assert finished.returncode == 0, finished.stderr[-3000:]
    together = project.adapter(3)
    assert together.keys() == alone.keys()
    for name, tensor in alone.items():
        # AdamW divides a gradient by its size, so the rounding of one that is nearly zero shows.
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")

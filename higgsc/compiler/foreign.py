"""Keys that people bring from other tools, and what they are called here."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HF = "the Hugging Face Trainer"
_PEFT = "PEFT"
_AXOLOTL = "axolotl"
_SWIFT = "ms-swift"
_SCRIPTS = "the train_tts scripts"
_NEMO = "NeMo"
_FACTORY = "LLaMA-Factory"
_WANDB = "Weights & Biases"
_SLURM = "Slurm"
_METRICS = "leave it out: metrics.jsonl and TensorBoard are always written"


@dataclass(frozen=True, slots=True)
class ForeignKey:
    origin: str
    """The tool that the key comes from."""
    instead: str
    """What to write here."""
    path: tuple[str, ...] | None
    """The key that stands for it, if one does."""


_DERIVED = "leave it out: accumulation is derived from `training.global_batch` and `training.micro_batch`"
_DEVICES = "`hardware: 8xH200` (or `2x8`, `1xCPU`); the launch scripts follow from it"
_MESH = "`parallelism: {replicate: auto, shard: 1}`"
_NO_TENSOR = "leave it out: a layer is never split; `shard` divides the weights between GPUs"
_RESUME = "leave it out: `higgsc run` takes up what is not done"

_KEYS: dict[str, tuple[str, str]] = {
    "num_train_epochs": (_HF, "`training.epochs`"),
    "max_steps": (_HF, "`training.steps`"),
    "per_device_train_batch_size": (_HF, "`training.micro_batch: {samples: N}`"),
    "per_device_eval_batch_size": (_HF, "leave it out: validation uses `training.micro_batch`"),
    "gradient_accumulation_steps": (_HF, _DERIVED),
    "lr_scheduler_type": (_HF, "`training.decay`"),
    "warmup_ratio": (_HF, "`training.warmup_steps`, in optimizer steps"),
    "logging_steps": (_HF, "`training.log_every_steps`"),
    "save_steps": (_HF, "`checkpoint.every_steps`"),
    "save_total_limit": (_HF, "`checkpoint.keep_last`"),
    "eval_steps": (_HF, "`checkpoint.every_steps`: every checkpoint is validated"),
    "evaluation_strategy": (_HF, "`checkpoint.every_steps`: every checkpoint is validated"),
    "eval_strategy": (_HF, "`checkpoint.every_steps`: every checkpoint is validated"),
    "load_best_model_at_end": (_HF, "`merge: {select: best}`"),
    "bf16": (_HF, "`precision: bf16`"),
    "fp16": (_HF, "`precision: bf16`; fp16 is not offered, its range is too small"),
    "output_dir": (_HF, "`output`"),
    "resume_from_checkpoint": (_HF, _RESUME),
    "report_to": (_HF, _METRICS),
    "deepspeed": (_HF, _MESH),
    "fsdp": (_HF, _MESH),
    "optim": (_HF, "leave it out: the optimizer is AdamW"),
    "gradient_checkpointing": (_HF, "leave it out: a smaller `training.micro_batch` is what saves memory"),
    "logging_dir": (_HF, "`output`; logs go below it"),
    "run_name": (_HF, "`name`"),
    "torch_dtype": (_HF, "`precision`"),
    "dataloader_num_workers": (_HF, "leave it out: the samples are encoded once, before the training"),
    "per_gpu_train_batch_size": (_HF, "`training.micro_batch: {samples: N}`"),
    "use_auth_token": (_HF, "`secrets: [HF_TOKEN]`"),
    "hub_token": (_HF, "`secrets: [HF_TOKEN]`"),
    "hf_token": (_HF, "`secrets: [HF_TOKEN]`"),
    "model_name_or_path": (_HF, "`model.base`"),
    "lora_r": (_PEFT, "`lora.rank`"),
    "lora_rank": (_SWIFT, "`lora.rank`"),
    "lora_alpha": (_PEFT, "`lora.alpha`"),
    "lora_dropout": (_PEFT, "`lora.dropout`"),
    "target_modules": (_PEFT, "`lora.targets`"),
    "modules_to_save": (_PEFT, "`lora.heads` for adapters on the output heads"),
    "lora_target_modules": (_AXOLOTL, "`lora.targets`"),
    "base_model": (_AXOLOTL, "`model.base`"),
    "datasets": (_AXOLOTL, "`data.train: [{path: …}]`"),
    "val_set_size": (_AXOLOTL, "`data.validation: {fraction: …}`"),
    "num_epochs": (_AXOLOTL, "`training.epochs`"),
    "micro_batch_size": (_AXOLOTL, "`training.micro_batch: {samples: N}`"),
    "sequence_len": (_AXOLOTL, "`data.limits: {max_seconds: …}`"),
    "sample_packing": (_AXOLOTL, "leave it out: micro-batches are always packed"),
    "lr_scheduler": (_AXOLOTL, "`training.decay`"),
    "optimizer": (_AXOLOTL, "leave it out: the optimizer is AdamW"),
    "flash_attention": (_AXOLOTL, "leave it out: attention is PyTorch's own"),
    "wandb_project": (_AXOLOTL, _METRICS),
    "wandb": (_WANDB, _METRICS),
    "wandb_api_key": (_WANDB, _METRICS),
    "lora_target": (_FACTORY, "`lora.targets`"),
    "finetuning_type": (_FACTORY, "leave it out: training is LoRA, see `lora`"),
    "cutoff_len": (_FACTORY, "`data.limits: {max_seconds: …}`"),
    "adapter": (_AXOLOTL, "leave it out: training is LoRA, see `lora`"),
    "model_id_or_path": (_SWIFT, "`model.base`"),
    "dataset": (_SWIFT, "`data.train: [{path: …}]`"),
    "train_type": (_SWIFT, "leave it out: training is LoRA, see `lora`"),
    "sft_type": (_SWIFT, "leave it out: training is LoRA, see `lora`"),
    "tuner_type": (_SWIFT, "leave it out: training is LoRA, see `lora`"),
    "split_dataset_ratio": (_SWIFT, "`data.validation: {fraction: …}`"),
    "model_path": (_SCRIPTS, "`model.base`"),
    "audio_tokenizer_path": (_SCRIPTS, "`model.audio_tokenizer`"),
    "train_data_file": (_SCRIPTS, "`data.train: [{path: …}]`"),
    "data_path": (_SCRIPTS, "`data.train: [{path: …}]`"),
    "eval_data_file": (_SCRIPTS, "`data.validation: {fraction: …}`"),
    "validation_split": (_SCRIPTS, "`data.validation: {fraction: …}`"),
    "use_lora": (_SCRIPTS, "leave it out: training is LoRA, see `lora`"),
    "batch_size": (_SCRIPTS, "`training.global_batch: {samples: N}`"),
    "nproc_per_node": ("torchrun", _DEVICES),
    "nnodes": ("torchrun", _DEVICES),
    "world_size": ("torchrun", _DEVICES),
    "gpus": (_NEMO, _DEVICES),
    "nodelist": (_SLURM, "leave it out: Slurm chooses the nodes"),
    "job_name": (_SLURM, "`name`"),
    "walltime": (_SLURM, "`site.time_limit`"),
    "cpus_per_task": (_SLURM, "`site.cpus_per_node`"),
    "ntasks_per_node": (_SLURM, _DEVICES),
    "gres": (_SLURM, _DEVICES),
    "num_gpus": (_SCRIPTS, _DEVICES),
    "devices": (_NEMO, _DEVICES),
    "num_nodes": (_NEMO, _DEVICES),
    "tensor_parallel": (_NEMO, _MESH),
    "data_parallel": (_NEMO, _MESH),
    "tensor": (_NEMO, _NO_TENSOR),
    "pipeline": (_NEMO, _NO_TENSOR),
    "tp": (_NEMO, _NO_TENSOR),
    "pp": (_NEMO, _NO_TENSOR),
}
_ANYWHERE = {"tensor", "pipeline", "tp", "pp"}
"""Words that mean the same wherever they stand; other plain words below the top are more likely misspellings."""


_SYNONYMS: dict[tuple[str, str], str] = {
    ("", "training_args"): "training",
    ("model", "name"): "base",
    ("model", "path"): "base",
    ("model", "type"): "family",
    ("data", "path"): "train",
    ("data", "files"): "train",
    ("data", "val"): "validation",
    ("data", "valid"): "validation",
    ("train", "file"): "path",
    ("validation", "split"): "fraction",
    ("lora", "r"): "rank",
    ("lora", "modules"): "targets",
    ("hardware", "gpus"): "gpus_per_node",
    ("hardware", "type"): "gpu",
    ("parallelism", "data"): "replicate",
    ("parallelism", "dp"): "replicate",
    ("parallelism", "ddp"): "replicate",
    ("parallelism", "fsdp"): "shard",
    ("parallelism", "zero"): "shard",
    ("training", "lr"): "learning_rate",
    ("training", "max_lr"): "learning_rate",
    ("training", "warmup"): "warmup_steps",
    ("training", "batch_size"): "global_batch",
    ("training", "batch"): "global_batch",
    ("training", "scheduler"): "decay",
    ("training", "grad_clip"): "max_grad_norm",
    ("checkpoint", "steps"): "every_steps",
    ("checkpoint", "every"): "every_steps",
    ("checkpoint", "keep"): "keep_last",
    ("merge", "precision"): "dtype",
    ("site", "name"): "profile",
    ("site", "time"): "time_limit",
    ("site", "queue"): "partition",
    ("site", "cpus"): "cpus_per_node",
}
"""Words for a key of ours, by the mapping in which people write them."""


def synonym(parent: tuple[str | int, ...], name: str) -> str | None:
    """The key that an everyday word stands for in the mapping at `parent`, or None."""
    words = [part for part in parent if isinstance(part, str)]
    return _SYNONYMS.get((words[-1] if words else "", name.lower()))


def foreign_key(name: str, *, at_top: bool) -> ForeignKey | None:
    """What another tool's key is called here, or None for a key that no other tool has.

    Args:
        name: As written; leading dashes and inner hyphens of command-line flags are passed over.
        at_top: Whether it stands at the top level of the spec.
    """
    plain = name.lstrip("-").replace("-", "_").lower()
    if plain not in _KEYS or not (at_top or "_" in plain or plain in _ANYWHERE):
        return None
    origin, instead = _KEYS[plain]
    path = re.match(r"`([A-Za-z_.]+)", instead)
    return ForeignKey(
        origin,
        instead if instead.startswith("leave") else f"write {instead}",
        tuple(path[1].split(".")) if path else None,
    )

"""Keys that people bring from other tools, and what they are called here."""

from __future__ import annotations

from dataclasses import dataclass

_HF = "the Hugging Face Trainer"
_PEFT = "PEFT"
_AXOLOTL = "axolotl"
_SWIFT = "ms-swift"
_SCRIPTS = "the train_tts scripts"
_NEMO = "NeMo"


@dataclass(frozen=True, slots=True)
class ForeignKey:
    origin: str
    """The tool that the key comes from."""
    instead: str
    """What to write here."""


_DERIVED = "leave it out: accumulation is derived from `training.global_batch` and `training.micro_batch`"
_DEVICES = "`hardware: 8xH200` (or `2x8`, `1xCPU`); the launch scripts follow from it"
_MESH = "`parallelism: {replicate: auto, shard: 1}`"
_RESUME = "leave it out: `higgsc run` takes up what is not done"

_KEYS: dict[str, tuple[str, str]] = {
    "num_train_epochs": (_HF, "`training.epochs`"),
    "max_steps": (_HF, "`training.steps`"),
    "per_device_train_batch_size": (_HF, "`training.micro_batch: {samples: N}`"),
    "per_device_eval_batch_size": (_HF, "leave it out: validation uses `training.micro_batch`"),
    "gradient_accumulation_steps": (_HF, _DERIVED),
    "learning_rate": (_HF, "`training.learning_rate`"),
    "lr_scheduler_type": (_HF, "`training.decay`"),
    "warmup_steps": (_HF, "`training.warmup_steps`"),
    "warmup_ratio": (_HF, "`training.warmup_steps`, in optimizer steps"),
    "weight_decay": (_HF, "`training.weight_decay`"),
    "max_grad_norm": (_HF, "`training.max_grad_norm`"),
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
    "report_to": (_HF, "leave it out: metrics.jsonl and TensorBoard are always written"),
    "deepspeed": (_HF, _MESH),
    "fsdp": (_HF, _MESH),
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
    "adapter": (_AXOLOTL, "leave it out: training is LoRA, see `lora`"),
    "model_id_or_path": (_SWIFT, "`model.base`"),
    "dataset": (_SWIFT, "`data.train: [{path: …}]`"),
    "train_type": (_SWIFT, "leave it out: training is LoRA, see `lora`"),
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
    "num_gpus": (_SCRIPTS, _DEVICES),
    "devices": (_NEMO, _DEVICES),
    "num_nodes": (_NEMO, _DEVICES),
    "tensor_parallel": (_NEMO, _MESH),
    "data_parallel": (_NEMO, _MESH),
}


def foreign_key(name: str, *, at_top: bool) -> ForeignKey | None:
    """What another tool's key is called here, or None for a key that no other tool has.

    Args:
        name: As written; leading dashes and inner hyphens of command-line flags are passed over.
        at_top: Whether it stands at the top level of the spec.
    """
    plain = name.lstrip("-").replace("-", "_").lower()
    # Below the top, a plain word such as `dataset` is more likely a misspelling.
    if plain not in _KEYS or not (at_top or "_" in plain):
        return None
    origin, instead = _KEYS[plain]
    return ForeignKey(origin, instead if instead.startswith("leave") else f"write {instead}")

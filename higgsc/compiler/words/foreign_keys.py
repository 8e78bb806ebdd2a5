"""The tables behind `foreign.py`: keys of other tools, and everyday words for keys of ours.

In a way out, `<int:4>` stands for what was written behind the key if it is a whole number, else for `4`; so do
`<num:…>`, `<share:…>` (a number up to 0.5), `<path:…>`, `<word:…>`, `<names:…>` (a list of modules), and `<a|b>` for
one of a few words.
"""

from __future__ import annotations

_HF = "the Hugging Face Trainer"
_PEFT = "PEFT"
_AXOLOTL = "axolotl"
_SWIFT = "ms-swift"
_SCRIPTS = "the train_tts scripts"
_NEMO = "NeMo"
_FACTORY = "LLaMA-Factory"
_WANDB = "Weights & Biases"
_SLURM = "Slurm"
_DERIVED = "leave it out: accumulation is derived from `training.global_batch` and `training.micro_batch`"
DEVICES = "`hardware: 8xH200` (or `2x8`, `1xCPU`); the launch scripts follow from it"
_MESH = "`parallelism: {shard: 8}` for ZeRO over eight GPUs; without it every GPU holds the whole model"
_TENSOR = "`parallelism: {tensor: <int:2>}`: the matrices of every layer are divided between GPUs of a machine"
_NO_PIPELINE = "leave it out: layers are not dealt out; `shard` divides the weights between GPUs, `tensor` each layer"
_DATA_MESH = "leave it out: the GPUs that `parallelism.shard` leaves over all see other samples"
_RESUME = "leave it out: `higgsc run` takes up what is not done"

KEYS: dict[str, tuple[str, str]] = {
    "num_train_epochs": (_HF, "`training.epochs: <num:3>`"),
    "max_steps": (_HF, "`training.steps: <int:1000>`"),
    "per_device_train_batch_size": (_HF, "`training.micro_batch: {samples: <int:4>}`"),
    "per_device_eval_batch_size": (_HF, "leave it out: validation uses `training.micro_batch`"),
    "gradient_accumulation_steps": (_HF, _DERIVED),
    "lr_scheduler_type": (_HF, "`training.decay: <cosine|linear|constant>`"),
    "warmup_ratio": (_HF, "`training.warmup_steps: 100`, in optimizer steps"),
    "logging_steps": (_HF, "`training.log_every_steps: <int:10>`"),
    "save_steps": (_HF, "`checkpoint.every_steps: <int:500>`"),
    "save_total_limit": (_HF, "`checkpoint.keep_last: <int:3>`"),
    "eval_steps": (_HF, "`checkpoint.every_steps: <int:500>`: every checkpoint is validated"),
    "evaluation_strategy": (_HF, "`checkpoint.every_steps: <int:500>`: every checkpoint is validated"),
    "eval_strategy": (_HF, "`checkpoint.every_steps: <int:500>`: every checkpoint is validated"),
    "metric_for_best_model": (_HF, "`checkpoint.best: validation/audio_loss`"),
    "load_best_model_at_end": (_HF, "`merge: {select: best}`"),
    "bf16": (_HF, "`precision: bf16`"),
    "fp16": (_HF, "`precision: bf16`; fp16 is not offered, its range is too small"),
    "output_dir": (_HF, "`output: <path:runs/arabic>`"),
    "resume_from_checkpoint": (_HF, _RESUME),
    "max_length": (_HF, "`data.limits: {max_seconds: 30}`"),
    "max_seq_length": (_HF, "`data.limits: {max_seconds: 30}`"),
    "report_to": (_HF, "`tracking: {to: [<tensorboard|wandb|trackio>]}`"),
    "deepspeed": (_HF, _MESH),
    "fsdp": (_HF, _MESH),
    "optim": (_HF, "leave it out: the optimizer is AdamW"),
    "gradient_checkpointing": (_HF, "`training.activation_checkpointing: full`, or `selective`"),
    "torch_compile": (_HF, "`training.compile: true`"),
    "logging_dir": (_HF, "`output: <path:runs/arabic>`; logs go below it"),
    "run_name": (_HF, "`name: <word:arabic>`"),
    "torch_dtype": (_HF, "`precision: <bf16|fp32>`"),
    "load_in_8bit": (_HF, "`model.quantize: int8`"),
    "load_in_4bit": (_HF, "`model.quantize: nf4`"),
    "dataloader_num_workers": (_HF, "leave it out: the samples are encoded once, before the training"),
    "per_gpu_train_batch_size": (_HF, "`training.micro_batch: {samples: <int:4>}`"),
    "use_auth_token": (_HF, "`secrets: [HF_TOKEN]`"),
    "hub_token": (_HF, "`secrets: [HF_TOKEN]`"),
    "hf_token": (_HF, "`secrets: [HF_TOKEN]`"),
    "model_name_or_path": (_HF, "`model.base: <path:bosonai/higgs-audio-v2-generation-3B-base>`"),
    "lora_r": (_PEFT, "`lora.rank: <int:64>`"),
    "lora_rank": (_SWIFT, "`lora.rank: <int:64>`"),
    "lora_alpha": (_PEFT, "`lora.alpha: <num:128>`"),
    "lora_dropout": (_PEFT, "`lora.dropout: <num:0.05>`"),
    "target_modules": (_PEFT, "`lora.targets: <names:comprehensive>`"),
    "modules_to_save": (_PEFT, "`lora.full_heads: [audio]`"),
    "use_rslora": (_PEFT, "`lora.scaling: rslora`"),
    "use_dora": (_PEFT, "`lora.dora: true`"),
    "peft_use_rslora": (_AXOLOTL, "`lora.scaling: rslora`"),
    "peft_use_dora": (_AXOLOTL, "`lora.dora: true`"),
    "lora_modules_to_save": (_AXOLOTL, "`lora.full_heads: [audio]`"),
    "lora_model_dir": (_AXOLOTL, "`lora.start: <path:runs/arabic/checkpoints/step-500/adapter>`"),
    "adapter_name_or_path": (_FACTORY, "`lora.start: <path:runs/arabic/checkpoints/step-500/adapter>`"),
    "lora_target_modules": (_AXOLOTL, "`lora.targets: <names:comprehensive>`"),
    "base_model": (_AXOLOTL, "`model.base: <path:bosonai/higgs-audio-v2-generation-3B-base>`"),
    "datasets": (_AXOLOTL, "`data.train: [{path: <path:data/train_chatml.json>}]`"),
    "val_set_size": (_AXOLOTL, "`data.validation: {fraction: <share:0.02>}`"),
    "num_epochs": (_AXOLOTL, "`training.epochs: <num:3>`"),
    "micro_batch_size": (_AXOLOTL, "`training.micro_batch: {samples: <int:4>}`"),
    "sequence_len": (_AXOLOTL, "`data.limits: {max_seconds: 30}`"),
    "sample_packing": (_AXOLOTL, "leave it out: micro-batches are always packed"),
    "lr_scheduler": (_AXOLOTL, "`training.decay: <cosine|linear|constant>`"),
    "optimizer": (_AXOLOTL, "leave it out: the optimizer is AdamW"),
    "flash_attention": (_AXOLOTL, "leave it out: attention is PyTorch's own"),
    "wandb_project": (_AXOLOTL, "`tracking: {to: [wandb], project: <word:arabic>}`"),
    "wandb": (_WANDB, "`tracking: {to: [wandb]}`"),
    "wandb_api_key": (_WANDB, "`secrets: [WANDB_API_KEY]`"),
    "lora_target": (_FACTORY, "`lora.targets: <names:comprehensive>`"),
    "quantization_bit": (_FACTORY, "`model.quantize: nf4` for 4 bits, `int8` for 8"),
    "finetuning_type": (_FACTORY, "leave it out: an adapter is trained, or with `lora: null` the whole model"),
    "cutoff_len": (_FACTORY, "`data.limits: {max_seconds: 30}`"),
    "adapter": (_AXOLOTL, "leave it out: an adapter is trained, or with `lora: null` the whole model"),
    "quant_bits": (_SWIFT, "`model.quantize: nf4` for 4 bits, `int8` for 8"),
    "model_id_or_path": (_SWIFT, "`model.base: <path:bosonai/higgs-audio-v2-generation-3B-base>`"),
    "dataset": (_SWIFT, "`data.train: [{path: <path:data/train_chatml.json>}]`"),
    "train_type": (_SWIFT, "leave it out: an adapter is trained, or with `lora: null` the whole model"),
    "sft_type": (_SWIFT, "leave it out: an adapter is trained, or with `lora: null` the whole model"),
    "tuner_type": (_SWIFT, "leave it out: an adapter is trained, or with `lora: null` the whole model"),
    "split_dataset_ratio": (_SWIFT, "`data.validation: {fraction: <share:0.02>}`"),
    "model_path": (_SCRIPTS, "`model.base: <path:bosonai/higgs-audio-v2-generation-3B-base>`"),
    "audio_tokenizer_path": (_SCRIPTS, "`model.audio_tokenizer: <path:bosonai/higgs-audio-v2-tokenizer>`"),
    "train_data_file": (_SCRIPTS, "`data.train: [{path: <path:data/train_chatml.json>}]`"),
    "data_path": (_SCRIPTS, "`data.train: [{path: <path:data/train_chatml.json>}]`"),
    "eval_data_file": (_SCRIPTS, "`data.validation: {fraction: <share:0.02>}`"),
    "validation_split": (_SCRIPTS, "`data.validation: {fraction: <share:0.02>}`"),
    "use_lora": (_SCRIPTS, "leave it out: an adapter is trained, or with `lora: null` the whole model"),
    "batch_size": (_SCRIPTS, "`training.global_batch: {samples: <int:128>}`"),
    "nproc_per_node": ("torchrun", DEVICES),
    "nnodes": ("torchrun", DEVICES),
    "world_size": ("torchrun", DEVICES),
    "gpus": (_NEMO, DEVICES),
    "nodelist": (_SLURM, "leave it out: Slurm chooses the nodes"),
    "job_name": (_SLURM, "`name: <word:arabic>`"),
    "walltime": (_SLURM, '`site.time_limit: "24:00:00"`'),
    "cpus_per_task": (_SLURM, "`site.cpus_per_node: <int:64>`"),
    "ntasks_per_node": (_SLURM, DEVICES),
    "gres": (_SLURM, DEVICES),
    "num_gpus": (_SCRIPTS, DEVICES),
    "devices": (_NEMO, DEVICES),
    "num_nodes": (_NEMO, DEVICES),
    "tensor_parallel": (_NEMO, _TENSOR),
    "tensor_model_parallel_size": (_NEMO, _TENSOR),
    "sequence_parallel": (_NEMO, "`parallelism: {tensor: 2, sequence: true}`"),
    "data_parallel": (_NEMO, _DATA_MESH),
    "pipeline": (_NEMO, _NO_PIPELINE),
    "tp": (_NEMO, _TENSOR),
    "pp": (_NEMO, _NO_PIPELINE),
}
ANYWHERE = {"pipeline", "tp", "pp", "bf16", "fp16", "optimizer", "optim", "deepspeed", "adapter"}
"""Words that mean the same wherever they stand; other plain words below the top are more likely misspellings."""


SYNONYMS: dict[tuple[str, str], str] = {
    ("", "training_args"): "training",
    ("model", "name"): "base",
    ("model", "path"): "base",
    ("model", "type"): "family",
    ("model", "quantization"): "quantize",
    ("model", "quant"): "quantize",
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
    ("parallelism", "tp"): "tensor",
    ("parallelism", "tensor_parallel"): "tensor",
    ("parallelism", "sp"): "sequence",
    ("parallelism", "sequence_parallel"): "sequence",
    ("training", "lr"): "learning_rate",
    ("training", "max_lr"): "learning_rate",
    ("training", "warmup"): "warmup_steps",
    ("training", "scheduler"): "decay",
    ("training", "grad_clip"): "max_grad_norm",
    ("tracking", "tools"): "to",
    ("tracking", "name"): "project",
    ("tracking", "team"): "entity",
    ("loss", "codebook_weights"): "codebooks",
    ("loss", "infonce"): "contrastive",
    ("checkpoint", "steps"): "every_steps",
    ("checkpoint", "every"): "every_steps",
    ("checkpoint", "keep"): "keep_last",
    ("merge", "precision"): "dtype",
    ("merge", "quantization"): "quantize",
    ("merge", "quant"): "quantize",
    ("site", "name"): "profile",
    ("site", "time"): "time_limit",
    ("site", "queue"): "partition",
    ("site", "cpus"): "cpus_per_node",
}
"""Words for a key of ours, by the mapping in which people write them."""

_BATCH = "write `micro_batch: {samples: <int:4>}` for what one GPU takes at a time, `global_batch` for all of them"
ADVICE: dict[tuple[str, str], tuple[str, str | None]] = {
    ("checkpoint", "every_epochs"): (
        "checkpoints are counted in optimizer steps: write `every_steps: 500`",
        "every_steps",
    ),
    ("training", "batch_size"): (_BATCH, "global_batch"),
    ("training", "batch"): (_BATCH, "global_batch"),
    ("training", "global_batch_size"): ("write `global_batch: {samples: <int:128>}`", "global_batch"),
    ("training", "save_every"): ("write `every_steps: <int:500>` in `checkpoint`", None),
    ("validation", "path"): ("held-out samples come from `data.train`: write `fraction: 0.02`", None),
    ("validation", "file"): ("held-out samples come from `data.train`: write `fraction: 0.02`", None),
    ("", "slurm"): ("did you mean `site`?", None),
    ("", "resume"): (_RESUME, None),
    ("training", "resume"): (_RESUME, None),
    ("", "env"): ("set variables where the jobs run; `secrets: [HF_TOKEN]` names those that must be there", None),
    ("*", "accumulation"): (_DERIVED, None),
    ("*", "gradient_accumulation"): (_DERIVED, None),
}
"""Keys that need more than another name, by the mapping in which people write them: help, and the key that is meant."""

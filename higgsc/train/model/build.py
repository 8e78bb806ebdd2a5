"""The base, and what of it is trained: an adapter on it, or all of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgsc.catalog.adapter import AdapterShape
from higgsc.catalog.higgs_audio_v2 import shape_of
from higgsc.contract.jobs import LoraJob, ModelRef
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.loading import first_line
from higgsc.train.model.adapter import PROJECTOR
from higgsc.train.model.builtin import resolve_base
from higgsc.train.model.projector import is_projector
from higgsc.train.model.torchao import check_torchao
from higgsc.train.seeds import Purpose, torch_seed

MODEL_TYPE = HiggsAudioV2Config.model_type


def load_base(ref: ModelRef, *, root: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the base with its text head, onto a device.

    A folder is looked for below `root` (the project root), then as the name stands.

    The text head has to be asked for on every load: the checkpoint's configuration does not say that there is one,
    and a model loaded without it also loses it on saving.

    Returns:
        A `HiggsAudioV2ForConditionalGeneration` in evaluation mode, attention by `scaled_dot_product_attention`.

    Raises:
        StepError: If the checkpoint cannot be read, or is quantised while torchao is not there (66); if it is another
            model, or lacks weights. transformers itself fills in what is missing at random and only warns, and a
            checkpoint in the original implementation's format lacks its audio embeddings and heads under
            transformers' names.
    """
    base = str(resolve_base(ref.base, root=root))
    options: dict[str, Any] = {} if ref.revision is None else {"revision": ref.revision}
    try:
        config, _ = HiggsAudioV2Config.get_config_dict(base, **options)
        check_model_type(ref.base, config.get("model_type"))
        if config.get("quantization_config") is not None:
            check_torchao()
        model, info = HiggsAudioV2ForConditionalGeneration.from_pretrained(
            base,
            use_text_head=True,
            dtype=dtype,
            attn_implementation="sdpa",
            device_map=str(device),
            output_loading_info=True,
            **options,
        )
    except (OSError, SafetensorError) as error:
        raise StepError(
            f"cannot load the base `{ref.base}`: {first_line(error)}",
            code=ExitCode.MISSING_INPUT,
            help="name a folder, `builtin:tiny`, or a hub id that this machine can reach or has in its cache",
        ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(map(str, info[problem]))
        if keys:
            raise StepError(
                f"the base `{ref.base}` does not fit the model: {len(keys)} {problem.replace('_', ' ')}, "
                f"such as {', '.join(keys[:3])}",
                help="it must hold every weight of transformers' HiggsAudioV2ForConditionalGeneration, text head too",
            )
    return model.eval()


def check_trainable(ref: ModelRef, base: Any) -> None:
    """Refuse a quantised base: what an adapter learns on it is not exact on the model that it was made from.

    Raises:
        StepError: If it is (65).
    """
    if getattr(base, "is_quantized", False):
        raise StepError(
            f"the base `{ref.base}` is quantised, and training needs its weights as they were",
            help="name the model that it was made from; `model.quantize` rounds that when it is loaded",
        )


def check_model_type(base: str, found: object) -> None:
    """Refuse a checkpoint of another kind of model.

    Args:
        base: How it was named.
        found: `model_type` of its configuration.

    Raises:
        StepError: If it is (65).
    """
    if found == MODEL_TYPE:
        return
    original = found == "higgs_audio"
    raise StepError(
        f"the base `{base}` is a checkpoint of type `{found}`, not `{MODEL_TYPE}`",
        help="this is the original implementation's format; use a revision in transformers' format"
        if original
        else "name a Higgs Audio v2 checkpoint in transformers' format",
    )


def add_lora(model: nn.Module, job: LoraJob, seed: int) -> PeftModel:
    """Put fresh adapters on the linear modules that the job names, and freeze everything else.

    What is trained is float32 whatever the base is. Adapters start as a no-op (B is zero; DoRA's magnitudes are the
    lengths of the rows), the same for the same seed on every process.

    Raises:
        StepError: If the targets match no module, or another number of modules or parameters than the job
            predicts: then the base is not the one that the spec was compiled for.
    """
    config = LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        target_modules=list(job.targets),
        modules_to_save=list(job.full) or None,
        rank_pattern=dict(job.rank_pattern),
        alpha_pattern=dict(job.alpha_pattern),
        use_rslora=job.scaling == "rslora",
        use_dora=job.dora,
        bias="none",
    )
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(torch_seed(seed, Purpose.ADAPTER))
            adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise StepError(
            f"lora targets {', '.join(job.targets)} match no module of the base: {error}",
            help="targets are module paths or suffixes of them, such as self_attn.q_proj or audio_mlp.up_proj",
        ) from error

    _in_float32(adapted)
    modules = sum(isinstance(module, LoraLayer) for module in adapted.modules())
    parameters = sum(math.prod(parameter.shape) for parameter in adapter_parameters(adapted).values())
    if (modules, parameters) != (job.module_count, job.trainable_parameters):
        raise StepError(
            f"lora matches {modules} modules with {parameters:,} parameters in the base, "
            f"but the job predicts {job.module_count} with {job.trainable_parameters:,}",
            help="the base differs from the one that the spec was compiled for; check `model.base` and build again",
        )
    return adapted


def train_whole(model: nn.Module, ref: ModelRef) -> nn.Module:
    """Make every parameter of a float32 model trained.

    None of them are tied: embeddings and heads of this family are weights of their own.

    Raises:
        StepError: If the base has another number of parameters than the catalog knows.
    """
    found, expected = sum(parameter.numel() for parameter in model.parameters()), shape_of(ref.base).parameter_count()
    if found != expected:
        raise StepError(
            f"the base has {found:,} parameters, but the spec was compiled for one with {expected:,}",
            help="the base differs from the one that the spec was compiled for; check `model.base` and build again",
        )
    return model.requires_grad_(True)


@torch.no_grad()
def _in_float32(model: PeftModel) -> None:
    """Where PEFT stays at the base's number format: modules that are trained whole, and the start of DoRA.

    Row lengths of a bfloat16 base that are rounded to bfloat16 themselves would change its outputs before the first
    step, by up to 0.4 %.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.float()
        elif isinstance(module, LoraLayer):
            for magnitude in module.lora_magnitude_vector.values():
                lengths = torch.linalg.norm(module.get_base_layer().weight.float(), dim=1)
                magnitude.weight = nn.Parameter(lengths)


def adapter_shape(job: LoraJob | None) -> AdapterShape | None:
    """Where a job's adapters are and how large, as the catalog counts them; None where the whole model is trained."""
    if job is None:
        return None
    return AdapterShape(
        targets=job.targets,
        rank=job.rank,
        rank_pattern=tuple(job.rank_pattern.items()),
        dropout=job.dropout,
        dora=job.dora,
        full=job.full,
    )


def names_in_file(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """What PEFT or transformers calls trained parameters in its file, by their names in the model."""
    if not isinstance(model, PeftModel):
        return {name: name for name in names}
    names = list(names)
    numbered = {name: torch.tensor(number) for number, name in enumerate(names) if not is_projector(name)}
    renamed = get_peft_model_state_dict(model, state_dict=numbered, save_embedding_layers=False)
    in_file = {int(number): name for name, number in renamed.items()}
    return {name: PROJECTOR if is_projector(name) else in_file[number] for number, name in enumerate(names)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

"""Does a merged model compute what base and adapter compute? Asked of PEFT and transformers, not of the merge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from higgsc.catalog.codec import CODEBOOK_ENTRIES, CODEBOOKS, FRAMES_PER_SECOND
from higgsc.data.store import StoredSample
from higgsc.deploy.base import folder_ref
from higgsc.train.model.build import load_base
from higgsc.train.rows.batches import PackedBatch, pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

Logits = tuple[torch.Tensor, torch.Tensor]

TOLERANCE = 1e-3
"""Largest difference between logits of equally rounded weights, as a share of the largest logit.

Sums in another order differ by some 1e-6, which now and then moves a weight to the neighbouring bfloat16.
"""

ROUNDING_TOLERANCES = {torch.float32: TOLERANCE, torch.bfloat16: 0.2}
"""The same where one side's weights are rounded to the dtype and the other's are not.

Rounding to bfloat16 is off by up to 2**-9 (0.2 %) of a weight. Three layers of the released width differ by 0.9 %
of the largest logit, and independent errors grow with the square root of the depth: some 3 % for all 28 layers.
What is beyond this bound is not rounding any more; mistakes that hide below it are for `TOLERANCE` to find.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsCheck:
    """Logits of the merged model beside others, on one sequence; audio and text head taken together."""

    max_difference: float
    """To base and adapter: what rounding the merged weights to their dtype costs."""
    max_difference_to_peft: float
    """To PEFT's own merge, rounded alike: what this merge does differently, next to nothing."""
    adapter_effect: float
    """Between base with and without the adapter: what a merge has to reproduce."""
    largest_logit: float
    tolerance: float
    """Bound on `max_difference / largest_logit`."""

    @property
    def passed(self) -> bool:
        """Whether both differences are within their tolerances."""
        return (
            self.max_difference_to_peft <= TOLERANCE * self.largest_logit
            and self.max_difference <= self.tolerance * self.largest_logit
        )


def compare_logits(base: Path, adapter: Path, merged: Path, *, dtype: torch.dtype, device: torch.device) -> LogitsCheck:
    """Run a fixed random sequence through base, base with adapter, PEFT's merge, and merged model.

    Only one model is in memory at a time.

    Everything is computed in float32, whatever the files hold, so that what differs is the stored weights.

    Args:
        base: Folder of the base.
        adapter: Folder of the adapter, in PEFT's format.
        merged: Folder of the merged model.
        dtype: Dtype in which the merged model is stored; gives the tolerance.
        device: Where to compute.

    Raises:
        StepError: If one of the models lacks weights or holds unknown ones.
    """
    model = _load(base, device)
    probe = _probe(model.config).to(device)
    alone = _logits(model, probe)
    model = PeftModel.from_pretrained(model, str(adapter), torch_device=str(device)).eval()
    adapted = _logits(model.get_base_model(), probe)
    model = model.merge_and_unload()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    rounded = _logits(model, probe)
    del model
    result = _logits(_load(merged, device), probe)
    return LogitsCheck(
        max_difference=_distance(result, adapted),
        max_difference_to_peft=_distance(result, rounded),
        adapter_effect=_distance(adapted, alone),
        largest_logit=max(float(logits.abs().max()) for logits in adapted),
        tolerance=ROUNDING_TOLERANCES[dtype],
    )


def _load(folder: Path, device: torch.device) -> Any:
    return load_base(folder_ref(folder), root=folder, dtype=torch.float32, device=device)


def _distance(some: Logits, others: Logits) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


@torch.inference_mode()
def _logits(model: Any, probe: PackedBatch) -> Logits:
    """Logits of both heads at every position: audio [L, 8 * 1026], text [L, vocabulary]; on the CPU."""
    hidden = model.model(
        input_ids=probe.input_ids,
        position_ids=probe.position_ids,
        audio_input_ids=probe.audio_input_ids,
        audio_input_ids_mask=probe.audio_input_ids_mask,
        use_cache=False,
    ).last_hidden_state[0]
    return model.audio_lm_head(hidden).cpu(), model.text_lm_head(hidden).cpu()


def _probe(config: Any) -> PackedBatch:
    """A sequence in the training layout: random text below the special ids, random codes, a second of each clip."""
    random = np.random.default_rng(0)
    first_special = min(config.audio_token_id, config.audio_delay_token_id, config.audio_bos_token_id)

    def text(length: int) -> Any:
        return random.integers(0, first_special, length)

    def codes() -> Any:
        return random.integers(0, CODEBOOK_ENTRIES, (FRAMES_PER_SECOND, CODEBOOKS)).astype(np.uint16)

    sample = StoredSample(
        prefix=text(24), middle=text(24), suffix=text(2), reference=codes(), target=codes(), id="probe", speaker=""
    )
    return pack([build_sequence(sample, AudioTokens.of(config))])

"""Does a merged model compute what base and adapter compute? Asked of PEFT and transformers, not of the merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from higgsc.deploy.probe import hidden_states, random_probe
from higgsc.deploy.streamed import StreamedModel
from higgsc.deploy.weights import Weights
from higgsc.deploy.workers import workers
from higgsc.train.rows.row import PackedBatch

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


def compare_logits(
    config: Mapping[str, Any],
    base: Weights,
    adapter: Path,
    merged: Weights,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> LogitsCheck:
    """Run a fixed random sequence through base, base with adapter, PEFT's merge, and merged model.

    None of them is ever in memory as a whole. Everything is computed in float32, whatever the files hold, so that what
    differs is the stored weights.

    Args:
        config: The base's.
        base: Weights of the base.
        adapter: Folder of the adapter, in PEFT's format.
        merged: Weights of the merged model, by the base's names.
        dtype: Dtype in which the merged model is stored; gives the tolerance.
        device: Where to compute.
    """
    with workers() as pool:
        streamed = StreamedModel(base, config, device=device, pool=pool)
        probe = random_probe(streamed.model.config).to(device)
        alone = _logits(streamed.model, probe)
        streamed.add_adapter(adapter)
        adapted = _logits(streamed.model, probe)
        with streamed.merged_by_peft(dtype):
            rounded = _logits(streamed.model, probe)
        del streamed
        result = _logits(StreamedModel(merged, config, device=device, pool=pool).model, probe)
    return LogitsCheck(
        max_difference=_distance(result, adapted),
        max_difference_to_peft=_distance(result, rounded),
        adapter_effect=_distance(adapted, alone),
        largest_logit=max(float(logits.abs().max()) for logits in adapted),
        tolerance=ROUNDING_TOLERANCES[dtype],
    )


def _distance(some: Logits, others: Logits) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


@torch.inference_mode()
def _logits(model: Any, probe: PackedBatch) -> Logits:
    """Logits on the CPU: of the audio head at every position, `[L, 8 * 1026]`; of the text head, whose vocabulary is
    large, at every eighth, `[L / 8, V]`."""
    hidden = hidden_states(model.model, probe)
    return model.audio_lm_head(hidden).cpu(), model.text_lm_head(hidden[::8]).cpu()

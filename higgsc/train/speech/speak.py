"""Let a model speak: a prompt as its inputs, transformers' own `generate`, and the codes of what comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from higgsc.catalog.codec import CODEBOOK_ENTRIES, CODEBOOKS, DELAY_ROWS, EXTRA_ROWS_PER_CLIP, STREAM_EOS
from higgsc.data.delay import apply_delay
from higgsc.train.speech.sampling import Sampling

Codes = npt.NDArray[np.uint16]
Ids = npt.NDArray[np.int64]


def prompt(
    prefix: Ids, reference: Codes, middle: Ids, *, placeholder: int, delay: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """The model's inputs for a prompt; those that transformers' processor makes of the conversation.

    Args:
        prefix: Token ids before the reference's rows; see `higgsc.data.layout.Segments`.
        reference: Codes of the reference, `[T, 8]`.
        middle: Token ids from the reference to the target.
        placeholder: Text id that stands for an audio row.
        delay: Text id that stands for one of a clip's last rows.
        device: Where the model is.

    Returns:
        `input_ids` and `attention_mask` `[1, L]`, `audio_input_ids` `[1, M, 8]` and `audio_input_ids_mask` `[1, M]`.
    """
    # The logits processor of transformers takes the last eight ids for the state of the delay pattern: the
    # placeholders of the reference must not be among them.
    assert len(middle) >= CODEBOOKS, "the turn between reference and target has eight tokens"
    rows = apply_delay(reference)
    placeholders = np.full(len(rows), placeholder)
    placeholders[-DELAY_ROWS:] = delay
    ids = torch.from_numpy(np.concatenate((prefix, placeholders, middle)))[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "audio_input_ids": torch.from_numpy(rows)[None],
        "audio_input_ids_mask": torch.ones((1, len(rows)), dtype=torch.bool),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


class _AfterRow(StoppingCriteria):  # type: ignore[misc]
    """Where transformers lets a caller in between two rows."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self._call()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def speak(
    generate: Callable[..., Any],
    settings: GenerationConfig,
    inputs: dict[str, torch.Tensor],
    frames: int,
    *,
    seed: int,
    sampling: Sampling,
    together: bool = False,
    after_row: Callable[[], None] | None = None,
) -> npt.NDArray[np.int64]:
    """Rows of the answer to a prompt, `[R, 8]`, from the all-BOS row on; R is at most `frames + 9`.

    The random numbers of the process are as they were, afterwards.

    Args:
        generate: The model's method of that name.
        settings: The checkpoint's own, `model.generation_config`.
        inputs: As from `prompt`.
        frames: Where to cut the speech off.
        seed: The same seed on the same machine gives the same speech.
        sampling: How codes are drawn.
        together: Whether other processes have to run forward as often as this one.
        after_row: Called after each row; what it raises ends the generation, and comes out of here.
    """
    device = inputs["input_ids"].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        result = generate(
            **inputs,
            generation_config=sampling.settings(settings, frames + EXTRA_ROWS_PER_CLIP),
            synced_gpus=together,
            **({} if after_row is None else {"stopping_criteria": StoppingCriteriaList([_AfterRow(after_row)])}),
        )
    rows: npt.NDArray[np.int64] = result[0, inputs["audio_input_ids"].shape[1] :].cpu().numpy()
    return rows


def spoken_codes(rows: npt.NDArray[np.int64]) -> tuple[Codes, bool]:
    """Take the codes of an answer out of its rows, which need not be well-formed.

    Nothing keeps a model from a stream marker in the middle, or from ending one codebook before the others. The
    answer is what comes before the first frame with such a marker: no code is invented in its place.

    Args:
        rows: Rows `[R, 8]` with delay, the first of them all BOS, R at least 1.

    Returns:
        Codes `[T, 8]`, each below 1024, T possibly 0; and whether the answer came to its end, without complete
        frames after the last one taken.
    """
    codebooks = rows.shape[1]
    frames = max(len(rows) - codebooks, 0)
    codes = np.stack([rows[k + 1 : k + 1 + frames, k] for k in range(codebooks)], axis=1)
    complete: npt.NDArray[np.bool_] = np.all(codes < CODEBOOK_ENTRIES, axis=1)
    length = frames if complete.all() else int(np.argmin(complete))
    ended = bool((rows[-1] == STREAM_EOS).all()) and not complete[length:].any()
    return codes[:length].astype(np.uint16), ended

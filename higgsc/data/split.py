"""Which samples are held out from training."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from higgsc.contract.outcome import StepError


def held_out(
    samples: Sequence[tuple[str, str]], *, by: Literal["sample", "speaker"], fraction: float, seed: int
) -> frozenset[str]:
    """Choose the samples to hold out, one by one or with all others of their speaker.

    Args:
        samples: Id and speaker of each.
        by: What is chosen.
        fraction: Share of the samples to hold out, 0 to 1.
        seed: Another seed, another choice.

    Returns:
        Ids. By sample, as `validation_ids`. By speaker, those of the speakers whose hash comes first, without those
        who would take it past the share; of the one with the fewest samples if all would. Never all.

    Raises:
        StepError: Something is to be held out and there is only one sample or speaker, or a sample names no speaker.
    """
    if by == "sample" or fraction == 0:
        return validation_ids([name for name, _ in samples], fraction=fraction, seed=seed)
    sizes = Counter(speaker for _, speaker in samples)
    if "" in sizes:
        raise StepError(
            f"{sizes['']} samples name no speaker, so one voice could be on both sides of the split by speaker",
            help="name it with `speaker:` of the source, or set `data.validation.by` to `sample`",
        )
    if len(sizes) < 2:
        raise StepError(
            f"no speaker can be held out for validation from {len(sizes)}",
            help="set `data.validation.by` to `sample`, or `data.validation.fraction` to 0",
        )
    wanted = max(1, round(len(samples) * fraction))
    chosen: set[str] = set()
    count = 0
    for speaker in sorted(sizes, key=lambda name: _drawn(seed, name)):
        if count + sizes[speaker] <= wanted and len(chosen) < len(sizes) - 1:
            chosen.add(speaker)
            count += sizes[speaker]
    if not chosen:
        chosen = {min(sizes, key=lambda name: (sizes[name], _drawn(seed, name)))}
    return frozenset(name for name, speaker in samples if speaker in chosen)


def validation_ids(ids: Sequence[str], *, fraction: float, seed: int) -> frozenset[str]:
    """Choose the samples to hold out: those whose hash with the seed comes first.

    The choice depends on neither order nor machine, and a sample that is added later displaces few others.

    Args:
        ids: Of all samples, each once.
        fraction: Share to hold out, 0 to 1.
        seed: Another seed, another choice.

    Returns:
        `round(len(ids) * fraction)` of them, but at least one if `fraction` is above 0, and never all.

    Raises:
        StepError: One is to be held out and there is only one.
    """
    if fraction == 0:
        return frozenset()
    if len(ids) < 2:
        raise StepError(
            f"nothing can be held out for validation from {len(ids)} sample",
            help="add samples, or set `data.validation.fraction` to 0",
        )
    count = min(max(1, round(len(ids) * fraction)), len(ids) - 1)

    return frozenset(sorted(ids, key=lambda name: _drawn(seed, name))[:count])


def _drawn(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()

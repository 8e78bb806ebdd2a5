"""Which samples are held out from training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from higgsc.contract.outcome import StepError


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

    def drawn(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode()).digest()

    return frozenset(sorted(ids, key=drawn)[:count])

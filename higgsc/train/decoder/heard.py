"""What a Whisper hears of a reference, added to the embeddings of the reference's rows (experimental).

    h[t + 1] += W n(w[t])            n: LayerNorm without weights of its own (Ba et al., 2016)

`w[t]` is of the same 40 ms as the codec's frame `t`, and row `t + 1` of a clip is the one that says that frame's first
code (`higgsc.data.delay`). `W` is all that is trained of it. It starts at zero, so that the model is what it is without
it, to the bit: to add zero changes no number. Without a bias, whatever it comes to say is about what was heard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from higgsc.data.listener import Listener

PARAMETER = "whisper.weight"
"""How the name of the projector's weight ends."""
FIRST_ROW = 1
"""Row of a clip that frame 0 belongs to: before it is the row that begins the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What was heard of R frames of a row."""

    features: Tensor
    """bfloat16 `[R, width]`."""
    places: Tensor
    """int64 `[R]`: the positions of the row that they are added to, none of them twice."""

    @classmethod
    def of(cls, bits: NDArray[np.uint16], places: NDArray[np.int64]) -> Heard:
        """From the bits of bfloat16, as a store has them."""
        return cls(features=torch.from_numpy(bits).view(torch.bfloat16), places=torch.from_numpy(places))

    def to(self, device: torch.device) -> Heard:
        """Copy to a device."""
        return Heard(features=self.features.to(device), places=self.places.to(device))


class Projector(nn.Module):
    """From what a Whisper hears to the width of the residual stream.

    Args:
        listener: Which Whisper.
        hidden: Width of the residual stream.
    """

    def __init__(self, listener: Listener, hidden: int) -> None:
        super().__init__()
        self.listener = listener
        self.weight = nn.Parameter(torch.zeros(hidden, listener.width))

    def forward(self, hidden: Tensor, heard: Heard) -> Tensor:
        """The embeddings `[L, h]` of a row with what was heard added."""
        normed = nn.functional.layer_norm(heard.features.float(), heard.features.shape[-1:])
        added = nn.functional.linear(normed.to(hidden.dtype), self.weight.to(hidden.dtype))
        return hidden.index_add(0, heard.places, added)


def projector_of(decoder: Any) -> Projector | None:
    """The projector of a `HiggsAudioV2Model`; None where nobody listens."""
    found = getattr(decoder, "whisper", None)
    assert found is None or isinstance(found, Projector)
    return found


def places_of(prefix: int, frames: int) -> NDArray[np.int64]:
    """Where the frames of a reference are, behind `prefix` token ids: `[frames]`."""
    return np.arange(prefix + FIRST_ROW, prefix + FIRST_ROW + frames)


@contextmanager
def listening(decoder: Any, bits: NDArray[np.uint16] | None, *, prefix: int) -> Iterator[None]:
    """While a model speaks: what was heard of the reference is added to its prompt.

    Args:
        decoder: The `HiggsAudioV2Model`. One without a projector does not listen, whatever was heard.
        bits: What was heard, the bits of bfloat16 `[T, width]`.
        prefix: Token ids before the reference's rows.
    """
    projector = projector_of(decoder)
    if projector is None:
        yield
        return
    assert bits is not None, "a model that listens has heard the reference"
    heard = Heard.of(bits, places_of(prefix, len(bits)))

    def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = arguments
        if hidden.shape[1] == 1:  # a row of the answer; the prompt came before
            return arguments
        return (projector(hidden[0], heard.to(hidden.device))[None], *others)

    # In front of what divides the sequence within a tensor group.
    handle = decoder.layers[0].register_forward_pre_hook(add, prepend=True)
    try:
        yield
    finally:
        handle.remove()

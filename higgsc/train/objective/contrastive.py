"""Contrastive voice similarity: a target's hidden states are to be near those of its own reference, not of others.

InfoNCE (van den Oord et al., 2018): with z the hidden states of the last layer, averaged over a clip's rows and scaled
to length 1, and temperature T,

    loss_i = - log( exp(z_i . r_i / T) / (exp(z_i . r_i / T) + sum over j of another speaker of exp(z_i . r_j / T)) )

for the target i against all references, and the mean of that with the same for the reference i against all targets.
Other samples of the same speaker are neither positive nor negative. The candidates are the samples that all processes
have in one micro-batch; they are gathered with their gradients, so that N processes give the gradient of one with the
same samples. A sample without any other speaker beside it costs nothing and is not counted.

A target's positions attend to their own reference, so the task is partly solved by passing on what was read there. That
is what it is for: a voice that reaches the end of the layers can be spoken with.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Listing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from higgsc.catalog.codec import audio_rows
from higgsc.data.store import StoredSample


@dataclass(frozen=True, slots=True)
class Voices:
    """Where the clips of a packed row of n samples lie, in P rows of audio."""

    positions: Tensor
    """int64 `[P]`, into the row."""
    clips: Tensor
    """int64 `[P]`: the clip of each position, 0 to n-1 for the references, n to 2n-1 for the targets."""
    speakers: Tensor
    """int64 `[n]`."""

    def to(self, device: torch.device) -> Voices:
        """Copy to a device."""
        return Voices(*(part.to(device, non_blocking=True) for part in (self.positions, self.clips, self.speakers)))


def voices(samples: Listing[StoredSample], speakers: NDArray[np.int64]) -> Voices:
    """Where the clips lie when the samples are packed in this order.

    Args:
        samples: Of one row.
        speakers: Number of each one's speaker, `[n]`.
    """
    positions, clips, start = [], [], 0
    for number, sample in enumerate(samples):
        for clip, before, codes in (
            (number, sample.prefix, sample.reference),
            (number + len(samples), sample.middle, sample.target),
        ):
            start += len(before)
            rows = audio_rows(len(codes))
            positions.append(np.arange(start, start + rows))
            clips.append(np.full(rows, clip))
            start += rows
        start += len(sample.suffix)
    parts = (np.concatenate(positions), np.concatenate(clips), np.array(speakers, dtype=np.int64))
    return Voices(*map(torch.from_numpy, parts))


def pooled(hidden: Tensor, where: Voices) -> tuple[Tensor, Tensor]:
    """Unit vectors of the references and of the targets, float32 `[n, h]` each.

    Args:
        hidden: Hidden states of the row, `[L, h]`.
        where: Its clips.
    """
    # A matrix product rather than `index_add`: the same sums in every run, on a GPU too.
    one_hot = torch.arange(2 * len(where.speakers), device=hidden.device)[:, None] == where.clips
    with torch.autocast(hidden.device.type, enabled=False):
        sums = one_hot.float() @ hidden[where.positions].float()
    references, targets = normalize(sums, dim=-1).chunk(2)
    return references, targets


def info_nce(
    references: Tensor,
    targets: Tensor,
    speakers: Tensor,
    *,
    temperature: float,
    gather: Callable[[Tensor], Tensor] = lambda own: own,
    first: int = 0,
) -> Tensor:
    """The loss of the module's docstring, summed over this process's samples; a float32 scalar.

    Args:
        references: Unit vectors `[n, h]`.
        targets: Unit vectors `[n, h]`.
        speakers: int64 `[n]`.
        temperature: Divides the similarities.
        gather: Puts the rows of all processes together, `[n, ...]` to `[N, ...]`, with gradient.
        first: Where this process's rows begin among them.
    """
    everybody = gather(speakers)
    own = torch.arange(first, first + len(speakers), device=speakers.device)
    same = speakers[:, None] == everybody
    left_out = same.index_put((torch.arange(len(own), device=own.device), own), torch.zeros_like(own, dtype=torch.bool))
    losses = []
    for anchors, candidates in ((targets, references), (references, targets)):
        with torch.autocast(anchors.device.type, enabled=False):  # in bfloat16, cosines near 1 are 0.004 apart
            logits = anchors @ gather(candidates).T / temperature
        losses.append(cross_entropy(logits.masked_fill(left_out, -torch.inf), own, reduction="sum"))
    return torch.stack(losses).mean()


def count_anchors(speakers: NDArray[np.int64]) -> int:
    """How many samples of an optimizer step have another speaker beside them.

    Args:
        speakers: Number of each sample's speaker, `[micro-batches, samples of all processes]`.
    """
    return int(sum(len(row) for row in speakers if len(set(row.tolist())) > 1))

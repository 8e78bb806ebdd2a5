"""Losses on the held-out samples, with text and codes given: whether a model predicts held-out speech better."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from higgsc.contract.evaluation import Losses
from higgsc.data.store import Store
from higgsc.train.objective.loss import LossModule
from higgsc.train.objective.validate import validation_losses
from higgsc.train.parallel.mesh import Mesh


def losses(model: Any, store: Store, mesh: Mesh) -> Losses:
    """Mean losses of a model over the store's validation samples, one sample a row.

    Args:
        model: As from `load_base`, or a PEFT model around one.
        store: Has at least one validation sample.
        mesh: This process alone.
    """
    apart = np.split(store.validation, len(store.validation))
    found = validation_losses(LossModule(model), store, apart, mesh=mesh)
    return Losses(**asdict(found))

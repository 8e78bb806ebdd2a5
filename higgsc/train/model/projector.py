"""The projector of a model that listens with a Whisper: put on, written beside the adapter, and read again.

adapter/adapter_config.json     has one more key than PEFT's own, `whisper`: which Whisper it is. PEFT leaves it out
                                with a warning, which is right: without the projector it is another adapter
adapter/whisper.safetensors     the projector's weight, float32 `[hidden size, width]`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from higgsc.contract.jobs import ModelRef
from higgsc.contract.outcome import StepError
from higgsc.data.listener import Listener
from higgsc.data.store import STORE_FILE, Store
from higgsc.train.decoder.heard import PARAMETER, Projector, projector_of
from higgsc.train.model.adapter import Adapter, read_projector


def add_projector(causal: Any, listener: Listener) -> Projector:
    """Put a fresh projector, all zeros and float32, on a `HiggsAudioV2ForConditionalGeneration`."""
    device = causal.model.embed_tokens.weight.device
    projector = Projector(listener, causal.config.hidden_size).to(device)
    causal.model.whisper = projector
    return projector


@torch.no_grad()
def load_projector(causal: Any, adapter: Adapter) -> None:
    """Put the projector of an adapter on its base, if it has one; frozen.

    Raises:
        StepError: It is damaged, or for a model of another width (65).
    """
    if adapter.listener is None:
        return
    weight = read_projector(adapter)
    projector = add_projector(causal, adapter.listener).requires_grad_(False)
    if weight.shape != projector.weight.shape:
        raise StepError(
            f"the projector of the adapter has shape {list(weight.shape)}, and this base needs "
            f"{list(projector.weight.shape)}",
            path=adapter.projector_path,
            help="the adapter was trained on a base of another size",
        )
    projector.weight.copy_(weight)


def listener_for(store: Store, ref: ModelRef) -> Listener:
    """The Whisper that a job trains with, as the store knows it.

    Raises:
        StepError: If it did not listen to the references of this store.
    """
    wanted = ref.whisper
    assert wanted is not None, "the job names a Whisper"
    if store.listener is None:
        raise StepError(
            f"`model.whisper` names `{wanted.encoder}`, but the store holds nothing that a Whisper has heard",
            path=store.path / STORE_FILE,
            help="it was prepared without `model.whisper`; run the prepare step again, which encodes nothing twice",
        )
    if store.listener.ref != wanted:
        at = "" if wanted.revision is None else f" at revision {wanted.revision}"
        raise StepError(
            f"{store.listener} listened to the references of the store, but the job trains with `{wanted.encoder}`{at}",
            path=store.path / STORE_FILE,
            help="run the prepare step again",
        )
    return store.listener


def check_heard(causal: Any, store: Store) -> None:
    """Refuse a store that another Whisper, or none, has listened to than the one that a model was trained with.

    Raises:
        StepError: If it is such a store (65).
    """
    projector = projector_of(causal.model)
    if projector is None:
        return
    found = store.listener
    if found is None or found.fingerprint != projector.listener.fingerprint:
        who = "no Whisper has" if found is None else f"{found} has"
        raise StepError(
            f"the adapter was trained with {projector.listener}, but {who} listened to the references of the store",
            path=store.path / STORE_FILE,
            help="prepare a store with the `model.whisper` that the adapter was trained with, and name that one",
        )


def divided(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained tensors as those of the adapter and that of the projector."""
    projector = {name: tensor for name, tensor in weights.items() if is_projector(name)}
    return {name: tensor for name, tensor in weights.items() if name not in projector}, projector


def is_projector(name: str) -> bool:
    """Whether a parameter of that name is the projector's."""
    return name.endswith(f".{PARAMETER}")


def listener_of(model: nn.Module) -> Listener | None:
    """The Whisper of a model, perhaps a PEFT model; None where nobody listens."""
    unwrap = getattr(model, "get_base_model", None)
    causal: Any = model if unwrap is None else unwrap()
    projector = projector_of(causal.model)
    return None if projector is None else projector.listener

"""What PEFT calls a tensor of an adapter: in its model, and in the file that it saves."""

from __future__ import annotations

import re
from typing import Final

from higgsc.train.model.adapter import HALVES, MAGNITUDE, PREFIX

_ENDS: Final = (*HALVES, MAGNITUDE, ".weight")
_WRAPPED: Final = "module."
"""DistributedDataParallel's own level; trainers that save the wrapped model keep it."""
_IN_MODEL: Final = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector|modules_to_save)(?:\.([^.]+))?")


def name_in_file(name: str) -> tuple[str, str | None]:
    """The name that PEFT gives a tensor in the file, and of which adapter it is, if the name says.

    A model holds each adapter under a name, `q_proj.lora_A.default.weight`, which the file leaves out:
    `q_proj.lora_A.weight`. Of a module that was trained whole, `head.modules_to_save.default.weight` becomes
    `head.weight`. Source: `get_peft_model_state_dict` in PEFT's `utils/save_and_load.py`.
    """
    name = name.removeprefix(_WRAPPED)
    match = _IN_MODEL.fullmatch(name.removesuffix(".weight"))
    if match is None:
        return name, None
    stem, part, adapter = match.groups()
    ends = {"modules_to_save": ".weight", "lora_magnitude_vector": ".lora_magnitude_vector"}
    return f"{stem}{ends.get(part, f'.{part}.weight')}", adapter


def split(name: str) -> tuple[str, str] | None:
    """The module that a tensor of a file belongs to, and the end of its name; None if it is of no known kind."""
    end = next((end for end in _ENDS if name.endswith(end)), None)
    if end is None or not name.startswith(PREFIX):
        return None
    return name.removeprefix(PREFIX).removesuffix(end), end

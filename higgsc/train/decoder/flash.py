"""FlashAttention 3 behind torch's `varlen_attn`, where the GPU and what is installed allow it.

torch comes with FlashAttention 2. The third version (Shah et al., 2024) is for Hopper GPUs and comes as a package of
its own, which torch uses from the moment that it is told to.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch.nn.attention import activate_flash_attention_impl, list_flash_attention_impls

from higgsc.contract.outcome import ExitCode, StepError

PACKAGE = "flash_attn_interface"
"""The module of the package flash-attn-3."""
_HOPPER = 9
"""Major compute capability of H100, H200, H800."""


def newest_flash(device: torch.device) -> int:
    """Have torch use the newest FlashAttention that there is for a GPU, in this whole process.

    Returns:
        Its version.

    Raises:
        StepError: The package of version 3 is there, but does not work with this torch (66).
    """
    if torch.cuda.get_device_capability(device)[0] != _HOPPER or find_spec(PACKAGE) is None:
        return 2
    try:
        if "FA3" not in list_flash_attention_impls():
            raise RuntimeError(f"torch {torch.__version__} cannot use it")
        activate_flash_attention_impl("FA3")
    except (ImportError, OSError, RuntimeError) as error:
        raise StepError(
            f"FlashAttention 3 is installed, but does not work here: {error}",
            code=ExitCode.MISSING_INPUT,
            help="install the flash-attn-3 that was built for this torch, or uninstall it: torch has version 2",
        ) from error
    return 3

"""FlashAttention 3 behind torch's `varlen_attn`, where the GPU and what is installed allow it.

torch comes with FlashAttention 2. The third version (Shah et al., 2024) is for Hopper GPUs and comes as a package of
its own, which torch uses from the moment that it is told to.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import logging
from importlib.util import find_spec

import torch
from torch.nn import attention

from higgsc.contract.outcome import ExitCode, StepError

logger = logging.getLogger(__name__)

PACKAGE = "flash_attn_interface"
"""The module of the package flash-attn-3."""
_HOPPER = 9
"""Major compute capability of H100, H200, H800."""


def newest_flash(device: torch.device) -> int:
    """Have torch use the newest FlashAttention that there is for a GPU, in this whole process.

    Returns:
        Its version.

    Raises:
        StepError: The package of version 3 is there, but its kernels cannot be loaded (66).
    """
    if torch.cuda.get_device_capability(device)[0] != _HOPPER or find_spec(PACKAGE) is None:
        return 2
    known = getattr(attention, "list_flash_attention_impls", list)
    if "FA3" not in known():
        logger.warning("FlashAttention 3 is installed, but torch %s cannot use it", torch.__version__)
        return 2
    try:
        attention.activate_flash_attention_impl("FA3")
    except (ImportError, OSError, RuntimeError) as error:
        raise StepError(
            f"FlashAttention 3 is installed, but does not work here: {error}",
            code=ExitCode.MISSING_INPUT,
            help="install the flash-attn-3 that was built for this torch, or uninstall it: torch has version 2",
        ) from error
    return 3

"""Keep libraries from talking over our own output."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Silence transformers' progress bars and advice, and deprecation warnings between libraries.

    Has to run before transformers is imported. Errors still come through.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)

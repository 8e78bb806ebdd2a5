"""How codes are drawn from what the model predicts: the options of the release."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from transformers import GenerationConfig

from higgsc.contract.outcome import ExitCode, StepError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Options of a draw; what is None is as the checkpoint's `generation_config.json` says.

    Raises:
        StepError: A value makes no sense (2).
    """

    temperature: float = 1.0
    """Divides the logits, 0 to 2; 0 takes the likeliest code each time, and the other options count for nothing."""
    top_p: float | None = None
    """Only the likeliest codes that together have this probability, above 0 and at most 1 (1: all)."""
    top_k: int | None = None
    """Only this many of the likeliest codes, at least 1."""
    ras_window: int | None = None
    """Repetition-aware sampling: how many rows it looks back on; 0 turns it off. The release says 7."""
    ras_max_repeats: int | None = None
    """How often a code may be among those rows before it is drawn again from all codes. The release says 2."""

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, 0 <= self.temperature <= 2, "between 0 and 2"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1"),
            ("ras_window", self.ras_window, self.ras_window is None or self.ras_window >= 0, "0 or more"),
            (
                "ras_max_repeats",
                self.ras_max_repeats,
                self.ras_max_repeats is None or self.ras_max_repeats >= 1,
                "at least 1",
            ),
        )
        for name, value, good, allowed in checks:
            if not good:
                raise StepError(f"{name} is {value:g}; it has to be {allowed}", code=ExitCode.USAGE)

    def settings(self, checkpoint: GenerationConfig, rows: int) -> GenerationConfig:
        """The checkpoint's settings with these; `generate` takes the repetition window from there alone.

        Args:
            checkpoint: `model.generation_config`; left as it is.
            rows: Rows after which generation is cut off.
        """
        settings = copy.deepcopy(checkpoint)
        settings.max_new_tokens, settings.do_sample = rows, self.temperature > 0
        if self.temperature > 0:
            settings.temperature = self.temperature
            for name, value in (("top_p", self.top_p), ("top_k", self.top_k)):
                if value is not None:
                    setattr(settings, name, value)
            if self.ras_window is not None:
                settings.ras_win_len = self.ras_window or None
            if self.ras_max_repeats is not None:
                settings.ras_win_max_num_repeat = self.ras_max_repeats
            return settings
        # What is None here, `generate` fills in from the checkpoint; these are the values that do nothing.
        settings.temperature, settings.top_p, settings.top_k = 1.0, 1.0, 50
        if getattr(settings, "ras_win_len", None) is not None:
            # Repetition-aware sampling draws at random where codes repeat, under greedy search too. A window of
            # this many rows cannot hold more repeats than that.
            settings.ras_win_max_num_repeat = settings.ras_win_len + 1
        return settings

"""Where the figures of a training are shown."""

from __future__ import annotations

from typing import Literal

from higgsc.spec.base import Name, SpecModel

Tool = Literal["tensorboard", "wandb", "trackio"]


class Tracking(SpecModel):
    """Where the figures of a training go, beside `metrics.jsonl` and `logs/training.log`, which are always written."""

    to: tuple[Tool, ...] = ("tensorboard",)
    """`tensorboard` writes to the run's folder. `wandb` and `trackio` need the package of that name where the training
    runs; `wandb` also needs a key (`secrets: [WANDB_API_KEY]`, or `wandb login` there) unless it is `offline`."""
    project: Name = "higgsc"
    """Project at W&B or trackio; the run in it bears the spec's `name`."""
    entity: Name | None = None
    """User or team at W&B that the project belongs to; your own default if not given."""
    offline: bool = False
    """W&B keeps the figures in `wandb/` in the run's folder, without a key or a network; `wandb sync` sends them
    later. trackio is local in any case: `trackio show`."""

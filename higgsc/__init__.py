"""higgsc: a compiler from experiment specs to launch scripts, and the trainer those scripts invoke."""

__version__ = "0.1.0"

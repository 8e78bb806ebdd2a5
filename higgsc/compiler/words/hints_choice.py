"""The way out of a word that is none of the choices of its key."""

from __future__ import annotations

from higgsc.compiler.diagnostics import closest
from higgsc.compiler.reading.source import Node
from higgsc.compiler.words.hint import Hint
from higgsc.compiler.words.spelling import typo_of

_WORDS = {
    "bfloat16": "bf16",
    "float32": "fp32",
    "single": "fp32",
    "32": "fp32",
    "json": "chatml",
    "jsonl": "chatml",
    "latest": "last",
    "newest": "last",
    "final": "last",
    "lowest": "best",
    "lowest_loss": "best",
    "min": "best",
    "min_loss": "best",
    "none": "constant",
    "val": "held-out",
    "validation": "held-out",
    "test": "held-out",
    "train": "training",
}
"""Words from elsewhere for one of our choices."""
_SAME = {"bfloat16", "float32"}
"""Those of them that mean exactly the same, so that they can be replaced unseen."""
_NOT_HERE = {
    **dict.fromkeys(
        ("fp16", "float16", "half", "mixed", "16", "16-mixed"), "write `bf16`: fp16 is not offered, its range is small"
    ),
    **{
        word: f"write `bf16`, and `quantize: {scheme}` in `model`: the frozen base is rounded, all else is not"
        for scheme, words in {"fp8": ("fp8",), "int8": ("int8", "8bit"), "nf4": ("nf4", "int4", "4bit")}.items()
        for word in words
    },
    "higgs-audio-v1": "write `higgs-audio-v2`: version 1 is another architecture, and not known here",
    "higgs-audio-v2.5": "write `higgs-audio-v2`: later versions are not known here",
    "higgs-audio-v3": "write `higgs-audio-v2`: later versions are not known here",
}
"""Words for something that there is not: what comes nearest is another thing."""


def for_choice(node: Node, choices: list[str]) -> Hint:
    """For a word that is none of the choices."""
    word = str(node.value).strip().strip("\"'`“”„‘’")
    if (help_ := _NOT_HERE.get(word.lower())) is not None and any(f"`{choice}`" in help_ for choice in choices):
        return Hint(help_)
    known = _WORDS.get(word.lower())
    if known in choices:
        return Hint(f"did you mean `{known}`?", known if word.lower() in _SAME else None)
    if match := typo_of(word, choices):
        return Hint(f"did you mean `{match}`?", match)
    starts = [choice for choice in choices if word.lower().startswith(choice) and len(choice) > 2]
    if match := closest(word, choices, cutoff=0.7) or (starts[0] if starts else None):
        return Hint(f"did you mean `{match}`?")
    return Hint(f"write `{choices[0]}`" if len(choices) == 1 else None)

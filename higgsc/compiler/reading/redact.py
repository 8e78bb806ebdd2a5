"""What is shaped like a secret is never printed: masks for excerpts and messages."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|sk-[A-Za-z0-9]{32,}|sk-(?:proj|ant|admin|svcacct|or)-[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic, OpenRouter
    r"|wandb_v1_[A-Za-z0-9_-]{20,}"  # Weights & Biases
    r"|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}"  # GitHub
    r"|AKIA[0-9A-Z]{16}"  # AWS
    r")"
)
_HEXADECIMAL = re.compile(r"(?<![A-Za-z0-9])[0-9a-f]{40}(?![A-Za-z0-9])")
"""An older key of Weights & Biases, or a commit."""

_ASSIGNED = re.compile(r"(?i)(?:token|secret|password|passwd|api[_-]?key)[\"']?\s*[:=]\s*[\"']?([^\s\"',\[\]{}#$]{6,})")
"""What stands behind a key that is named after a secret."""


def has_token(text: str, *, hexadecimal: bool) -> bool:
    """Whether `text` holds something shaped like a token.

    Args:
        text: Any text.
        hexadecimal: Whether forty hex digits count: where a secret may stand, but not where a commit may.
    """
    return bool(_TOKEN.search(text) or (hexadecimal and _HEXADECIMAL.search(text)))


def mask(text: str) -> str:
    """`text` with everything that is shaped like a secret replaced by as many asterisks."""
    masked = _TOKEN.sub(lambda match: "*" * len(match[0]), text)
    masked = _ASSIGNED.sub(_behind_the_key, masked)
    return masked if "revision" in masked else _HEXADECIMAL.sub("*" * 40, masked)


def _behind_the_key(match: re.Match[str]) -> str:
    if re.fullmatch(r"[A-Z_][A-Z0-9_]*", match[1]):
        return match[0]  # the name of an environment variable is what should stand there
    start = match.start(1) - match.start()
    return match[0][:start] + "*" * len(match[1]) + match[0][start + len(match[1]) :]

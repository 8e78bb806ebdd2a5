"""The way out of a wrong value: what the writer most likely meant, and how it is written here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from higgsc.catalog.whisper import EXAMPLE
from higgsc.compiler.reading.source import Node, NodePath
from higgsc.compiler.words.hint import Hint
from higgsc.compiler.words.hints_number import as_number, as_share, one_of_several, share_of_steps
from higgsc.compiler.words.keys import may_be_null
from higgsc.compiler.words.spelling import typo_of

_TEMPLATE = re.compile(r"\$\{?[A-Za-z_]|\{\{|\{%|<%")
_YES, _NO = ("yes", "on", "y", "true", "1"), ("no", "off", "n", "false", "0")
_QUOTES = "“”„‟‘’‚‛«»‹›＂＇`´"
_UNITS = {
    "s": 1,
    "sec": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hr": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
}


def for_type(node: Node, path: NodePath, expected: list[str], tree: Node) -> Hint:
    """For a value of the wrong type.

    Args:
        node: The value.
        path: Where it stands.
        expected: What is taken there, in words: `a whole number`, `a list`.
        tree: The whole spec.
    """
    value, written = node.value, node.span.text
    takes = set(expected)
    if value is None and written:
        return Hint("take the line out for the default, or write a value")
    if value is None:
        return _for_empty(path, takes)
    if "a mapping" in takes and not isinstance(value, Mapping):
        return _as_mapping(node, path)
    if "a list" in takes and not isinstance(value, tuple):
        return _as_list(node, path, [word.strip("`") for word in expected if word.startswith("`")])
    if "true or false" in takes:
        word = str(value).lower()
        right = "true" if word in _YES else "false" if word in _NO else None
        return Hint(f"write `{right}`", right) if right else Hint("write `true` or `false`")
    if path[-1:] == ("time_limit",) and isinstance(value, int):
        days, rest = divmod(value, 1440)
        minutes = f"{f'{days}-' if days else ''}{rest // 60:02}:{rest % 60:02}:00"
        hours = f"{value}:00:00" if value < 1000 else f"{value // 24}-{value % 24:02}:00:00"
        return Hint(f'as hours: `"{hours}"`; as minutes: `"{minutes}"`' if 0 < value < 24_000 else _DURATION)
    if path[:2] == ("lora", "targets") and len(path) > 2:
        return Hint("write the name of a module, such as `q_proj`")
    if "a string" in takes and isinstance(value, bool | int | float):
        return Hint(f'put it in quotes: `"{written}"`', f'"{written}"')
    if isinstance(value, tuple) and takes & {"a number", "a whole number"}:
        return one_of_several(node, path)
    if isinstance(value, float) and "a whole number" in takes:
        if value.is_integer() and abs(value) < 1e15:
            return Hint(f"write `{int(value)}`", str(int(value)))
        if not set(written) & set(".eE"):
            return Hint("write a number with fewer digits")
        if path[-1:] == ("warmup_steps",) and 0 < value < 1:
            return Hint(share_of_steps(value, written, tree))
        return Hint("write it without a fraction")
    if isinstance(value, str) and takes & {"a number", "a whole number"}:
        if _TEMPLATE.search(value):
            what = "nothing is read from the environment" if value.startswith("$") else "there are no templates"
            return Hint(f"{what} here: write the value, or `--set {'.'.join(map(str, path))}=…`")
        if path[-1:] == ("replicate",):
            return Hint("write `auto`: the GPUs that `shard` leaves")
        if unit := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(epochs?|steps?|samples?|s|sec|seconds?)", value):
            return Hint(f"write `{unit[1]}`, without the unit")
        example = "1e-4" if path[-1:] == ("learning_rate",) else "0.5"
        return as_number(value, whole="a number" not in takes, quoted=written[:1] in ("'", '"'), example=example)
    return Hint()


_DURATION = 'write hours, minutes and seconds: `"24:00:00"`'


def _for_empty(path: NodePath, takes: set[str]) -> Hint:
    if "a mapping" in takes:
        return Hint(f"indent the keys of `{path[-1]}` below it, or take the line out")
    return Hint("write a value behind the colon, or take the line out")


def _as_mapping(node: Node, path: NodePath) -> Hint:
    value, written, last = node.value, node.span.text, path[-1] if path else ""
    if path == ("lora",) and (value is False or str(value).lower() in ("full", "no", "none", "off", "false", "nil")):
        return Hint("`lora: null` trains the whole model")
    if may_be_null(path) and (value is False or str(value).lower() in ("no", "none", "off", "false", "nil")):
        return Hint(f"`{last}: null` switches it off", "null")
    if value is True and last in ("lora", "checkpoint", "loss", "merge", "evaluate"):
        return Hint("take the line out: it is on by itself")
    if isinstance(value, str) and (glued := re.match(r"([A-Za-z_]+)[:=](?=\S)", value)):
        return Hint(f"a space is missing after the colon: `{glued[1]}: {value[glued.end() :]}`")
    main = {"global_batch": "samples", "micro_batch": "samples", "evaluate": "samples", "validation": "fraction"}
    if last in main and isinstance(value, int | float):
        fitting = isinstance(value, int) or last == "validation"
        return Hint(
            f"write `{{{main[str(last)]}: {written}}}`", f"{{{main[str(last)]}: {written}}}" if fitting else None
        )
    if len(path) == 3 and path[:2] == ("data", "train") and isinstance(value, str):
        return Hint(f"write `{{path: {written}}}`", f"{{path: {written}}}")
    if path == ("data", "validation") and isinstance(value, str):
        return Hint("held-out samples come from `data.train`: write `{fraction: 0.02}`")
    if last == "model" and isinstance(value, str):
        return Hint(f"write `{{family: higgs-audio-v2, base: {written}}}`")
    if last == "lora" and isinstance(value, int):
        return Hint(f"write `{{rank: {written}}}`")
    if last == "checkpoint" and isinstance(value, int):
        return Hint(f"write `{{every_steps: {written}}}`")
    if last == "merge" and value in ("best", "last"):
        return Hint(f"write `{{select: {written}}}`", f"{{select: {written}}}")
    if last == "tracking" and isinstance(value, str | tuple):
        tools = [value] if isinstance(value, str) else [str(entry.value) for entry in value]
        return Hint(f"write `{{to: [{', '.join(tools)}]}}`")
    if last == "contrastive":
        weight = written if isinstance(value, int | float) and not isinstance(value, bool) else "0.1"
        return Hint(f"write `{{weight: {weight}}}`")
    if last == "whisper":
        return Hint(f"write `{{encoder: {written if isinstance(value, str) and '/' in value else EXAMPLE}}}`")
    if last == "curriculum":
        return Hint("write `{start_seconds: 5, steps: 1000}`")
    if path[:2] == ("loss", "schedule") and len(path) == 4:
        step, *rest = [entry.span.text for entry in value] if isinstance(value, tuple) and value else ["0"]
        factors = f"factors: [{', '.join(rest)}]" if path[2] == "codebooks" else f"factor: {(*rest, '1')[0]}"
        return Hint(f"write `{{step: {step}, {factors}}}`")
    if last == "parallelism" and isinstance(value, str | int):
        return Hint("`{shard: 8}` divides the weights between eight GPUs (FSDP); without it each holds all of them")
    return Hint(f"write `{last}: {{key: value}}`, or its keys below it, indented" if isinstance(last, str) else None)


def _as_list(node: Node, path: NodePath, words: list[str]) -> Hint:
    value, written, last = node.value, node.span.text, path[-1] if path else ""
    if isinstance(value, Mapping) and path == ("lora", "targets") and value:
        return Hint(f"write `[{', '.join(key for key, on in value.items() if on.value is not False)}]`")
    if isinstance(value, Mapping):
        braces = written.startswith("{") and "\n" not in written
        return Hint(f"put it into a list: `[{written}]`" if braces else "put `- ` before its first key")
    if not isinstance(value, str):
        return Hint(f"write a list such as `{_LISTS[last]}`" if last in _LISTS else None)
    if path == ("data", "train"):
        return Hint(f"write `[{{path: {written}}}]`", f"[{{path: {written}}}]")
    if path == ("lora", "targets"):
        if value.replace("_", "-") in ("all", "all-linear", "all-linear-layers"):
            return Hint("write `comprehensive`: attention and both FFN paths", "comprehensive")
        if match := typo_of(value, words):
            return Hint(f"did you mean `{match}`?", match)
    entries = [entry for entry in re.split(r"[,;|\s]+", value) if entry]
    listed = f"[{', '.join(entries)}]"
    safe = bool(entries) and all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", entry) for entry in entries)
    return Hint(f"put it into a list: `{listed}`", listed if safe and last != "train" else None)


_LISTS: dict[str | int, str] = {
    "train": "[{path: data/train_chatml.json}]",
    "targets": "[self_attn.q_proj, self_attn.v_proj]",
    "heads": "[audio]",
    "secrets": "[HF_TOKEN]",
    "to": "[tensorboard, wandb]",
    "codebooks": "[2, 1, 1, 1, 1, 1, 1, 1]",
}
"""What to write for a list."""


def for_bound(node: Node, path: NodePath, low: float | None, high: float | None) -> Hint:
    """For a number that is too small (`low` is the bound) or too large (`high` is)."""
    value, written = node.value, node.span.text
    last = path[-1] if path else ""
    if isinstance(value, float) and not math.isfinite(value):
        return Hint("write `1e9`, which no gradient reaches" if last == "max_grad_norm" else "write a number")
    if isinstance(value, int | float) and value < 0 and re.fullmatch(r"-[0-9.eE+-]+", written):
        return Hint(f"write it without the minus: `{written[1:]}`")
    if not isinstance(value, int | float) or high is None:
        return Hint()
    if last == "learning_rate":
        forgot = re.fullmatch(r"([0-9.]+)e\+?([0-9]+)", written.lower())
        return Hint(f"did you mean `{forgot[1]}e-{forgot[2]}`?" if forgot else "LoRA takes rates of about `1e-4`")
    if str(last).endswith("seconds") and value / 1000 <= high:
        return Hint(f"it is given in seconds: `{value / 1000:g}`")
    if high <= 1 and value >= 2 and value / 100 <= high:
        return Hint(f"it is a share, not per cent: `{as_share(value)}`")
    return Hint()


_FILLED: dict[str | int, str] = {
    "name": "arabic",
    "path": "data/train_chatml.json",
    "output": "runs/arabic",
    "partition": "gpu",
}
"""What a string that is empty could be."""


def for_pattern(node: Node, path: NodePath) -> Hint:
    """For a string that does not have the form of its key."""
    value = node.value
    if not isinstance(value, str):
        return Hint()
    last = path[-1] if path else ""
    if not value.strip():
        return Hint(f"it is empty: write `{last}: {_FILLED[last]}`" if last in _FILLED else "it is empty: take it out")
    if value and (value[0] in _QUOTES or value[-1] in _QUOTES):
        return Hint(f"quotes of this kind are part of the value; write `{value.strip(_QUOTES)}`")
    if last == "time_limit":
        if value.lower() in ("unlimited", "infinite", "none"):
            return Hint(f"a job needs a limit; {_DURATION}")
        if re.fullmatch(r"([0-9]+-)?[0-9]+:([6-9][0-9]|[0-9]+:[6-9][0-9]|[6-9][0-9]:[0-9]+)", value):
            return Hint('minutes and seconds go to 59; write `"2:30:00"` for two and a half hours')
        return Hint(f'write `"{found}"`' if (found := _duration(value)) else _DURATION)
    if path[:1] == ("secrets",):
        plain = re.sub(r"[^A-Za-z0-9_]+", "_", value).strip("_").upper()
        return Hint(f"write `{plain}`, the name alone" if plain else "write `HF_TOKEN`")
    if last in ("name", "profile", "partition", "account", "qos", "reservation", "gpu_type"):
        plain = re.sub(r"[^A-Za-z0-9._]+", "-", value).strip("-._")[:64]
        return Hint(f"`{plain}` would do" if plain else "write it in Latin letters, `arabic-1`")
    if path[:2] == ("site", "kubernetes"):
        return Hint(_kubernetes(str(path[2]), value))
    if path[:1] == ("site",):
        return Hint()  # the message says which form it has
    if last == "language":
        return Hint("write `ar` for Arabic, `en` for English")
    if "\t" in value:
        return Hint("in double quotes `\\t` is a tab: write the path with `/`")
    return Hint("write a path on one line")


def _kubernetes(key: str, value: str) -> str:
    """The right form of a value of `site.kubernetes`, made of the wrong one where that can be done."""
    tagged = ":".join(value.split())
    examples = {
        "image": f"a tag follows a colon: write `{tagged}`"
        if re.fullmatch(r"[a-z0-9][A-Za-z0-9._/-]*:[A-Za-z0-9._-]+", tagged)
        else "write `registry.example.org/higgsc:0.1.0`",
        "mount": f"write `/{value.strip('/')}`",
        "sub_path": f"write `{value.strip('./')}`",
        "node_selector": "write `{nvidia.com/gpu.product: NVIDIA-H200}`",
    }
    plain = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:63]
    return examples.get(key, f"`{plain}` would do; it has to be the name of the object in the cluster")


def _duration(text: str) -> str | None:
    """`[days-]hours:minutes:seconds` for `90m`, `1d 12h`, `24 hours`."""
    parts = re.findall(r"([0-9]+)\s*([a-z]+)", text.lower())
    if not parts or re.sub(r"([0-9]+)\s*([a-z]+)|[\s,]|and", "", text.lower()):
        return None
    units = [_UNITS.get(unit) or _UNITS.get(unit.rstrip("s")) for _, unit in parts]
    if not all(units) or any(len(count) > 6 for count, _ in parts):
        return None
    seconds = sum(int(count) * (unit or 0) for (count, _), unit in zip(parts, units, strict=True))
    days, rest = divmod(seconds, 86400)
    hours = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    if seconds % 86400 == 0 and days == 1:
        return "24:00:00"
    if days > 999:
        return None  # Slurm's notation ends there
    return f"{days}-{hours}" if days else hours

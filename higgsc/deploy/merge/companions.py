"""What lies beside the weights of a merged model: what it needs to be loaded, and what people need to know of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from higgsc.deploy.merge.names import Layout
from higgsc.deploy.merge.original_config import original_config
from higgsc.deploy.weights import INDEX_FILE

_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
"""Configuration, generation configuration, tokenizer, chat template and processor; also the licence."""


def copy_companions(base: Path, folder: Path, config: Mapping[str, Any], dtype: torch.dtype, layout: Layout) -> None:
    """Copy everything beside the weights; the configuration says in which dtype they are.

    Args:
        base: Folder of the base.
        folder: Of the merged model.
        config: Content of the base's `config.json`.
        dtype: Of the floating-point tensors.
        layout: Whose configuration is written.

    Raises:
        StepError: The tokenizer does not have the tokens that the layout's configuration names (65).
    """
    for pattern in _COPIED:
        for path in sorted(base.glob(pattern)):
            # `merge.json` of a base that was merged itself is that merge's.
            if path.is_file() and path.name not in (INDEX_FILE, "merge.json"):
                shutil.copyfile(path, folder / path.name)
    config = dict(config)
    config.pop("torch_dtype", None)  # the name of `dtype` before transformers 4.56
    config["dtype"] = str(dtype).removeprefix("torch.")
    if layout == "original":
        config = original_config(config, folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_card(folder: Path, facts: Mapping[str, str], *, base: str | None, layout: Layout) -> None:
    """Write the model card, `README.md`: what this is, where it comes from, and what the licence asks for.

    Args:
        folder: Of the merged model.
        facts: Where it comes from, a line each.
        base: What the adapter was trained on, if it says; the hub links the two.
        layout: Whose names the tensors have, which decides what can load it.
    """
    listed = base is not None and "/" in base and not Path(base).exists()
    header = ["---", *([f"base_model: {base}"] if listed else []), "base_model_relation: finetune"]
    header += [*(["library_name: transformers"] if layout == "transformers" else []), "pipeline_tag: text-to-speech"]
    header += ["license: other", "---"]
    loads = (
        "Loads with transformers' `HiggsAudioV2ForConditionalGeneration`; its text head with `use_text_head=True`."
        if layout == "transformers"
        else "Has the names of the first release's code (boson-ai/higgs-audio); transformers cannot load it."
    )
    body = f"""# {folder.name.removeprefix(".").removesuffix(".partial")}

A LoRA adapter folded into Higgs Audio v2. {loads}

| | |
|---|---|
{chr(10).join(f"| {_cell(what)} | {_cell(fact)} |" for what, fact in facts.items())}

`merge.json` has the norm of what changed in each tensor, and how much of it storing has rounded away.

## Licence and consent

The base's licence holds for this model too, with its conditions on use, on naming and on redistribution: read it before
you pass the model on. The model speaks in voices: let it speak only in those whose owners have agreed, and say of
what it has said that it is synthetic.
"""
    (folder / "README.md").write_text("\n".join(header) + "\n" + body, encoding="utf-8")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

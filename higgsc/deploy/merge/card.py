"""The card of a merged model, for people: what it is, where it comes from, what the licence asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from higgsc.deploy.merge.names import Layout


def write_card(folder: Path, facts: Mapping[str, str], *, base: str | None, layout: Layout, quantized: bool) -> None:
    """Write the model card, `README.md`: what this is, where it comes from, and what the licence asks for.

    Args:
        folder: Of the merged model.
        facts: Where it comes from, a line each.
        base: What the adapter was trained on, if it says; the hub links the two.
        layout: Whose names the tensors have, which decides what can load it.
        quantized: Whether loading it takes torchao.
    """
    listed = base is not None and "/" in base and not Path(base).exists()
    header = ["---", *([f"base_model: {base}"] if listed else []), "base_model_relation: finetune"]
    header += [*(["library_name: transformers"] if layout == "transformers" else []), "pipeline_tag: text-to-speech"]
    header += ["license: other", "---"]
    loads = (
        "Loads with transformers' `HiggsAudioV2ForConditionalGeneration`; its text head with `use_text_head=True`."
        + (" Its linear weights are quantised: `pip install torchao`." if quantized else "")
        if layout == "transformers"
        else "Has the names of the original release's code (boson-ai/higgs-audio); transformers cannot load it."
    )
    body = f"""# {folder.name.removeprefix(".").removesuffix(".partial")}

A LoRA adapter folded into Higgs Audio v2. {loads}

| | |
|---|---|
{chr(10).join(f"| {_cell(what)} | {_cell(fact)} |" for what, fact in facts.items())}

`merge.json` has the norm of what changed in each tensor, and how much of it storing has rounded away; of a tensor with
a LoRA, judged by one row in eight.

## Licence and consent

The base's licence holds for this model too, with its conditions on use, on naming and on redistribution: read it before
you pass the model on. The model speaks in voices: let it speak only in those whose owners have agreed, and say of
what it has said that it is synthetic.
"""
    (folder / "README.md").write_text("\n".join(header) + "\n" + body, encoding="utf-8")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

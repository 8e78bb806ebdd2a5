"""The text side of the tiny checkpoint: a byte tokenizer with the released special tokens, and the layout."""

from __future__ import annotations

from importlib.resources import files

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from higgsc.catalog.codec import BEGIN_OF_TEXT, END_OF_TEXT, SPECIAL_TOKENS


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer: ids 0 to 255 are bytes, the special tokens follow in catalog order.

    A BPE without merges, so every text encodes to its UTF-8 bytes and decodes back. As with the released
    tokenizer, padding is `<|end_of_text|>`. Unlike it, `add_special_tokens` adds nothing: the chat template
    writes `<|begin_of_text|>` itself.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=131_072,
    )


def chat_template() -> str:
    """Jinja source of the chat layout, which renders what the released template renders."""
    return files(__package__).joinpath("chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")

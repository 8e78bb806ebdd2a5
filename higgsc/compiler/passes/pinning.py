"""Pinned weights: a hub model without a commit can change under a running experiment."""

from __future__ import annotations

import re

from higgsc.catalog.higgs_audio_v2 import BASES, BUILTIN_TINY
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir
from higgsc.compiler.reading.position import COMMAND_LINE
from higgsc.spec.experiment import Model

RELEASED_BASE: str = Model.model_fields["base"].default
RELEASED_TOKENIZER: str = Model.model_fields["audio_tokenizer"].default
KNOWN_COMMITS = {RELEASED_BASE: "0ff4877"}
"""Commits of the released repositories in the layout that the trainer reads."""


def pinning(ir: Ir, sink: Sink) -> Ir:
    """Refuse bases that are none; warn about a hub base without a commit, and a commit that nothing is pinned by. Of a
    Whisper likewise."""
    model = ir.spec.model
    _whisper(ir, sink)
    before = sink.error_count
    for at, name, real in (
        ("model.base", model.base, RELEASED_BASE),
        ("model.audio_tokenizer", model.audio_tokenizer, RELEASED_TOKENIZER),
    ):
        if name.startswith("builtin:") and name not in BASES:
            message = f"`{at}` cannot be `{name}`; of what is built in there is `{BUILTIN_TINY}` only"
            sink.add(Diagnostic("HC106", message, ir.label(at), help=f"write `{BUILTIN_TINY}` or `{real}`"))
    if model.base == RELEASED_TOKENIZER or model.audio_tokenizer == RELEASED_BASE:
        at = "model.base" if model.base == RELEASED_TOKENIZER else "model.audio_tokenizer"
        kind, right = ("audio tokenizer", RELEASED_BASE) if at == "model.base" else ("base model", RELEASED_TOKENIZER)
        sink.add(
            Diagnostic(
                "HC106", f"`{at}` names the released {kind}", ir.label(at), help=f"write `{right}`, or leave it out"
            )
        )
    if sink.error_count > before or "://" in model.base:
        return ir  # whose repository it is, is not known; `paths` reports URLs
    revision = model.revision
    if not _is_hub_id(model.base):
        if revision is not None:
            sink.add(_pins_nothing(ir))
        return ir
    commit = KNOWN_COMMITS.get(model.base)
    help_ = f"write `revision: {commit}`" if commit else "write `revision:` with a commit of the repository's history"
    if revision is None:
        message = f"`model.revision` is not pinned, so `{model.base}` may change between two runs"
        sink.add(Diagnostic("HC412", message, ir.label("model.base"), help=help_))
    elif not _is_commit(revision):
        message = f"`model.revision: {revision}` is a branch or a tag, which may move between two runs"
        sink.add(Diagnostic("HC412", message, ir.label("model.revision"), help=help_))
    return ir


def _whisper(ir: Ir, sink: Sink) -> None:
    asked, at = ir.spec.model.whisper, "model.whisper.revision"
    if asked is None or "://" in asked.encoder:
        return
    if not _is_hub_id(asked.encoder):
        if asked.revision is not None and asked.encoder.startswith((".", "/")):
            message = f"`{at}` has no effect: `{asked.encoder}` is no repository of the hub"
            sink.add(Diagnostic("HC413", message, ir.label(at), help="write `revision: null`"))
        return
    help_ = "write `revision:` with a commit of the repository's history"
    if asked.revision is None:
        message = f"`{at}` is not pinned, so `{asked.encoder}` may change between two runs"
        sink.add(Diagnostic("HC412", message, ir.label("model.whisper.encoder"), help=help_))
    elif not _is_commit(asked.revision):
        message = f"`{at}: {asked.revision}` is a branch or a tag, which may move between two runs"
        sink.add(Diagnostic("HC412", message, ir.label(at), help=help_))


def _is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{1,40}", revision) is not None


def _pins_nothing(ir: Ir) -> Diagnostic:
    """For a revision of a base that has none; where it was inherited, the base is what its writer sees."""
    base, revision = ir.label("model.base"), ir.label("model.revision")
    message = f"`model.revision` has no effect: `{ir.spec.model.base}` is no repository of the hub"
    if revision.span.source is base.span.source or revision.span.source.name == COMMAND_LINE:
        return Diagnostic("HC413", message, revision, help="write `revision: null`")
    by_option = base.span.source.name == COMMAND_LINE
    help_ = "add `--set model.revision=null`" if by_option else "add `revision: null` to `model`"
    return Diagnostic("HC413", message, base, (Label(revision.span, "given here"),), help=help_)


def _is_hub_id(base: str) -> bool:
    """`owner/name`; a local folder is written with a leading `.` or `/`."""
    return not base.startswith((".", "/", "~", "builtin:")) and base.count("/") == 1

"""Where the figures are shown: what W&B needs, and what only W&B takes."""

from __future__ import annotations

from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.ir import Ir

KEY = "WANDB_API_KEY"


def tracking(ir: Ir, sink: Sink) -> Ir:
    """Warn about W&B without a key, and about options that no tool of the spec takes."""
    tools, offline = ir.spec.tracking.to, ir.spec.tracking.offline
    if "wandb" in tools and not offline and KEY not in ir.spec.secrets:
        message = f"no key for W&B where the training runs: `secrets` does not name {KEY}"
        help_ = f"add `secrets: [{KEY}]`, or `tracking.offline: true`; where `wandb login` was done, all is well"
        sink.add(Diagnostic("HC422", message, ir.label(f"tracking.to.{tools.index('wandb')}"), help=help_))
    takers = {"project": ("wandb", "trackio"), "entity": ("wandb",), "offline": ("wandb",)}
    for option, names in takers.items():
        path = f"tracking.{option}"
        if ir.given(path) and not set(names) & set(tools):
            message = f"`{path}` is for {' and '.join(names)}, and `tracking.to` names neither"
            message = message if len(names) > 1 else f"`{path}` is for {names[0]}, which `tracking.to` does not name"
            shown = ", ".join((*tools, names[0]))
            sink.add(Diagnostic("HC423", message, ir.label(path), help=f"write `to: [{shown}]`, or leave it out"))
    return ir

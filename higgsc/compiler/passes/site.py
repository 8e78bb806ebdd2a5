"""The cluster's words among themselves: one environment for the steps, time to save, paths that are taken literally."""

from __future__ import annotations

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir
from higgsc.spec.base import seconds_of

SHORTEST_WORK = 120
"""Seconds of work below which a job is nothing but a start and a stop; Slurm's warning may come 60 s early."""

SHORTEST_LEAD = 60
"""The least that `site.signal_lead` takes."""

_PATHS = ("venv", "conda", "hf_home", "node_cache")


def site(ir: Ir, sink: Sink) -> Ir:
    """Check what no single value of the site can be blamed for."""
    words = ir.spec.site
    environments = [name for name in ("venv", "conda", "container") if getattr(words, name) is not None]
    if len(environments) > 1:
        first, second = environments[:2]
        sink.add(
            Diagnostic(
                "HC340",
                f"the steps run in `{first}` or in `{second}`, not in both",
                ir.label(f"site.{second}"),
                secondary=(Label(ir.label(f"site.{first}").span, "the other one"),),
                help=f"keep one; `{first}: null` takes an inherited value back",
            )
        )
    if (limit := seconds_of(words.time_limit)) < words.signal_lead + SHORTEST_WORK:
        at = "signal_lead" if ir.given("site.signal_lead") else "time_limit"
        enough, lead = words.signal_lead + SHORTEST_WORK, limit - SHORTEST_WORK
        longer = f'write `time_limit: "{enough // 3600:02}:{enough // 60 % 60:02}:{enough % 60:02}"`'
        sink.add(
            Diagnostic(
                "HC341",
                f"a time limit of {limit} s with a warning {words.signal_lead} s before it leaves no time to train",
                ir.label(f"site.{at}"),
                help=f"{longer}, or `signal_lead: {lead}`" if lead >= SHORTEST_LEAD else longer,
            )
        )
    for name in _PATHS:
        value = getattr(words, name)
        if value is not None and (value.startswith("~") or "$" in value):
            sink.add(
                Diagnostic(
                    "HC342",
                    f"`site.{name}` is taken literally: `~` and `$` mean nothing in it",
                    ir.label(f"site.{name}"),
                    help="write the whole path, or one that starts at the project root",
                )
            )
    return ir

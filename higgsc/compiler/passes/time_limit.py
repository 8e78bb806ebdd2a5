"""The time limit of a site: a training that is predicted to take longer needs several jobs."""

from __future__ import annotations

from math import ceil

from higgsc.catalog.estimate import duration
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes.memory import estimate_of
from higgsc.spec.base import seconds_of


def time_limit(ir: Ir, sink: Sink) -> Ir:
    """Warn of a training that, by a guess at its speed, does not end within one job.

    A training with its length in epochs has no prediction, for nobody has counted its samples yet.
    """
    if "training.accumulation" not in ir.derived or ir.spec.training.steps is None:
        return ir
    speed = estimate_of(ir).speed
    limit = seconds_of(ir.spec.site.time_limit)
    # To Slurm, a limit of zero is no limit.
    if not limit or speed is None or speed.total_hours is None or speed.total_hours * 3600 <= limit:
        return ir
    given = ir.given("site.time_limit")
    allowed = f"{ir.spec.site.time_limit}{'' if given else ' (the default)'}"
    jobs = ceil(speed.total_hours * 3600 / limit)
    sink.add(
        Diagnostic(
            "HC326",
            f"the training takes about {duration(speed.total_hours)}, by a guess, and one job may take {allowed}",
            ir.label("training.steps", f"about {speed.step_seconds:.2g} s each"),
            secondary=(Label(ir.label("site.time_limit").span, "of one job"),) if given else (),
            notes=(speed.assumption,),
            help=f"it would need about {jobs:,} jobs, one after the other; "
            "raise `site.time_limit` as far as the site allows, or take more GPUs",
        )
    )
    return ir

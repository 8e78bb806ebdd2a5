"""The passes, in the order in which they run. Each is one file with one function of its name.

A pass takes the state and a sink, reports what it finds, and returns the state with what it derived. All passes
run even after one of them reported an error; a pass whose ground another one found to be wrong derives nothing and
says nothing, so that no message is the consequence of another.
"""

from __future__ import annotations

from collections.abc import Callable

from higgsc.compiler.diagnostics import Sink
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes.batch import batch
from higgsc.compiler.passes.folders import folders
from higgsc.compiler.passes.judges import judges
from higgsc.compiler.passes.kubernetes import kubernetes
from higgsc.compiler.passes.lora_patterns import lora_patterns
from higgsc.compiler.passes.lora_targets import lora_targets
from higgsc.compiler.passes.memory import memory
from higgsc.compiler.passes.mesh import mesh
from higgsc.compiler.passes.objective import objective
from higgsc.compiler.passes.paths import paths
from higgsc.compiler.passes.pinning import pinning
from higgsc.compiler.passes.quantized_base import quantized_base
from higgsc.compiler.passes.schedule import schedule
from higgsc.compiler.passes.site import site
from higgsc.compiler.passes.steps import steps
from higgsc.compiler.passes.time_limit import time_limit
from higgsc.compiler.passes.topology import topology
from higgsc.compiler.passes.tracking import tracking
from higgsc.compiler.passes.unlikely import unlikely
from higgsc.compiler.passes.whisper import whisper
from higgsc.compiler.passes.whole_model import whole_model

Pass = Callable[[Ir, Sink], Ir]

PASSES: tuple[Pass, ...] = (
    paths,
    folders,
    kubernetes,  # needs the run's folder
    pinning,
    topology,
    mesh,  # needs the processes
    whole_model,
    quantized_base,
    lora_targets,
    lora_patterns,  # needs the adapter's modules
    whisper,  # adds to what is trained
    batch,  # needs the data-parallel ranks of `mesh`; its way out, the adapter's modules
    schedule,
    unlikely,
    objective,
    tracking,
    judges,
    memory,  # needs the mesh, the accumulation and the adapter's modules
    time_limit,  # the same
    site,
    steps,  # last: turns what the others derived into steps and job files
)

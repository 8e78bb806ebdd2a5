"""`torchx/`: every step as a TorchX component, and the script that runs them in order.

The components import torchx and nothing else, so that they can be read, run and changed by whoever has TorchX.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from dataclasses import replace

from higgsc.compiler.plan import Plan, Step
from higgsc.emit.build import Build
from higgsc.emit.environment import environment
from higgsc.emit.shell import comment, quote_argv, render
from higgsc.spec.kubernetes import Kubernetes
from higgsc.spec.site import Site

COMPONENTS = "torchx/components.py"


def torchx(build: Build) -> dict[str, str]:
    """Emit the components and the script."""
    plan = build.plan
    script = render(
        "torchx/run.sh.j2",
        plan=plan,
        root=build.root_from("torchx"),
        component=f"{plan.build}/{COMPONENTS}",
        slurm_arguments=",".join(f"{key}={value}" for key, value in slurm_options(plan.site).items()),
    )
    return {COMPONENTS: _components(plan), "torchx/run.sh": script}


def slurm_options(site: Site) -> dict[str, str]:
    """The site in the words of TorchX's Slurm scheduler; what they do not cover, `submit` refuses."""
    found = {
        "partition": site.partition,
        "time": site.time_limit,
        "constraint": site.constraint,
        "mail-user": site.mail,
    }
    return {key: value for key, value in found.items() if value is not None}


def _components(plan: Plan) -> str:
    lines = [
        f'"""{_literal(plan.name)[1:-1]}: the steps as TorchX components, each run alone.',
        "",
        f"Written by higgsc {plan.compiler} from {_literal(plan.spec)[1:-1]}; change the spec and build again.",
        '"""',
        "",
        "from torchx import specs",
    ]
    for step in plan.steps:
        lines += ["", "", *_component(plan, step)]
    return "\n".join(lines) + "\n"


def _component(plan: Plan, step: Step) -> list[str]:
    cluster = plan.site.kubernetes
    entrypoint, arguments = _command(step if cluster is None else _in_container(step, cluster))
    image = cluster.image if cluster is not None else ""
    mount = f"specs.VolumeMount(src={_literal(cluster.claim)}, dst_path={_literal(cluster.mount)})" if cluster else ""
    variables = environment(step, plan.site)
    gpus, cores = step.resources.gpus_per_node, _cores(plan, step)
    return [
        f"def {step.name}() -> specs.AppDef:",
        f'    """{_literal(step.title[:1].upper() + step.title[1:])[1:-1]}."""',
        "    return specs.AppDef(",
        f"        name={_literal(f'{plan.name}-{step.name}')},",
        "        roles=[",
        "            specs.Role(",
        f"                name={_literal(step.name)},",
        f"                image={_literal(image)},",
        f"                entrypoint={_literal(entrypoint)},",
        "                args=[",
        *(f"                    {line}" for argument in arguments for line in _argument(argument)),
        "                ],",
        "                env={",
        *(f"                    {_literal(name)}: {_literal(_plain(value))}," for name, value in variables.items()),
        "                },",
        f"                num_replicas={step.resources.nodes},",
        f"                resource=specs.Resource(cpu={cores}, gpu={gpus}, memMB=-1),  # -1: as the cluster has it",
        *([f"                mounts=[{mount}],"] if mount else []),
        "            ),",
        "        ],",
        "    )",
    ]


def _in_container(step: Step, cluster: Kubernetes) -> Step:
    """The step with its job file where the claim is mounted: TorchX sets no working directory in a container."""
    *head, job = step.argv
    return replace(step, argv=(*head, posixpath.join(cluster.mount, cluster.sub_path or "", job)))


def _command(step: Step) -> tuple[str, Sequence[tuple[str, ...]]]:
    """Entry point and arguments of one replica, that is, of one node; an argument may come in several pieces."""
    resources = step.resources
    python, *rest = step.argv
    if resources.world_size == 1:
        return python, [(_plain(argument),) for argument in rest]
    launcher = ["-m", "torch.distributed.run"]
    if resources.nodes == 1:
        own = ["--standalone", f"--nproc-per-node={resources.processes_per_node}"]
        return python, [(_plain(argument),) for argument in (*launcher, *own, *rest)]
    # The first replica's host is in a variable whose name only the scheduler knows. The port is the job's own, so that
    # two jobs on one node do not meet. `$1` is the job.
    nodes = [f"--nnodes={resources.nodes}", f"--nproc-per-node={resources.processes_per_node}"]
    script = (
        _plain('port=$((20000 + $(printf %s "$1" | cksum | cut -d" " -f1) % 20000)) && '),
        _plain(f"exec {quote_argv([python, *launcher, *nodes])} "),
        _plain('--rdzv-backend=c10d --rdzv-id="$1" --rdzv-endpoint="'),
        "$${${rank0_env}:?TorchX does not name the first host}" + _plain(':$port" '),
        _plain(quote_argv(rest)),
    )
    return "bash", [("-c",), script, (step.name,), ("${app_id}",)]


def _cores(plan: Plan, step: Step) -> int:
    """The share of a node's cores that the step's GPUs stand for; -1 if the site does not say how many there are."""
    if plan.site.cpus_per_node is None:
        return -1
    most = max(other.resources.processes_per_node for other in plan.steps)
    return max(1, plan.site.cpus_per_node * step.resources.processes_per_node // most)


def _plain(text: str) -> str:
    """Text in which TorchX finds no macro."""
    return text.replace("$", "$$")


def _argument(pieces: tuple[str, ...]) -> list[str]:
    """An argument as lines of Python: its pieces are joined by the parser."""
    if len(pieces) == 1:
        return [f"{_literal(pieces[0])},"]
    return ["(", *(f"    {_literal(piece)}" for piece in pieces), "),"]


def _literal(text: str) -> str:
    """A string of Python, in the quotes that need the fewest backslashes."""
    shown = str(comment(text))
    if '"' in shown and "'" not in shown and "\\" not in shown:
        return f"'{shown}'"
    return json.dumps(shown, ensure_ascii=False)

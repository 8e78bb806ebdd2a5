"""`slurm/`: one job script a step, and `submit.sh` that chains them."""

from __future__ import annotations

from higgsc.compiler.plan import Plan, Step
from higgsc.emit.build import Build
from higgsc.emit.environment import environment
from higgsc.emit.shell import Shell, quote, quote_argv, render
from higgsc.spec.site import Container

PASSED_ON = "PATH,LD_LIBRARY_PATH,PYTHONPATH,LANG"
"""Variables that a job takes over from where it was submitted. Slurm writes them to its disk, so there are few."""


def slurm(build: Build) -> dict[str, str]:
    """Emit the job scripts and the script that submits them."""
    plan = build.plan
    scripts = {step.name: f"slurm/{step.name}.sbatch" for step in plan.steps}
    files = {scripts[step.name]: _script(build, step, f"{plan.build}/{scripts[step.name]}") for step in plan.steps}
    files["slurm/submit.sh"] = render(
        "slurm/submit.sh.j2",
        plan=plan,
        name=plan.name,
        root=build.root_from("slurm"),
        logs=f"{plan.run}/logs",
        runs=[plan.run],
        jobs=jobs_of(plan, "afterok"),
        scripts={name: f"{plan.build}/{path}" for name, path in scripts.items()},
        arrays={
            step.name: Shell(quote_argv(array_options(step.name, step.tasks, plan.run, plan.site.array_limit)))
            for step in plan.steps
        },
    )
    return files


def _script(build: Build, step: Step, path: str) -> str:
    plan = build.plan
    variables = environment(step, plan.site)
    return render(
        "slurm/step.sbatch.j2",
        plan=plan,
        step=step,
        site=plan.site,
        path=path,
        directives=directives(plan, step, plan.name, f"{plan.run}/logs/{step.name}-%j.log"),
        variables=variables,
        command=_command(plan, step, [*variables, *plan.secrets]),
        requeues=plan.site.max_requeues if plan.site.chain == 1 else 0,
        in_arrays=build.of_sweep or step.tasks > 1,
        job=Shell('"$job"' if build.of_sweep or step.tasks > 1 else '"$SLURM_JOB_ID"'),
    )


def jobs_of(plan: Plan, success: str) -> list[tuple[str, Step, tuple[str, ...], str]]:
    """What `submit.sh` submits: a shell variable for the job, its step, the variables of jobs it waits for, and how.

    A chain is the same script several times, each waiting for the end of the one before, whatever it was.

    Args:
        plan: The plan.
        success: Slurm's word for a dependency on the success of another step.
    """
    jobs = []
    last: dict[str, str] = {}
    for step in plan.steps:
        needs, how = tuple(last[need] for need in step.needs), success
        for link in range(plan.site.chain if step.interruptible else 1):
            variable = step.name if link == 0 else f"{step.name}_{link + 1}"
            jobs.append((variable, step, needs, how))
            needs, how = (variable,), "afterany"
            last[step.name] = variable
    return jobs


def directives(plan: Plan, step: Step, name: str, log: str) -> list[tuple[str, str | None]]:
    """`#SBATCH` options: one homogeneous allocation, one task a node or, if srun is the launcher, one a process.

    Args:
        plan: The plan.
        step: The step.
        name: First part of the job's name.
        log: Where its output goes; the last part may hold Slurm's patterns.
    """
    site, resources = plan.site, step.resources
    tasks = resources.processes_per_node if site.launcher == "srun" else 1
    options: list[tuple[str, str | None]] = [
        ("job-name", f"{name}-{step.name}"),
        ("nodes", str(resources.nodes)),
        ("ntasks-per-node", str(tasks)),
    ]
    if resources.gpus_per_node:
        kind = f"{site.gpu_type}:" if site.gpu_type is not None else ""
        style = "gres" if site.gpu_request == "gres" else "gpus-per-node"
        options.append((style, f"{'gpu:' if style == 'gres' else ''}{kind}{resources.gpus_per_node}"))
    if site.cpus_per_node is not None:
        options.append(("cpus-per-task", str(max(1, _share(plan, step, site.cpus_per_node) // tasks))))
    if site.exclusive and resources.world_size > 1:
        options += [("exclusive", None), ("mem", "0")]
    elif site.memory_per_node is not None:
        options.append(("mem", f"{_share(plan, step, site.memory_per_node)}G"))
    options.append(("time", _slurm_time(site.time_limit)))
    for name in ("partition", "account", "qos", "reservation", "constraint", "exclude"):
        if (value := getattr(site, name)) is not None:
            options.append((name, value))
    if site.mail is not None:
        last = step is plan.steps[-1]
        options += [("mail-user", site.mail), ("mail-type", "END,FAIL,REQUEUE" if last else "FAIL,REQUEUE")]
    if step.interruptible:
        options.append(("signal", f"B:USR1@{site.signal_lead}"))
    folder, _, file = log.rpartition("/")
    log = f"{folder.replace('%', '%%')}/{file}"  # Slurm has patterns of its own in file names
    return [*options, ("requeue", None), ("output", log), ("open-mode", "append"), ("export", PASSED_ON)]


def array_options(step: str, tasks: int, run: str, limit: int | None) -> tuple[str, ...]:
    """What `sbatch` is told, besides the script, of a step that is divided into tasks; nothing for any other.

    It is no part of the script, which is also run as a task of a sweep's array and then does all of the work. The
    script's argument says which it is.
    """
    if tasks == 1:
        return ()
    folder = f"{run}/logs".replace("%", "%%")
    at_once = f"%{limit}" if limit is not None else ""
    return f"--array=0-{tasks - 1}{at_once}", f"--output={folder}/{step}-%A_%a.log"


SHARDS = "shards"
"""Argument of the script of a step that is divided into tasks, when it runs as one of them."""


def _slurm_time(limit: str) -> str:
    """Hours and minutes alone would be minutes and seconds to Slurm."""
    return f"{limit}:00" if limit.count(":") == 1 and "-" not in limit else limit


def _share(plan: Plan, step: Step, of_a_node: int) -> int:
    """A step on some of a node's GPUs gets their share of it."""
    most = max(other.resources.processes_per_node for other in plan.steps)
    return max(1, of_a_node * step.resources.processes_per_node // most)


def _command(plan: Plan, step: Step, variables: list[str]) -> Shell:
    """The step's command, one part a line: srun, what shields it from signals, the container, the launcher, itself."""
    site, resources = plan.site, step.resources
    python, *arguments = step.argv
    parts = [Shell("srun --kill-on-bad-exit=1" + (" --label" if resources.nodes > 1 else ""))]
    if site.container is not None and site.container.runtime == "pyxis":
        parts.append(_pyxis(site.container))
    many = resources.world_size > 1
    if step.interruptible:
        parts.append(Shell('"${shielded[@]}"'))
    if many and site.launcher == "srun":
        parts.append(Shell('"${ranked[@]}"'))
        variables = [*variables, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    if site.container is not None and site.container.runtime != "pyxis":
        parts.append(_wrapper(site.container, variables, gpus=bool(resources.gpus_per_node)))
    if many and site.launcher == "torchrun":
        parts += _torchrun(python, step)
        parts.append(quote_argv(arguments))
    elif step.tasks > 1:
        parts.append(Shell(f'{quote_argv(step.argv)} "${{shard[@]}}"'))
    else:
        parts.append(quote_argv(step.argv))
    return Shell(" \\\n  ".join(parts))


def _torchrun(python: str, step: Step) -> list[Shell]:
    resources = step.resources
    start = f"{quote(python)} -m torch.distributed.run"
    processes = f"--nproc-per-node={resources.processes_per_node}"
    if resources.nodes == 1:
        return [Shell(f"{start} --standalone {processes}")]
    return [
        Shell(f"{start} --nnodes={resources.nodes} {processes}"),
        Shell('--rdzv-backend=c10d --rdzv-endpoint="$head_node:$port" --rdzv-id="$SLURM_JOB_ID-$restarts"'),
    ]


def _pyxis(container: Container) -> Shell:
    mounts = ",".join(_both_sides(mount) for mount in container.mounts)
    here = Shell('--container-workdir="$PWD" --container-mounts="$PWD:$PWD"' + (f",{quote(mounts)}" if mounts else ""))
    return Shell(f"--container-image={quote(container.image)} --no-container-mount-home {here}")


def _wrapper(container: Container, variables: list[str], *, gpus: bool) -> Shell:
    """Apptainer or Enroot as a command before the command."""
    mounts = [_both_sides(mount) for mount in container.mounts]
    if container.runtime == "apptainer":
        words = ["apptainer exec", *(["--nv"] if gpus else []), '--pwd "$PWD" --bind "$PWD"']
        words += [f"--bind {quote(mount)}" for mount in mounts]
        return Shell(" ".join([*words, quote(container.image)]))
    # Enroot passes no variables on but those it is told, and starts in the root folder.
    words = ['enroot start --mount "$PWD:$PWD"', *(f"--mount {quote(mount)}" for mount in mounts)]
    names = [*variables, *(["CUDA_VISIBLE_DEVICES"] if gpus else [])]
    words += [f"--env {quote(name)}" for name in dict.fromkeys(names)]
    return Shell(" ".join([*words, quote(container.image), 'env --chdir="$PWD"']))


def _both_sides(mount: str) -> str:
    """`/data` and `/data:ro` as `/data:/data` and `/data:/data:ro`."""
    source, *rest = mount.split(":")
    return ":".join([source, *rest] if rest and rest != ["ro"] else [source, source, *rest])

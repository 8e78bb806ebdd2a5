"""A step that honours the contract and does nothing else: counts, saves what it has counted, stops when asked to.

`behaviour.json` in the project root says how: `steps` to count, `seconds` for each, `save_every`, `exit` with a code,
`forgets` what it has counted when stopped, `timeout` for a real collective of all ranks in each step; by step, and for
one point of a sweep by the name of its run's folder and step. The first rank counts; the others wait for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from higgsc.contract.jobs import StepContext, load_job
from higgsc.contract.outcome import StepResult
from higgsc.contract.receipts import write_receipt
from higgsc.contract.state import read_state, write_state
from higgsc.contract.stop import asked_to_stop, listen

listen()
assert sys.argv[1] == "run-step"
job = load_job(Path(sys.argv[2]))
context = StepContext.of(Path(sys.argv[2]), job)
run = context.path(job.run)
behaviours = json.loads((context.root / "behaviour.json").read_text())
behaviour = {**behaviours.get(job.step, {}), **behaviours.get(run.name, {}).get(job.step, {})}
attempt = f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"
(run / "pids").mkdir(parents=True, exist_ok=True)
(run / "pids" / f"{job.step}-{context.rank}").write_text(f"{os.uname().nodename} {os.getpid()}")
(run / f"{job.step}-{context.rank}.env.json").write_text(json.dumps(dict(os.environ)))
over = run / f"over-{job.step}-{attempt}"
options = "".join(f" {argument}" for argument in sys.argv[3:])
print(f"{job.step} rank {context.rank} of {context.world_size}{options} on {os.uname().nodename}", flush=True)

if "exit" in behaviour:
    sys.exit(behaviour["exit"])
agree = None
if "timeout" in behaviour:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=behaviour["timeout"]))
    agree = lambda: dist.all_reduce(torch.zeros(1))  # noqa: E731

if context.rank > 0 and agree is None:
    while not over.exists():
        time.sleep(0.05)
    sys.exit(0)

total = behaviour.get("steps", 1)
state = read_state(run, job.step)
done = saved = state.done if state else 0
if context.is_first:
    write_state(run, job.step, "running", saved, total)
while done < total:
    if agree is not None:
        agree()
    time.sleep(behaviour.get("seconds", 0.0))
    done += 1
    if context.is_first:
        with (run / f"{job.step}.steps").open("a") as log:
            log.write(f"{done}\n")
        if done % behaviour.get("save_every", 1000) == 0:
            saved = done
            write_state(run, job.step, "running", saved, total)
    if asked_to_stop(run):
        break
if context.is_first:
    kept = saved if behaviour.get("forgets") else done
    write_state(run, job.step, "done" if done == total else "interrupted", kept, total)
    if done == total:
        receipt = StepResult(summary=f"counted to {total}", inputs=(), outputs=(run / f"{job.step}.steps",))
        write_receipt(run, job.step, receipt, job_path=Path(sys.argv[2]), root=context.root, seconds=1.0)
    over.touch()

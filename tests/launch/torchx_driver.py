"""Run by the Python of an environment that has TorchX: `torchx_driver.py WHAT SCHEDULER BUILD`, JSON lines out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from higgsc.contract.outcome import StepError
from higgsc.launch.built import open_build
from higgsc.launch.scheduler import Submission, scheduler_named


def main(what: str, scheduler: str, build: str) -> None:
    target = open_build(Path(build))
    submissions = [Submission(step=step, key=f"higgsc:{step.name}", after=step.needs) for step in target.plan.steps]
    try:
        torchx = scheduler_named(f"torchx:{scheduler}")
        if what == "dry-run":
            torchx.check(target, submissions)
            for submission in submissions:
                name = submission.step.name
                request = torchx._dry_run(target, name)  # type: ignore[attr-defined]
                print(json.dumps({"step": name, "request": str(request)}))
            return
        if what == "commands":
            for argv in torchx.commands(target, submissions, {}):
                print(json.dumps(argv))
            return
        jobs = {}
        for step, handle in torchx.submit(target, submissions, {}):
            jobs[step] = handle
            print(json.dumps({"step": step, "handle": handle, "phase": torchx.states(target, jobs)[step].phase}))
        print(json.dumps({step: status.phase for step, status in torchx.states(target, jobs).items()}))
        print(json.dumps(list(torchx.log(target, "train", jobs["train"], follow=False))))
    except StepError as error:
        print(json.dumps({"error": str(error), "code": int(error.code), "path": getattr(error, "spec_path", None)}))


main(*sys.argv[1:])

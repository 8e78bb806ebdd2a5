"""Kubernetes through `kubectl`: one JobSet a plan, applied on the server's word that it would take it.

What is applied is the emitted manifest without the steps that have finished already, and with the idempotency keys as
annotations; it is written to `<run>/kubernetes.yaml` first. A step's job id is the name of its Job.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import write_atomically
from higgsc.emit.objects import Manifest, manifests
from higgsc.launch.built import Target
from higgsc.launch.kubernetes_status import is_over, step_status
from higgsc.launch.scheduler import JobStatus, RefusedError, Submission, UnreachableError

KIND = "jobsets.jobset.x-k8s.io"
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
STEP_LABEL = "jobset.sigs.k8s.io/replicatedjob-name"
FIRST_POD = "batch.kubernetes.io/job-completion-index=0"
KEY = "higgsc/key-"
"""Annotation of a step's idempotency key, before the step's name."""

_UNREACHABLE = (
    "unable to connect",
    "connection refused",
    "was refused",
    "no such host",
    "i/o timeout",
    "tls handshake timeout",
    "context deadline exceeded",
    "client.timeout exceeded",
    "connection reset",
    "service unavailable",
    "too many requests",
    "etcdserver",
)
_REFUSALS = (
    ("no matches for kind", None, "the cluster has no JobSet; see https://jobset.sigs.k8s.io, 0.9 or newer"),
    ("the server doesn't have a resource type", None, "the cluster has no JobSet; see https://jobset.sigs.k8s.io"),
    ("namespaces", "site.kubernetes.namespace", "`kubectl get namespaces` lists them"),
    ("serviceaccount", "site.kubernetes.service_account", "`kubectl get serviceaccounts` lists them"),
    ("nodeselector", "site.kubernetes.node_selector", None),
    ("forbidden", None, "`kubectl auth can-i create jobsets.jobset.x-k8s.io` says whether you may"),
)
"""Words of a complaint, the value in the spec that it is about, the way out."""


def create(argument: str | None, **options: object) -> Kubernetes:
    """The scheduler `kubernetes`.

    Raises:
        StepError: With an argument (2): which cluster is asked is kubectl's own setting.
    """
    if argument is not None:
        raise StepError(
            f"`kubernetes:{argument}`: kubernetes takes no argument",
            code=ExitCode.USAGE,
            help="choose the cluster with `kubectl config use-context`",
        )
    return Kubernetes()


class Kubernetes:
    """The cluster of kubectl's current context."""

    name = "kubernetes"

    def commands(
        self, target: Target, submissions: Sequence[Submission], jobs: Mapping[str, str]
    ) -> list[tuple[str, ...]]:
        """As executed; the first one also runs before a real submission."""
        _emitted(target)
        return [_apply(target, dry_run=True), _apply(target)]

    def check(self, target: Target, submissions: Sequence[Submission]) -> None:
        """Ask the server whether it would take the JobSet."""
        document = _emitted(target)
        there = self._jobset(document)
        if there is not None and not is_over(there):
            self._refuse_other(document, there, submissions)
            return
        if there is not None:
            return  # it is deleted before the new one is applied; until then the server would compare the two
        self._write(target, document, submissions)
        self._take(_apply(target, dry_run=True), submissions)

    def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Steps of the live JobSet of this name that carry one of the keys and have not finished."""
        document = _emitted(target)
        there = self._jobset(document)
        if there is None or is_over(there):
            return {}
        found = {}
        for step, key in _keys(there).items():
            if key in keys and step_status(there, [], step).live:
                found[key] = _job_id(document, step)
        return found

    def submit(
        self, target: Target, submissions: Sequence[Submission], jobs: Mapping[str, str]
    ) -> Iterator[tuple[str, str]]:
        """Apply the JobSet; one that has ended makes way for it, one at work with the same keys is left alone."""
        if not submissions:
            return
        document = _emitted(target)
        there = self._jobset(document)
        if there is not None and is_over(there):
            self._take(_delete(document), submissions)
        elif there is not None:
            self._refuse_other(document, there, submissions)
        if there is None or is_over(there):
            self._write(target, document, submissions)
            self._take(_apply(target), submissions)
        for submission in submissions:
            yield submission.step.name, _job_id(document, submission.step.name)

    def states(self, target: Target, jobs: Mapping[str, str]) -> dict[str, JobStatus]:
        """From the JobSet, its Jobs and their pods."""
        document = _emitted(target)
        there = self._jobset(document)
        if there is None:
            return {step: JobStatus(phase="unknown", word="gone") for step in jobs}
        selector = f"{JOBSET_LABEL}={document['metadata']['name']}"
        children = _json(("kubectl", "get", "jobs,pods", *_in(document), f"--selector={selector}", "--output=json"))
        return {step: step_status(there, children["items"], step) for step in jobs}

    def cancel(self, target: Target, jobs: Mapping[str, str]) -> None:
        """Delete the JobSet, with all its steps; the pods get the warning and their time to save.

        It stays visible until they have ended.
        """
        if jobs:
            _run((*_delete(_emitted(target)), "--wait=false"))

    def log(self, target: Target, step: str, job: str, *, follow: bool) -> Iterator[str]:
        """Of the step's first pod, which has rank 0."""
        document = _emitted(target)
        selector = f"{JOBSET_LABEL}={document['metadata']['name']},{STEP_LABEL}={step},{FIRST_POD}"
        argv = ["kubectl", "logs", *_in(document)[:1], f"--selector={selector}", "--tail=-1"]
        if follow:
            argv.append("--follow")
        _installed()
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                for line in process.stdout:
                    yield line.rstrip("\n")
            finally:
                process.terminate()
            complaint = process.stderr.read()
        if process.returncode not in (0, -15):
            raise _error(complaint, argv)

    def _jobset(self, document: Manifest) -> Manifest | None:
        """The JobSet of this name, or None."""
        name = document["metadata"]["name"]
        argv = ("kubectl", "get", KIND, name, *_in(document), "--ignore-not-found", "--output=json")
        text = _run(argv)
        found: Manifest | None = json.loads(text) if text.strip() else None
        return found

    def _refuse_other(self, document: Manifest, there: Manifest, submissions: Sequence[Submission]) -> None:
        """Refuse to change a JobSet at work; applying the same one again changes nothing."""
        name = document["metadata"]["name"]
        ours = {submission.step.name: submission.key for submission in submissions}
        theirs = _keys(there)
        if any(theirs.get(step) != key for step, key in ours.items()):
            namespace = document["metadata"]["namespace"]
            raise RefusedError(
                f"the JobSet `{name}` is at work with another build",
                step=submissions[0].step.name,
                path="name",
                help=f"wait for it, or end it: kubectl delete {KIND} {name} --namespace={namespace}",
            )

    def _write(self, target: Target, document: Manifest, submissions: Sequence[Submission]) -> None:
        """`<run>/kubernetes.yaml`: the manifest as it is applied."""
        names = {submission.step.name for submission in submissions}
        keys = {f"{KEY}{submission.step.name}": submission.key for submission in submissions}
        kept = []
        for job in document["spec"]["replicatedJobs"]:
            if job["name"] in names:
                needed = [need for need in job.get("dependsOn", ()) if need["name"] in names]
                rest = {key: value for key, value in job.items() if key != "dependsOn"}
                kept.append({"name": job["name"], **({"dependsOn": needed} if needed else {}), **rest})
        metadata = document["metadata"]
        applied = {
            **document,
            "metadata": {**metadata, "annotations": {**metadata["annotations"], **keys}},
            "spec": {**document["spec"], "replicatedJobs": kept},
        }
        head = [
            "What `higgsc submit` applied: kubernetes/jobset.yaml without the steps that had finished, with its keys."
        ]
        write_atomically(_applied(target), manifests(head, [applied]))

    def _take(self, argv: tuple[str, ...], submissions: Sequence[Submission]) -> None:
        """Run a command that hands something over; the server's no is a refusal of the first step."""
        try:
            _run(argv)
        except UnreachableError:
            raise
        except StepError as error:
            if error.code != ExitCode.DIAGNOSTICS:
                raise
            words = error.message.lower()
            path, help_ = next(((p, h) for mark, p, h in _REFUSALS if mark in words), (None, None))
            raise RefusedError(error.message, step=submissions[0].step.name, path=path, help=help_) from error


def _emitted(target: Target) -> Manifest:
    path = target.folder / "kubernetes" / "jobset.yaml"
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise StepError(
            "this build has no manifests: the spec's site does not say which image and claim to use",
            code=ExitCode.USAGE,
            path=path,
            help="add `kubernetes:` to the site (specs/sites/kubernetes.yaml shows how) and build again",
        ) from error
    document: Manifest = yaml.safe_load(text)
    return document


def _applied(target: Target) -> Any:
    return target.run / "kubernetes.yaml"


def _apply(target: Target, *, dry_run: bool = False) -> tuple[str, ...]:
    return (
        "kubectl",
        "apply",
        "--server-side",
        "--field-manager=higgsc",
        *(("--dry-run=server",) if dry_run else ()),
        f"--filename={_applied(target)}",
    )


def _delete(document: Manifest) -> tuple[str, ...]:
    name = document["metadata"]["name"]
    return ("kubectl", "delete", KIND, name, _in(document)[0], "--ignore-not-found", "--cascade=foreground")


def _in(document: Manifest) -> tuple[str, str]:
    return f"--namespace={document['metadata']['namespace']}", "--request-timeout=30s"


def _job_id(document: Manifest, step: str) -> str:
    """The name that JobSet gives to the only Job of a step."""
    return f"{document['metadata']['name']}-{step}-0"


def _keys(jobset: Manifest) -> dict[str, str]:
    """Idempotency keys of a JobSet by step."""
    annotations = jobset["metadata"].get("annotations", {})
    return {name.removeprefix(KEY): key for name, key in annotations.items() if name.startswith(KEY)}


def _json(argv: tuple[str, ...]) -> Any:
    return json.loads(_run(argv))


def _installed() -> None:
    if shutil.which("kubectl") is None:
        raise StepError(
            "kubectl is not installed here",
            code=ExitCode.SCHEDULER_UNREACHABLE,
            help="install it (https://kubernetes.io/docs/tasks/tools), or apply kubernetes/jobset.yaml of the build "
            "from a machine that has it",
        )


def _run(argv: tuple[str, ...]) -> str:
    """What a kubectl command prints.

    Raises:
        UnreachableError: The cluster does not answer.
        StepError: kubectl is not installed (69), or the server says no (1).
    """
    _installed()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise _error(done.stderr, argv)
    return done.stdout


def _error(complaint: str, argv: Sequence[str]) -> StepError:
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    message = " ".join(lines) or f"`{' '.join(argv[:3])}` failed and did not say why"
    message = message[:1].lower() + message[1:].rstrip(".")
    if any(mark in message.lower() for mark in _UNREACHABLE):
        return UnreachableError(message, help="`kubectl cluster-info` says which cluster is asked")
    return StepError(message, code=ExitCode.DIAGNOSTICS)

"""`--scheduler kubernetes` against a `kubectl` that records what it is asked and answers from files.

No cluster is at hand in the tests. What a server would say of the manifests, tests/emit/test_kubernetes.py asks the
published models; here it is about which commands run, in which order, and what becomes of the answers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from higgsc.compiler.compile import compile_spec
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.write import write
from higgsc.launch.built import Target, open_build
from higgsc.launch.kubernetes import KEY, Kubernetes
from higgsc.launch.scheduler import RefusedError, Submission, UnreachableError, scheduler_named

SPEC = """
apiVersion: higgsc/v1
name: t
model: {family: higgs-audio-v2, base: builtin:tiny}
data: {train: [{path: d.json}]}
hardware: 2x8
evaluate: null
training: {steps: 9, global_batch: {samples: 64}, learning_rate: 1e-4}
site: {kubernetes: {image: example.org/higgsc, claim: project, namespace: research, queue: gpu}}
"""

KUBECTL = f"""#!{sys.executable}
import json, sys
from pathlib import Path
here = Path(__file__).parent
argv = sys.argv[1:]
with (here / "argv").open("a") as log:
    log.write(json.dumps(argv) + "\\n")
verb = "dry-run" if "--dry-run=server" in argv else argv[0]
refusal = here / f"{{verb}}.stderr"
if refusal.exists():
    sys.stderr.write(refusal.read_text())
    sys.exit(1)
answer = here / {{"get": "jobset.json" if "jobsets.jobset.x-k8s.io" in argv else "children.json"}}.get(verb, verb)
if verb == "delete":
    (here / "jobset.json").unlink(missing_ok=True)
elif answer.exists():
    sys.stdout.write(answer.read_text())
"""


class Cluster:
    """The stand-in for a cluster: what `kubectl` answers, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "kubectl").write_text(KUBECTL)
        (folder / "kubectl").chmod(0o755)

    def answer(self, name: str, text: str | dict[str, Any]) -> None:
        (self.folder / name).write_text(text if isinstance(text, str) else json.dumps(text))

    def asked(self) -> list[list[str]]:
        log = self.folder / "argv"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def verbs(self) -> list[str]:
        return ["dry-run" if "--dry-run=server" in argv else argv[0] for argv in self.asked()]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.fixture
def target(tmp_path: Path) -> Target:
    (tmp_path / "spec.yaml").write_text(SPEC)
    compilation = compile_spec(tmp_path / "spec.yaml")
    assert compilation.compiled, compilation.diagnostics
    (build,) = builds_of(compilation)
    write(tmp_path / build.plan.build, emit_all(build))
    return open_build(tmp_path / build.plan.build)


def submissions(target: Target, *names: str) -> list[Submission]:
    return [
        Submission(step=target.step(name), key=f"higgsc:{name}", after=target.step(name).needs)
        for name in names or ("prepare", "train", "merge")
    ]


def jobset(
    *, conditions: tuple[str, ...] = (), counts: dict[str, dict[str, int]] | None = None, **more: Any
) -> dict[str, Any]:
    """A JobSet as the server shows it, with the fields that its API documents."""
    steps = ("prepare", "train", "merge")
    zero = {"ready": 0, "succeeded": 0, "failed": 0, "active": 0, "suspended": 0}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": "t",
            "namespace": "research",
            "labels": {"kueue.x-k8s.io/queue-name": "gpu"},
            "annotations": {f"{KEY}{step}": f"higgsc:{step}" for step in steps},
            **more.pop("metadata", {}),
        },
        "spec": {
            "suspend": more.pop("suspend", False),
            "replicatedJobs": [
                {"name": "prepare"},
                {"name": "train", "dependsOn": [{"name": "prepare", "status": "Complete"}]},
                {"name": "merge", "dependsOn": [{"name": "train", "status": "Complete"}]},
            ],
        },
        "status": {
            "restarts": more.pop("restarts", 0),
            "conditions": [{"type": kind, "status": "True", "message": "jobset failed"} for kind in conditions],
            "replicatedJobsStatus": [{"name": step, **zero, **(counts or {}).get(step, {})} for step in steps],
        },
    }


def child(kind: str, step: str, **more: Any) -> dict[str, Any]:
    labels = {"jobset.sigs.k8s.io/replicatedjob-name": step}
    return {"kind": kind, "metadata": {"name": f"t-{step}-0-0-abcde", "labels": labels}, **more}


def test_a_submit_asks_the_server_first_and_applies_the_reviewed_manifest(target: Target, cluster: Cluster) -> None:
    kubernetes = scheduler_named("kubernetes", retry_for=1.0)
    wanted = submissions(target)
    kubernetes.check(target, wanted)
    assert cluster.verbs() == ["get", "dry-run"]
    assert dict(kubernetes.submit(target, wanted, {})) == {
        step: f"t-{step}-0" for step in ("prepare", "train", "merge")
    }
    assert cluster.verbs() == ["get", "dry-run", "get", "apply"]
    commands = [list(argv[1:]) for argv in kubernetes.commands(target, wanted, {})]
    assert commands == [argv for argv in cluster.asked() if argv[0] == "apply"], "--dry-run shows what is executed"
    applied = yaml.safe_load((target.run / "kubernetes.yaml").read_text())
    emitted = yaml.safe_load((target.folder / "kubernetes/jobset.yaml").read_text())
    keys = {
        name: applied["metadata"]["annotations"].pop(name)
        for name in list(applied["metadata"]["annotations"])
        if KEY in name
    }
    assert applied == emitted
    assert keys == {f"{KEY}{step}": f"higgsc:{step}" for step in ("prepare", "train", "merge")}


def test_finished_steps_are_left_out(target: Target, cluster: Cluster) -> None:
    assert dict(Kubernetes().submit(target, submissions(target, "train", "merge"), {})) == {
        "train": "t-train-0",
        "merge": "t-merge-0",
    }
    jobs = yaml.safe_load((target.run / "kubernetes.yaml").read_text())["spec"]["replicatedJobs"]
    assert [(job["name"], job.get("dependsOn")) for job in jobs] == [
        ("train", None),
        ("merge", [{"name": "train", "status": "Complete"}]),
    ]


def test_a_submit_of_nothing_touches_nothing(target: Target, cluster: Cluster) -> None:
    assert list(Kubernetes().submit(target, [], {})) == []
    assert cluster.asked() == []


@pytest.mark.parametrize(
    "there",
    [
        jobset(conditions=("Failed",)),
        jobset(conditions=("Completed",)),
        jobset(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
    ],
)
def test_a_jobset_that_has_ended_makes_way(target: Target, cluster: Cluster, there: dict[str, Any]) -> None:
    """The server would answer `unchanged` to an apply, and nothing would run."""
    cluster.answer("jobset.json", there)
    assert Kubernetes().find(target, ["higgsc:train"]) == {}
    Kubernetes().check(target, submissions(target))
    list(Kubernetes().submit(target, submissions(target), {}))
    assert cluster.verbs() == ["get", "get", "get", "delete", "apply"]
    assert "--cascade=foreground" in cluster.asked()[3]
    assert "--wait=false" not in cluster.asked()[3]


def test_a_jobset_at_work_is_found_by_its_keys_and_not_replaced(target: Target, cluster: Cluster) -> None:
    cluster.answer("jobset.json", jobset(counts={"prepare": {"succeeded": 1}, "train": {"active": 1, "ready": 1}}))
    keys = ["higgsc:prepare", "higgsc:train", "higgsc:merge", "higgsc:other"]
    assert Kubernetes().find(target, keys) == {"higgsc:train": "t-train-0", "higgsc:merge": "t-merge-0"}
    assert dict(Kubernetes().submit(target, submissions(target, "prepare"), {})) == {"prepare": "t-prepare-0"}
    other = [Submission(step=target.step("train"), key="higgsc:other", after=())]
    for attempt in (lambda: Kubernetes().check(target, other), lambda: list(Kubernetes().submit(target, other, {}))):
        with pytest.raises(RefusedError, match="`t` is at work with another build") as caught:
            attempt()
        assert caught.value.spec_path == "name"
    assert set(cluster.verbs()) == {"get"}


@pytest.mark.parametrize(
    "complaint, path, way_out",
    [
        ('error: resource mapping not found: no matches for kind "JobSet" in version "v1"', None, "JobSet"),
        ('Error from server (NotFound): namespaces "x" not found', "site.kubernetes.namespace", "get namespaces"),
        ('Error from server (Forbidden): jobsets is forbidden: User "me" cannot patch', None, "auth can-i"),
        ("The JobSet \"t\" is invalid: spec.nodeSelector: Invalid value", "site.kubernetes.node_selector", None),
    ],
)  # fmt: skip
def test_the_servers_no_points_at_the_spec(
    target: Target, cluster: Cluster, complaint: str, path: str | None, way_out: str | None
) -> None:
    cluster.answer("dry-run.stderr", complaint)
    with pytest.raises(RefusedError) as caught:
        Kubernetes().check(target, submissions(target))
    assert caught.value.code == ExitCode.DIAGNOSTICS
    assert caught.value.spec_path == path
    assert complaint[1:] in str(caught.value)
    assert (way_out or "") in (caught.value.help or "")


@pytest.mark.parametrize(
    "complaint",
    [
        "Unable to connect to the server: dial tcp: lookup k8s.example.org: no such host",
        "The connection to the server localhost:8080 was refused - did you specify the right host or port?",
        "Unable to connect to the server: net/http: TLS handshake timeout",
    ],
)
def test_a_cluster_that_does_not_answer(target: Target, cluster: Cluster, complaint: str) -> None:
    for name in ("get.stderr", "apply.stderr"):
        cluster.answer(name, complaint)
    for attempt in (
        lambda: Kubernetes().check(target, submissions(target)),
        lambda: list(Kubernetes().submit(target, submissions(target), {})),
        lambda: Kubernetes().states(target, {"train": "t-train-0"}),
    ):
        with pytest.raises(UnreachableError) as caught:
            attempt()
        assert caught.value.code == ExitCode.SCHEDULER_UNREACHABLE
    assert "apply" not in cluster.verbs()


def test_without_kubectl_it_says_so(target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StepError, match="kubectl is not installed") as caught:
        Kubernetes().check(target, submissions(target))
    assert caught.value.code == ExitCode.SCHEDULER_UNREACHABLE
    assert not isinstance(caught.value, UnreachableError), "asking again would not help"
    assert list(Kubernetes().commands(target, submissions(target), {}))


def test_a_site_without_kubernetes_is_told_what_to_add(target: Target, cluster: Cluster) -> None:
    (target.folder / "kubernetes" / "jobset.yaml").unlink()
    with pytest.raises(StepError, match="no manifests") as caught:
        Kubernetes().commands(target, submissions(target), {})
    assert caught.value.code == ExitCode.USAGE
    assert "kubernetes:" in str(caught.value)


def test_kubernetes_takes_no_argument() -> None:
    with pytest.raises(StepError, match="takes no argument"):
        scheduler_named("kubernetes:prod")


UNSCHEDULABLE = {
    "spec": {},
    "status": {
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/9 nodes are available"}
        ]
    },
}
NO_IMAGE = {
    "spec": {"nodeName": "n1"},
    "status": {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]},
}
KILLED = {
    "spec": {"nodeName": "n1"},
    "status": {"containerStatuses": [{"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]},
}
OOM = "t-train-0-0-abcde ended with 137 (OOMKilled)"
GOING = {"deletionTimestamp": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    "there, children, phase, reason",
    [
        (jobset(counts={"train": {"active": 1, "ready": 1}}), [], "running", None),
        (jobset(counts={"train": {"active": 1}}), [], "waiting", "its pods are starting"),
        (jobset(counts={"train": {"active": 1}}), [UNSCHEDULABLE], "waiting", "Unschedulable: 0/9 nodes are available"),
        (jobset(counts={"train": {"active": 1}}), [NO_IMAGE], "waiting", "ImagePullBackOff: not found"),
        (jobset(suspend=True, counts={"train": {"suspended": 1}}), [], "waiting", "waits in the queue gpu"),
        (jobset(counts={"prepare": {"active": 1, "ready": 1}}), [], "waiting", "after prepare"),
        (jobset(counts={"train": {"failed": 1}}, restarts=2), [KILLED], "waiting", OOM),
        (jobset(metadata=GOING), [], "cancelled", None),
        (jobset(metadata=GOING, counts={"train": {"active": 1, "ready": 1}}), [], "running", None),
        (jobset(counts={"train": {"succeeded": 1}}), [], "done", None),
        (jobset(conditions=("Completed",)), [], "done", None),
        (jobset(conditions=("Failed",), counts={"train": {"failed": 1}}), [KILLED], "failed", f"{OOM}; jobset failed"),
        (jobset(conditions=("Failed",), counts={"prepare": {"failed": 1}}), [], "cancelled", "a step before it failed"),
        (jobset(conditions=("Failed",), counts={"train": {"succeeded": 1}, "merge": {"failed": 1}}), [], "done", None),
    ],
)  # fmt: skip
def test_states(
    target: Target, cluster: Cluster, there: dict[str, Any], children: list[Any], phase: str, reason: str | None
) -> None:
    cluster.answer("jobset.json", there)
    cluster.answer("children.json", {"items": [child("Pod", "train", **each) for each in children]})
    status = Kubernetes().states(target, {"train": "t-train-0"})["train"]
    assert (status.phase, status.reason) == (phase, reason)
    assert status.restarts == there["status"]["restarts"], "a restart of the JobSet is one of each step at work"


def test_times_and_nodes_come_from_the_job_and_its_pods(target: Target, cluster: Cluster) -> None:
    cluster.answer("jobset.json", jobset(counts={"train": {"succeeded": 1}}))
    times = {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T01:00:00Z"}
    pods = [child("Pod", "train", spec={"nodeName": name}, status={}) for name in ("n2", "n1")]
    other = child("Pod", "prepare", spec={"nodeName": "n9"}, status={})
    cluster.answer("children.json", {"items": [child("Job", "train", status=times), other, *pods]})
    status = Kubernetes().states(target, {"train": "t-train-0"})["train"]
    assert (status.started, status.ended) == (1767225600.0, 1767229200.0)
    assert status.nodes == "n1,n2"


def test_a_jobset_that_is_gone_is_unknown(target: Target, cluster: Cluster) -> None:
    assert Kubernetes().states(target, {"train": "t-train-0"})["train"].phase == "unknown"


def test_cancel_deletes_the_jobset_and_does_not_wait(target: Target, cluster: Cluster) -> None:
    Kubernetes().cancel(target, {})
    assert cluster.asked() == []
    Kubernetes().cancel(target, {"train": "t-train-0"})
    ((verb, kind, name, *options),) = cluster.asked()
    assert (verb, kind, name) == ("delete", "jobsets.jobset.x-k8s.io", "t")
    assert {"--namespace=research", "--ignore-not-found", "--cascade=foreground", "--wait=false"} <= set(options)


def test_the_log_is_that_of_rank_0(target: Target, cluster: Cluster) -> None:
    cluster.answer("logs", "one\ntwo\n")
    assert list(Kubernetes().log(target, "train", "t-train-0", follow=True)) == ["one", "two"]
    (argv,) = cluster.asked()
    assert "--follow" in argv
    (selector,) = (word for word in argv if word.startswith("--selector="))
    assert selector.endswith("jobset.sigs.k8s.io/replicatedjob-name=train,batch.kubernetes.io/job-completion-index=0")
    cluster.answer("logs.stderr", "error: container is waiting to start: ContainerCreating")
    with pytest.raises(StepError, match="waiting to start"):
        list(Kubernetes().log(target, "train", "t-train-0", follow=False))

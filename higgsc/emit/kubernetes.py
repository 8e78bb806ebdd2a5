"""`kubernetes/`: the plan as a JobSet, its training as a Kubeflow TrainJob, and the script that their containers run.

Manifests are data and written as data, never as text with holes. Emitted for sites that say which image and which
claim to use (`site.kubernetes`).

A failure means one of two things, and the exit code or the pod's condition says which. A step that was asked to stop
(exit code 75) or whose pod was taken away (condition DisruptionTarget) starts again, as often as that happens: the
Job fails with reason PodFailurePolicy then, and JobSet's rule for that reason does not count. Anything else may be a
broken node or a broken spec, and is tried again `MAX_RESTARTS` times.
"""

from __future__ import annotations

from hashlib import sha256

from higgsc.compiler.plan import Plan, Step
from higgsc.contract.outcome import ExitCode
from higgsc.emit.build import Build
from higgsc.emit.environment import environment
from higgsc.emit.objects import Manifest, manifests, object_name
from higgsc.emit.shell import comment, render
from higgsc.spec.kubernetes import Kubernetes

MAX_RESTARTS = 3
"""Restarts after failures that nobody asked for."""


def kubernetes(build: Build) -> dict[str, str]:
    """Emit the manifests and the script; nothing for a site without Kubernetes."""
    plan = build.plan
    site = plan.site.kubernetes
    if site is None:
        return {}
    head = [
        f"Written by higgsc {plan.compiler} from {plan.spec}; change the spec and build again.",
        f"The claim `{site.claim}` has to hold the project: {plan.build}, the data, the spec's relative paths.",
    ]
    return {
        "kubernetes/jobset.yaml": manifests(
            [f"{comment(plan.name)}: all steps, each after the one before it (JobSet 0.9 or newer).", *head],
            [_jobset(plan, site)],
        ),
        "kubernetes/trainjob.yaml": manifests(
            [
                f"{comment(plan.name)}: the training alone, for Kubeflow Trainer 2; `prepare` has to be done.",
                *head,
            ],
            _trainjob(plan, site),
        ),
        "kubernetes/step.sh": render(
            "kubernetes/step.sh.j2",
            plan=plan,
            root=build.root_from("kubernetes"),
            interrupted=ExitCode.INTERRUPTED.value,
        ),
    }


def _jobset(plan: Plan, site: Kubernetes) -> Manifest:
    name = object_name(plan.name)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(plan, site, name, {"higgsc/plan": _digest(plan)}),
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": _failure_policy(),
            "replicatedJobs": [
                {
                    "name": step.name,
                    **({"dependsOn": [{"name": step.needs[-1], "status": "Complete"}]} if step.needs else {}),
                    "replicas": 1,
                    "template": {"spec": _job(plan, site, step, container=step.name, head=f"{name}-{step.name}")},
                }
                for step in plan.steps
            ],
        },
    }


def _trainjob(plan: Plan, site: Kubernetes) -> list[Manifest]:
    """The job and a runtime of its own, so that nothing depends on what an administrator has installed.

    Kubeflow finds the training by a label, and its pods by the names `node`.
    """
    step = plan.step("train")
    name = f"{object_name(plan.name)}-train"
    job = _job(plan, site, step, container="node", head=f"{name}-node", subdomain=name)
    runtime: Manifest = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(plan, site, name, {}, queue=False),
        "spec": {
            "mlPolicy": {"numNodes": step.resources.nodes, "torch": {}},
            "template": {
                "spec": {
                    "failurePolicy": _failure_policy(),
                    "replicatedJobs": [
                        {
                            "name": "node",
                            "replicas": 1,
                            "template": {
                                "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                                "spec": job,
                            },
                        }
                    ],
                }
            },
        },
    }
    train: Manifest = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(plan, site, name, {}),
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name},
            "trainer": {
                "numNodes": step.resources.nodes,
                "numProcPerNode": step.resources.processes_per_node,
                "resourcesPerNode": _resources(plan, step),
            },
        },
    }
    return [runtime, train]


def _metadata(plan: Plan, site: Kubernetes, name: str, annotations: dict[str, str], *, queue: bool = True) -> Manifest:
    labels = {"app.kubernetes.io/managed-by": "higgsc"}
    if queue and site.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = site.queue
    return {
        "name": name,
        "namespace": site.namespace,
        "labels": labels,
        "annotations": {"higgsc/name": plan.name, "higgsc/build": plan.build, **annotations},
    }


def _failure_policy() -> Manifest:
    return {
        "maxRestarts": MAX_RESTARTS,
        "rules": [
            {
                "name": "interrupted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
            }
        ],
    }


def _job(
    plan: Plan, site: Kubernetes, step: Step, *, container: str, head: str, subdomain: str | None = None
) -> Manifest:
    """The Job of a step.

    Args:
        plan: The plan.
        site: Its cluster.
        step: The step.
        container: Name of the container.
        head: Name of the Job without its index; its first pod is the one that the others meet at.
        subdomain: Of the pods: the name of the JobSet.
    """
    resources = step.resources
    variables: list[Manifest] = [{"name": name, "value": value} for name, value in environment(step, plan.site).items()]
    if resources.nodes > 1:
        address = f"{head}-0-0.{subdomain or object_name(plan.name)}"
        variables.append({"name": "MASTER_ADDR", "value": address})
    # Which JobSet this is, for what has to outlast its restarts.
    uid = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"}}
    variables.append({"name": "JOBSET_UID", "valueFrom": uid})
    variables += [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": site.secret_name, "key": name}}} for name in plan.secrets
    ]
    mount: Manifest = {"name": "project", "mountPath": site.mount}
    if site.sub_path is not None:
        mount["subPath"] = site.sub_path
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": plan.site.signal_lead,
        **({"serviceAccountName": site.service_account} if site.service_account is not None else {}),
        **({"nodeSelector": dict(site.node_selector)} if site.node_selector else {}),
        "containers": [
            {
                "name": container,
                "image": site.image,
                "command": ["bash", f"{plan.build}/kubernetes/step.sh", step.name],
                "workingDir": site.mount,
                "env": variables,
                "resources": _resources(plan, step),
                "volumeMounts": [mount, {"name": "shared-memory", "mountPath": "/dev/shm"}],
            }
        ],
        "volumes": [
            {"name": "project", "persistentVolumeClaim": {"claimName": site.claim}},
            # A container gets 64 MB of it otherwise, too little for NCCL and for data workers.
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    return {
        "completionMode": "Indexed",
        "completions": resources.nodes,
        "parallelism": resources.nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": container,
                        "operator": "In",
                        "values": [ExitCode.INTERRUPTED.value],
                    },
                },
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"spec": pod},
    }


def _resources(plan: Plan, step: Step) -> Manifest:
    """What a pod of the step asks for: its GPUs, and their share of the node's cores and memory if those are known."""
    most = max(other.resources.processes_per_node for other in plan.steps)
    requests: Manifest = {}
    limits: Manifest = {}
    if plan.site.cpus_per_node is not None:
        requests["cpu"] = str(max(1, plan.site.cpus_per_node * step.resources.processes_per_node // most))
    if plan.site.memory_per_node is not None:
        memory = f"{max(1, plan.site.memory_per_node * step.resources.processes_per_node // most)}Gi"
        requests["memory"] = limits["memory"] = memory
    if step.resources.gpus_per_node:
        limits["nvidia.com/gpu"] = str(step.resources.gpus_per_node)
    return {**({"requests": requests} if requests else {}), **({"limits": limits} if limits else {})}


def _digest(plan: Plan) -> str:
    """What the steps do, as a hash: two JobSets of one name with the same digest are the same run."""
    text = "\n".join(step.job.model_dump_json() for step in plan.steps)
    return sha256(text.encode("utf-8")).hexdigest()[:16]

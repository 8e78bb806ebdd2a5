"""The manifests against the published models of the APIs, and the script of the containers, run."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from higgsc.compiler.compile import compile_spec
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.objects import MAX_NAME, manifests, object_name
from higgsc.emit.write import write

ROOT = Path(__file__).parent.parent.parent
SPEC = (
    "apiVersion: higgsc/v1\nname: t\nmodel: {{family: higgs-audio-v2, base: builtin:tiny}}\n"
    "data: {{train: [{{path: d.json}}]}}\nhardware: {hardware}\nevaluate: null\nmerge: null\n"
    "training: {{steps: 9, global_batch: {{samples: 64}}, learning_rate: 1e-4}}\nsecrets: [HF_TOKEN]\n"
    "site: {{cpus_per_node: 64, kubernetes: {{image: example.org/h:1, claim: project, secret_name: tokens{more}}}}}\n"
)
MODELS = "kubeflow_trainer_api.models"


def emitted(folder: Path, hardware: str = "2x8", more: str = "", *overrides: str) -> dict[str, str]:
    spec = folder / "spec.yaml"
    spec.write_text(SPEC.format(hardware=hardware, more=more))
    compilation = compile_spec(spec, overrides=overrides)
    assert compilation.compiled, compilation.diagnostics
    (build,) = builds_of(compilation)
    write(folder / build.plan.build, emit_all(build), force=True)
    return emit_all(build)


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def published(kind: str, document: dict[str, Any]) -> dict[str, Any]:
    """What the published model of a kind makes of a document."""
    names = {
        "JobSet": ("jobset_v1alpha2_job_set", "JobsetV1alpha2JobSet"),
        "TrainJob": ("trainer_v1alpha1_train_job", "TrainerV1alpha1TrainJob"),
        "TrainingRuntime": ("trainer_v1alpha1_training_runtime", "TrainerV1alpha1TrainingRuntime"),
    }
    module, name = names[kind]
    made = getattr(importlib.import_module(f"{MODELS}.{module}"), name).from_dict(document)
    found: dict[str, Any] = made.to_dict()
    return found


def plain(value: Any) -> Any:
    """Without the wrappers that the models put around quantities."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return getattr(value, "actual_instance", value)


@pytest.mark.parametrize("spec", ["kubernetes.yaml"])
def test_the_published_models_take_the_manifests_whole(spec: str) -> None:
    """Nothing is refused, and nothing is lost on the way: a key that the API does not know would be."""
    (build,) = builds_of(compile_spec(ROOT / "specs" / spec))
    files = emit_all(build)
    found = documents(files["kubernetes/jobset.yaml"]) + documents(files["kubernetes/trainjob.yaml"])
    assert [document["kind"] for document in found] == ["JobSet", "TrainingRuntime", "TrainJob"]
    for document in found:
        assert plain(published(document["kind"], document)) == document


def test_the_published_models_see_a_wrong_key(tmp_path: Path) -> None:
    """The test above can fail."""
    (document,) = documents(emitted(tmp_path)["kubernetes/jobset.yaml"])
    document["spec"]["replicatedJobs"][0]["template"]["spec"]["backofLimit"] = 1
    assert plain(published("JobSet", document)) != document
    document["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] = "none"
    with pytest.raises(ValueError, match="backoffLimit"):
        published("JobSet", document)


def test_the_rules_of_jobsets_webhook_hold(tmp_path: Path) -> None:
    """What JobSet checks on creation and no schema says (jobset, pkg/webhooks/jobset_webhook.go)."""
    name = "Sweep-learning_rate-1e-4-rank-16-alpha-32-and-much-more-x"
    (document,) = documents(
        emitted(tmp_path, "16x8", "", f"name={name}", "training.global_batch.samples=1024")["kubernetes/jobset.yaml"]
    )
    label = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
    seen: set[str] = set()
    for index, job in enumerate(document["spec"]["replicatedJobs"]):
        pods = job["template"]["spec"]["completions"]
        pod = f"{document['metadata']['name']}-{job['name']}-0-{pods - 1}-abcde"
        assert label.fullmatch(pod)
        assert len(pod) <= 63
        assert "dependsOn" not in job or index > 0
        assert {need["name"] for need in job.get("dependsOn", ())} <= seen
        assert len(job.get("dependsOn", ())) <= 1
        seen.add(job["name"])
    for rule in document["spec"]["failurePolicy"]["rules"]:
        assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    train = documents(
        emitted(tmp_path, "16x8", "", f"name={name}", "training.global_batch.samples=1024")["kubernetes/trainjob.yaml"]
    )[1]
    pod = f"{train['metadata']['name']}-node-0-{train['spec']['trainer']['numNodes'] - 1}-abcde"
    assert label.fullmatch(pod)
    assert len(pod) <= 63


def test_steps_ask_for_what_the_plan_says(tmp_path: Path) -> None:
    (document,) = documents(emitted(tmp_path)["kubernetes/jobset.yaml"])
    jobs = {job["name"]: job["template"]["spec"] for job in document["spec"]["replicatedJobs"]}
    assert list(jobs) == ["prepare", "train"]
    (prepare,) = jobs["prepare"]["template"]["spec"]["containers"]
    (train,) = jobs["train"]["template"]["spec"]["containers"]
    assert prepare["resources"] == {"requests": {"cpu": "8"}, "limits": {"nvidia.com/gpu": "1"}}
    assert train["resources"] == {"requests": {"cpu": "64"}, "limits": {"nvidia.com/gpu": "8"}}
    assert (jobs["train"]["completions"], jobs["train"]["parallelism"]) == (2, 2)
    assert train["command"] == ["bash", "generated/t/kubernetes/step.sh", "train"]
    variables = {variable["name"]: variable for variable in train["env"]}
    assert variables["MASTER_ADDR"]["value"] == "t-train-0-0.t"
    assert variables["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "tokens", "key": "HF_TOKEN"}}
    assert "MASTER_ADDR" not in {variable["name"] for variable in prepare["env"]}


def test_a_cpu_plan_asks_for_no_gpu(tmp_path: Path) -> None:
    for path, text in emitted(tmp_path, "2xCPU").items():
        if path.startswith("kubernetes/"):
            assert "nvidia" not in text, path


def test_the_queue_is_a_label_of_what_kueue_admits(tmp_path: Path) -> None:
    files = emitted(tmp_path, "2x8", ", queue: gpu, sub_path: people/me")
    (jobset,) = documents(files["kubernetes/jobset.yaml"])
    runtime, train = documents(files["kubernetes/trainjob.yaml"])
    for document, expected in ((jobset, "gpu"), (runtime, None), (train, "gpu")):
        assert document["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") == expected
    mounts = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0][
        "volumeMounts"
    ]
    assert {"name": "project", "mountPath": "/project", "subPath": "people/me"} in mounts


def test_without_an_image_there_are_no_manifests() -> None:
    (build,) = builds_of(compile_spec(ROOT / "specs" / "arabic.yaml"))
    assert not [path for path in emit_all(build) if path.startswith("kubernetes/")]


@given(st.text(min_size=1, max_size=64))
def test_every_name_becomes_a_label(name: str) -> None:
    made = object_name(name)
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", made)
    assert len(made) <= MAX_NAME
    assert object_name(made) == made


def test_names_that_look_alike_stay_apart() -> None:
    names = ["a.b", "a-b", "a_b", "A-b", "a--b", "1a", "run-1a", "x" * 41, "x" * 42]
    assert len({object_name(name) for name in names}) == len(names)


@given(st.dictionaries(st.sampled_from("abc"), st.text(max_size=20) | st.lists(st.text(max_size=9)), max_size=3))
def test_what_is_written_reads_back(document: dict[str, Any]) -> None:
    assert documents(manifests(["a comment"], [document, document])) == [document, document]


# The script of the containers, with a program in the place of the trainer.

PYTHON = """#!/usr/bin/env bash
# Stands for `python -m ... run-step jobs/STEP.json`: does what the file `behaviour` says.
echo "$*" >> argv
run=runs/t
mkdir -p "$run/receipts"
rm -f "$run/receipts/$STEP.json"
source ./behaviour
"""
FINISH = 'echo "{}" > "$run/receipts/$STEP.json"\n'
UNTIL_ASKED = 'echo > started; while [ ! -e "$run/stop" ]; do sleep 0.02; done\n'


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """A project as a container sees it, with its `python`."""
    emitted(tmp_path)
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text(PYTHON)
    program.chmod(0o755)
    return tmp_path


def start(container: Path, step: str, behaviour: str, **variables: str) -> subprocess.Popen[str]:
    (container / "behaviour").write_text(behaviour)
    environment = {
        "PATH": f"{container / 'bin'}:{os.environ['PATH']}",
        "STEP": step,
        "HF_TOKEN": "x",
        "JOBSET_UID": "1-2-3",
        "JOB_COMPLETION_INDEX": "0",
        "MASTER_ADDR": "first",
        **variables,
    }
    return subprocess.Popen(
        ["bash", "generated/t/kubernetes/step.sh", step],
        cwd=container,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(container: Path, step: str, behaviour: str, **variables: str) -> tuple[int, str]:
    process = start(container, step, behaviour, **variables)
    _, stderr = process.communicate(timeout=30)
    return process.returncode, stderr


def test_a_step_that_finishes_is_not_repeated_by_a_restart_of_the_same_jobset(container: Path) -> None:
    assert run(container, "prepare", FINISH) == (0, "")
    code, stderr = run(container, "prepare", "exit 9")
    assert code == 0
    assert "prepare has finished before the restart" in stderr
    assert run(container, "prepare", "exit 9", JOBSET_UID="4-5-6")[0] == 9, "another JobSet starts anew"
    assert run(container, "prepare", "exit 9", JOBSET_UID="")[0] == 9, "an old JobSet does not say who it is"


def test_the_ranks_of_two_nodes_get_the_same_rendezvous(container: Path) -> None:
    for index in ("0", "1"):
        assert run(container, "train", FINISH, JOB_COMPLETION_INDEX=index, JOBSET_UID=index)[0] == 0
    first, second = (container / "argv").read_text().splitlines()
    assert first == (
        "-m torch.distributed.run --nnodes=2 --nproc-per-node=8 --node-rank=0 --master-addr=first --master-port=29500 "
        "-m higgsc run-step generated/t/jobs/train.json"
    )
    assert second == first.replace("--node-rank=0", "--node-rank=1")


def test_a_warned_pod_asks_all_ranks_to_stop_and_says_that_it_goes_on(container: Path) -> None:
    (container / "runs/t").mkdir(parents=True)
    (container / "runs/t/stop").touch()  # of an earlier pod: must not stop this one
    process = start(container, "train", UNTIL_ASKED)
    wait_for(container / "started")
    time.sleep(0.2)
    assert process.poll() is None, "stopped by the request of an earlier pod"
    process.send_signal(signal.SIGTERM)  # to the shell alone, as Kubernetes does
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "goes on in another pod" in stderr


def test_a_pod_that_is_not_the_first_leaves_the_judgement_to_it(container: Path) -> None:
    process = start(container, "train", UNTIL_ASKED, JOB_COMPLETION_INDEX="1")
    wait_for(container / "started")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert (container / "runs/t/stop").exists()
    assert not (container / "runs/t/state/train.jobset").exists()


def test_a_step_that_fails_keeps_its_exit_code(container: Path) -> None:
    assert run(container, "prepare", "exit 65")[0] == 65
    process = start(container, "train", f"{UNTIL_ASKED}exit 1")
    wait_for(container / "started")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 1


def test_a_missing_secret_and_an_unknown_step_are_named(container: Path) -> None:
    code, stderr = run(container, "prepare", FINISH, HF_TOKEN="")
    assert code != 0
    assert "HF_TOKEN" in stderr
    assert run(container, "prepair", FINISH) == (2, "no step is called prepair\n")
    assert not (container / "argv").exists()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)

"""kubernetes: the steps as TorchX components, each run alone.

Written by higgsc 0.1.0 from specs/kubernetes.yaml; change the spec and build again.
"""

from torchx import specs


def prepare() -> specs.AppDef:
    """Read the speech data, encode every recording once."""
    return specs.AppDef(
        name="kubernetes-prepare",
        roles=[
            specs.Role(
                name="prepare",
                image="registry.example.org/higgsc:0.1.0",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "/project/generated/kubernetes/jobs/prepare.json",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                    "OMP_NUM_THREADS": "64",
                    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                },
                num_replicas=1,
                resource=specs.Resource(cpu=8, gpu=1, memMB=-1),  # -1: as the cluster has it
                mounts=[specs.VolumeMount(src="higgsc-project", dst_path="/project")],
            ),
        ],
    )


def train() -> specs.AppDef:
    """Train the LoRA adapter."""
    return specs.AppDef(
        name="kubernetes-train",
        roles=[
            specs.Role(
                name="train",
                image="registry.example.org/higgsc:0.1.0",
                entrypoint="bash",
                args=[
                    "-c",
                    (
                        'port=$$((20000 + $$(printf %s "$$1" | cksum | cut -d" " -f1) % 20000)) && '
                        "exec python -m torch.distributed.run --nnodes=2 --nproc-per-node=8 "
                        '--rdzv-backend=c10d --rdzv-id="$$1" --rdzv-endpoint="'
                        '$${${rank0_env}:?TorchX does not name the first host}:$$port" '
                        "-m higgsc run-step /project/generated/kubernetes/jobs/train.json"
                    ),
                    "train",
                    "${app_id}",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                    "OMP_NUM_THREADS": "8",
                    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                },
                num_replicas=2,
                resource=specs.Resource(cpu=64, gpu=8, memMB=-1),  # -1: as the cluster has it
                mounts=[specs.VolumeMount(src="higgsc-project", dst_path="/project")],
            ),
        ],
    )


def merge() -> specs.AppDef:
    """Fold the adapter into the base."""
    return specs.AppDef(
        name="kubernetes-merge",
        roles=[
            specs.Role(
                name="merge",
                image="registry.example.org/higgsc:0.1.0",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "/project/generated/kubernetes/jobs/merge.json",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                    "OMP_NUM_THREADS": "64",
                    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                },
                num_replicas=1,
                resource=specs.Resource(cpu=8, gpu=1, memMB=-1),  # -1: as the cluster has it
                mounts=[specs.VolumeMount(src="higgsc-project", dst_path="/project")],
            ),
        ],
    )


def evaluate() -> specs.AppDef:
    """Score held-out samples, speak held-out prompts."""
    return specs.AppDef(
        name="kubernetes-evaluate",
        roles=[
            specs.Role(
                name="evaluate",
                image="registry.example.org/higgsc:0.1.0",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "/project/generated/kubernetes/jobs/evaluate.json",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                    "OMP_NUM_THREADS": "64",
                    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                },
                num_replicas=1,
                resource=specs.Resource(cpu=8, gpu=1, memMB=-1),  # -1: as the cluster has it
                mounts=[specs.VolumeMount(src="higgsc-project", dst_path="/project")],
            ),
        ],
    )

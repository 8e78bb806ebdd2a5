"""full: the steps as TorchX components, each run alone.

Written by higgsc 0.1.0 from specs/full.yaml; change the spec and build again.
"""

from torchx import specs


def prepare() -> specs.AppDef:
    """Read the speech data, encode every recording once."""
    return specs.AppDef(
        name="full-prepare",
        roles=[
            specs.Role(
                name="prepare",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/full/jobs/prepare.json",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                },
                num_replicas=1,
                resource=specs.Resource(cpu=-1, gpu=1, memMB=-1),  # -1: as the cluster has it
            ),
        ],
    )


def train() -> specs.AppDef:
    """Train the whole model."""
    return specs.AppDef(
        name="full-train",
        roles=[
            specs.Role(
                name="train",
                image="",
                entrypoint="bash",
                args=[
                    "-c",
                    (
                        'port=$$((20000 + $$(printf %s "$$1" | cksum | cut -d" " -f1) % 20000)) && '
                        "exec python -m torch.distributed.run --nnodes=2 --nproc-per-node=8 "
                        '--rdzv-backend=c10d --rdzv-id="$$1" --rdzv-endpoint="'
                        '$${${rank0_env}:?TorchX does not name the first host}:$$port" '
                        "-m higgsc run-step generated/full/jobs/train.json"
                    ),
                    "train",
                    "${app_id}",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                },
                num_replicas=2,
                resource=specs.Resource(cpu=-1, gpu=8, memMB=-1),  # -1: as the cluster has it
            ),
        ],
    )


def evaluate() -> specs.AppDef:
    """Score held-out samples, speak held-out prompts."""
    return specs.AppDef(
        name="full-evaluate",
        roles=[
            specs.Role(
                name="evaluate",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/full/jobs/evaluate.json",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                },
                num_replicas=1,
                resource=specs.Resource(cpu=-1, gpu=1, memMB=-1),  # -1: as the cluster has it
            ),
        ],
    )

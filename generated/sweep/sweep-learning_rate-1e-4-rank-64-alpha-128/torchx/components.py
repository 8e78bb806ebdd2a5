"""sweep-learning_rate-1e-4-rank-64-alpha-128: the steps as TorchX components, each run alone.

Written by higgsc 0.1.0 from specs/sweep.yaml; change the spec and build again.
"""

from torchx import specs


def prepare() -> specs.AppDef:
    """Read the speech data, encode every recording once."""
    return specs.AppDef(
        name="sweep-learning_rate-1e-4-rank-64-alpha-128-prepare",
        roles=[
            specs.Role(
                name="prepare",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/sweep/sweep-learning_rate-1e-4-rank-64-alpha-128/jobs/prepare.json",
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
    """Train the LoRA adapter."""
    return specs.AppDef(
        name="sweep-learning_rate-1e-4-rank-64-alpha-128-train",
        roles=[
            specs.Role(
                name="train",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    "--nproc-per-node=8",
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/sweep/sweep-learning_rate-1e-4-rank-64-alpha-128/jobs/train.json",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                },
                num_replicas=1,
                resource=specs.Resource(cpu=-1, gpu=8, memMB=-1),  # -1: as the cluster has it
            ),
        ],
    )


def merge() -> specs.AppDef:
    """Fold the adapter into the base."""
    return specs.AppDef(
        name="sweep-learning_rate-1e-4-rank-64-alpha-128-merge",
        roles=[
            specs.Role(
                name="merge",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/sweep/sweep-learning_rate-1e-4-rank-64-alpha-128/jobs/merge.json",
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


def evaluate() -> specs.AppDef:
    """Score held-out samples, speak held-out prompts."""
    return specs.AppDef(
        name="sweep-learning_rate-1e-4-rank-64-alpha-128-evaluate",
        roles=[
            specs.Role(
                name="evaluate",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/sweep/sweep-learning_rate-1e-4-rank-64-alpha-128/jobs/evaluate.json",
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

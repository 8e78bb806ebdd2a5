"""quickstart: the steps as TorchX components, each run alone.

Written by higgsc 0.1.0 from specs/quickstart.yaml; change the spec and build again.
"""

from torchx import specs


def prepare() -> specs.AppDef:
    """Read the speech data, encode every recording once."""
    return specs.AppDef(
        name="quickstart-prepare",
        roles=[
            specs.Role(
                name="prepare",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/quickstart/jobs/prepare.json",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                },
                num_replicas=1,
                resource=specs.Resource(cpu=-1, gpu=0, memMB=-1),  # -1: as the cluster has it
            ),
        ],
    )


def train() -> specs.AppDef:
    """Train the LoRA adapter."""
    return specs.AppDef(
        name="quickstart-train",
        roles=[
            specs.Role(
                name="train",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/quickstart/jobs/train.json",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                },
                num_replicas=1,
                resource=specs.Resource(cpu=-1, gpu=0, memMB=-1),  # -1: as the cluster has it
            ),
        ],
    )


def merge() -> specs.AppDef:
    """Fold the adapter into the base."""
    return specs.AppDef(
        name="quickstart-merge",
        roles=[
            specs.Role(
                name="merge",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/quickstart/jobs/merge.json",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                },
                num_replicas=1,
                resource=specs.Resource(cpu=-1, gpu=0, memMB=-1),  # -1: as the cluster has it
            ),
        ],
    )


def evaluate() -> specs.AppDef:
    """Score held-out samples, speak training prompts."""
    return specs.AppDef(
        name="quickstart-evaluate",
        roles=[
            specs.Role(
                name="evaluate",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/quickstart/jobs/evaluate.json",
                ],
                env={
                    "PYTHONUNBUFFERED": "1",
                },
                num_replicas=1,
                resource=specs.Resource(cpu=-1, gpu=0, memMB=-1),  # -1: as the cluster has it
            ),
        ],
    )

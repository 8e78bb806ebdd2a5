"""zero-shot: the steps as TorchX components, each run alone.

Written by higgsc 0.1.0 from specs/zero-shot.yaml; change the spec and build again.
"""

from torchx import specs


def prepare() -> specs.AppDef:
    """Read the speech data, encode every recording once."""
    return specs.AppDef(
        name="zero-shot-prepare",
        roles=[
            specs.Role(
                name="prepare",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/zero-shot/jobs/prepare.json",
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
        name="zero-shot-train",
        roles=[
            specs.Role(
                name="train",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/zero-shot/jobs/train.json",
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


def merge() -> specs.AppDef:
    """Fold the adapter into the base."""
    return specs.AppDef(
        name="zero-shot-merge",
        roles=[
            specs.Role(
                name="merge",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/zero-shot/jobs/merge.json",
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
        name="zero-shot-evaluate",
        roles=[
            specs.Role(
                name="evaluate",
                image="",
                entrypoint="python",
                args=[
                    "-m",
                    "higgsc",
                    "run-step",
                    "generated/zero-shot/jobs/evaluate.json",
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

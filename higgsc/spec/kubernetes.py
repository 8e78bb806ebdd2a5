"""What a Kubernetes cluster wants to know: `site.kubernetes`."""

from __future__ import annotations

from pydantic import Field

from higgsc.spec.base import AbsolutePath, DnsLabel, ImageReference, LabelKey, LabelValue, RelativePath, SpecModel


class Kubernetes(SpecModel):
    """Where and as whom the steps run in a Kubernetes cluster; with it, a build holds `kubernetes/`.

    The claim holds the project: data, the build and the run's folder. It is mounted at `mount`, and every step
    starts there."""

    image: ImageReference
    """Container image with bash, Python and `higgsc[train]`."""
    claim: DnsLabel
    """PersistentVolumeClaim that holds the project; more than one node needs one that many nodes can write to."""
    mount: AbsolutePath = "/project"
    """Where the claim is mounted; the working directory of every step."""
    sub_path: RelativePath | None = None
    """The project's folder inside the claim; the claim's top folder if not given."""
    namespace: DnsLabel = "default"
    """Namespace of the objects."""
    queue: DnsLabel | None = None
    """Kueue's LocalQueue; without one, the pods are scheduled as soon as they fit."""
    service_account: DnsLabel | None = None
    """ServiceAccount of the pods; the namespace's default one if not given."""
    secret_name: DnsLabel | None = None
    """Secret whose keys are the names in `secrets`; needed if there are any."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels of the nodes to run on, such as `nvidia.com/gpu.product: NVIDIA-H200`."""

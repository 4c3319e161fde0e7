"""What a config cannot say of itself on Kubernetes: images, machines, storage, queues.

`rayward.cluster.kube` writes the files; pods and their sizes follow from `resources`.
"""

from __future__ import annotations

import posixpath
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rayward.configs.sections.base import Count, Positive, Section

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
"""A part of a name that Kubernetes takes."""
Name = Annotated[str, Field(pattern=rf"^{LABEL}(\.{LABEL})*$", max_length=253)]
"""A name of most objects."""
TAKEN = ("/dev/shm", "/etc/rayward", "/home/rayward", "/tmp")
"""Where other volumes of a pod lie."""


class Kube(Section):
    """Pods on Kubernetes (`rayward kube render`)."""

    image: Annotated[str, Field(min_length=1)] = "rayward"
    """Registry and name of the images without tag; -cpu or -gpu and the version follow."""
    namespace: Annotated[str, Field(pattern=f"^{LABEL}$", max_length=63)] = "rayward"
    """Namespace of all objects."""
    gpus_per_node: Count = 8
    """GPUs of a machine; a worker pod has at most these."""
    cpus_per_node: Count | None = None
    """CPUs of a machine; a worker pod has at most these, null puts no bound."""
    memory_gib: Positive | None = None
    """Memory of a worker pod, in GiB; null is 2, 3 a process, 32 a GPU, and the KV cache of CPU
    engines.
    """
    head_memory_gib: Positive = 16
    """Memory of the head pod, which prepares the data, in GiB."""
    mount: Annotated[str, Field(pattern="^/.*[^/]$")] = "/shared"
    """Folder of every pod where the volume lies: runs/NAME and the cache of models are in it."""
    storage_gib: Positive = 500
    """Size of the volume that is asked for, in GiB."""
    storage_class: Name | None = None
    """Storage class of the volume, one that many pods can write; null is the cluster's default."""
    claim: Name | None = None
    """PersistentVolumeClaim that is there already and is taken in place of a new one."""
    bucket: str | None = None
    """Bucket of an object storage that a CSI driver mounts in place of a volume."""
    bucket_driver: str = "gcsfuse.csi.storage.gke.io"
    """Name of that CSI driver; it must be able to rename files."""
    bucket_attributes: dict[str, str] = Field({})
    """Volume attributes that the driver wants, as {bucketName: NAME} for s3.csi.aws.com."""
    secret: Name = "rayward-keys"
    """Secret with HF_TOKEN (may be missing) and the variables that scoring.sources name as key."""
    node_selector: dict[str, str] = Field({})
    """Labels of the machines that worker pods go to."""
    priority_class: Name | None = None
    """Priority class of the pods, or with kueue of the workload."""
    scheduler: Literal["kueue", "volcano"] | None = None
    """Who admits all pods of a cluster at once; null is Kubernetes, which places them one by one.
    """
    queue: Name | None = None
    """Queue of that scheduler, a LocalQueue of Kueue or a queue of Volcano."""
    retries: Annotated[int, Field(ge=0)] = 3
    """Further clusters that a training job gets where one fails; each goes on in the run folder."""
    keep_failed_s: Annotated[int, Field(ge=0)] = 3600
    """Time that the head of a failed job stays to be looked at, in seconds."""

    @field_validator("mount")
    @classmethod
    def _is_a_folder_of_its_own(cls, mount: str) -> str:
        if posixpath.normpath(mount) != mount or mount in TAKEN:
            raise ValueError(
                f"kube.mount is {mount!r}, expected a folder by its plain path, and none of "
                f"{', '.join(TAKEN)}, where pods have other things"
            )
        return mount

    @field_validator("image")
    @classmethod
    def _has_no_tag(cls, image: str) -> str:
        # A port of the registry has a colon too, but a slash follows.
        if "@" in image or ":" in image.rpartition("/")[2] or re.search(r"[\sA-Z]", image):
            raise ValueError(
                f"kube.image is {image!r}, expected REGISTRY/NAME without tag or digest, in lower "
                "case: the tag is Rayward's version"
            )
        return image

    @model_validator(mode="after")
    def _each_setting_has_an_effect(self) -> Kube:
        # By value: a config that spells out every default is fine.
        given = {
            name
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.default
        }
        if self.claim and self.bucket:
            raise ValueError("kube.claim and kube.bucket both say where runs lie; give one")
        for place in ("claim", "bucket"):
            if getattr(self, place) and (no_use := {"storage_class", "storage_gib"} & given):
                raise ValueError(f"kube.{min(no_use)} has no effect where kube.{place} is given")
        if not self.bucket and (no_use := {"bucket_driver", "bucket_attributes"} & given):
            raise ValueError(f"kube.{min(no_use)} has no effect without kube.bucket")
        if (self.scheduler is None) != (self.queue is None):
            raise ValueError(
                f"kube.scheduler is {self.scheduler} and kube.queue {self.queue}: one needs the "
                "other"
            )
        return self

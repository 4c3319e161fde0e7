"""Templates of pods: Ray's head, Ray's workers, and the pod that submits a job.

All run as user 1000 with no rights and a root that is read-only: what is written goes to the shared
volume, to /tmp (Ray's session), or to the home folder (caches of compiled kernels).
"""

from __future__ import annotations

from math import ceil
from typing import Any

from rayward.cluster.kube.groups import Group
from rayward.cluster.kube.names import ACCOUNT, CONFIG_FOLDER, HOME, Object, image, labels, run_name
from rayward.cluster.kube.shared import (
    DASHBOARD_PORT,
    GCS_PORT,
    METRICS_PORT,
    SERVE_PORT,
    claim_name,
)
from rayward.configs.schema import Config

USER = 1000
HEAD_CPUS = 2
SUBMITTER_CPUS, SUBMITTER_GIB = 1, 1
STOP_WAIT_S = 60
"""Time that a job has to save where it is told to stop; Ray's own is 3 s."""
CLIENT_PORT = 10001


def head(config: Config, gpus: bool, with_config: bool) -> Object:
    """The head's pod; `with_config`: the run's config is mounted, for a driver that runs there.

    `gpus`: the image of the workers, since the head imports what they do.
    """
    ports = {
        "gcs-server": GCS_PORT,
        "dashboard": DASHBOARD_PORT,
        "client": CLIENT_PORT,
        "metrics": METRICS_PORT,
        "serve": SERVE_PORT,
    }
    memory = ceil(config.kube.head_memory_gib)
    container = _container(config, "ray-head", gpus, _resources(HEAD_CPUS, memory), memory)
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    container["env"].append({"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(STOP_WAIT_S)})
    pod = _pod(config, container, memory)
    if with_config:
        pod["spec"]["volumes"].append(
            {"name": "config", "configMap": {"name": f"{run_name(config)}-config"}}
        )
        container["volumeMounts"].append(
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}
        )
    return pod


def worker(config: Config, group: Group, gpus: bool) -> Object:
    """A worker's pod. `gpus`: whether the cluster has any."""
    asked = _resources(group.cpus, group.memory_gib)
    if group.gpus:
        for kind in ("requests", "limits"):
            asked[kind]["nvidia.com/gpu"] = str(group.gpus)
    container = _container(config, "ray-worker", gpus, asked, group.memory_gib)
    container["ports"] = [
        {"name": "metrics", "containerPort": METRICS_PORT},
        {"name": "serve", "containerPort": SERVE_PORT},
    ]
    pod = _pod(config, container, group.memory_gib)
    if config.kube.node_selector:
        pod["spec"]["nodeSelector"] = dict(config.kube.node_selector)
    if group.gpus:
        # Machines with GPUs are often kept for pods that say so.
        pod["spec"]["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    return pod


def submitter(config: Config, gpus: bool) -> Object:
    """The pod that hands a job to the head and follows its log; KubeRay fills in the command."""
    container = _container(
        config, "ray-job-submitter", gpus, _resources(SUBMITTER_CPUS, SUBMITTER_GIB), SUBMITTER_GIB
    )
    del container["lifecycle"]
    # It needs neither keys nor runs.
    container["env"] = container["env"][:1]
    pod = _pod(config, container, SUBMITTER_GIB)
    for where, name in ((pod["spec"]["volumes"], "name"), (container["volumeMounts"], "name")):
        where[:] = [entry for entry in where if entry[name] in ("tmp", "home")]
    pod["spec"]["restartPolicy"] = "Never"
    return pod


def _resources(cpus: int, memory_gib: int) -> Object:
    """Requests and limits, which are equal: such pods are the last to be put out."""
    asked = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"}
    return {"requests": dict(asked), "limits": dict(asked)}


def _container(config: Config, name: str, gpus: bool, resources: Object, memory_gib: int) -> Object:
    return {
        "name": name,
        "image": image(config, gpus),
        "imagePullPolicy": "IfNotPresent",
        "env": _environment(config),
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "home", "mountPath": HOME},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "shared", "mountPath": config.kube.mount},
        ],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "ray stop"]}}},
    }


def _environment(config: Config) -> list[Object]:
    """Where models are kept, and the keys that a run needs, out of the secret."""
    keys = {source.key for source in config.scoring.sources if source.key}
    keys |= {"OPENAI_API_KEY" for source in config.scoring.sources if source.kind == "judge"}
    asked = {source.key for source in config.scoring.sources}
    variables: list[Object] = [
        {"name": "HOME", "value": HOME},
        {"name": "HF_HOME", "value": f"{config.kube.mount}/huggingface"},
    ]
    for key in ["HF_TOKEN", *sorted(keys)]:
        reference: dict[str, Any] = {"name": config.kube.secret, "key": key}
        # A pod does not start without a key that the config names.
        reference["optional"] = key not in asked
        variables.append({"name": key, "valueFrom": {"secretKeyRef": reference}})
    return variables


def _pod(config: Config, container: Object, memory_gib: int) -> Object:
    # Kueue and Volcano read the class of the whole from labels.
    kube = config.kube
    priority = {"priorityClassName": kube.priority_class} if kube.priority_class else {}
    if kube.scheduler:
        priority = {}
    return {
        "metadata": {"labels": labels(config)},
        "spec": {
            "serviceAccountName": ACCOUNT,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **priority,
            "terminationGracePeriodSeconds": STOP_WAIT_S + 30,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                {"name": "home", "emptyDir": {}},
                # Of the pod's memory, where Ray's object store and NCCL have their share.
                {
                    "name": "shared-memory",
                    "emptyDir": {"medium": "Memory", "sizeLimit": f"{ceil(memory_gib / 2)}Gi"},
                },
                {"name": "shared", "persistentVolumeClaim": {"claimName": claim_name(config)}},
            ],
        },
    }

"""RayJob, RayService and RayCluster of a config, for the KubeRay operator."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

import yaml

from rayward.cluster.kube import versions
from rayward.cluster.kube.groups import Group, worker_groups
from rayward.cluster.kube.names import CONFIG_FOLDER, Object, metadata, run_folder, run_name
from rayward.cluster.kube.pods import head, submitter, worker
from rayward.cluster.kube.shared import SERVE_PORT
from rayward.cluster.serve.endpoint import Endpoint
from rayward.configs.load import dump
from rayward.configs.schema import Config
from rayward.configs.stages import STAGES, has
from rayward.configs.threads import shared_out, with_threads

APP = "rayward.cluster.serve:app"
API = "ray.io/v1"
OLD_CLUSTER_S = 60
"""Time that the cluster before an upgrade goes on after the new one has taken over, for requests
that it has begun."""


def config_map(config: Config) -> Object:
    """The config that the job reads: all settings, spelled out."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(config, f"{run_name(config)}-config"),
        "data": {"config.yaml": dump(config)},
    }


def entrypoint(config: Config) -> str:
    """What the job runs; the same command again goes on with what is done."""
    # The submitter's pod hands it to a shell as it stands, and a run may have any name.
    return f"rayward align {CONFIG_FOLDER}/config.yaml --run {shlex.quote(run_folder(config))}"


def runtime_env(config: Config) -> Object:
    """The job's environment: small, and without a secret, since Ray shows it on its pages."""
    return {
        "env_vars": {
            "HF_HOME": f"{config.kube.mount}/huggingface",
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
    }


def ray_job(config: Config) -> Object:
    """All stages as a job on a cluster of its own, which ends with it."""
    kube, groups = config.kube, worker_groups(config)
    gpus = any(group.gpus for group in groups)
    spec: Object = {
        "entrypoint": entrypoint(config),
        "runtimeEnvYAML": yaml.safe_dump(runtime_env(config)),
        "submissionMode": "K8sJobMode",
        # A new cluster and the same run folder: stages that are done are not made again.
        "backoffLimit": kube.retries,
        "submitterConfig": {"backoffLimit": 2},
        "submitterPodTemplate": submitter(config, gpus),
        **_deletion(config),
        "rayClusterSpec": _cluster(config, groups, driver=True),
    }
    return _object(config, "RayJob", run_name(config), spec)


def ray_service(config: Config) -> Object:
    """The endpoint of stage publish; a changed one is up before the old one goes."""
    groups = worker_groups(config, ["publish"])
    cores, pods = min(group.cpus for group in groups), sum(group.pods for group in groups)
    threads = shared_out(config, "publish", cores, pods)
    endpoint = Endpoint.of(with_threads(config, threads), run_folder(config))
    serve: Object = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT},
        "applications": [
            {
                "name": "rayward",
                "route_prefix": "/",
                "import_path": APP,
                "args": endpoint.model_dump(mode="json"),
            }
        ],
    }
    spec: Object = {
        "serveConfigV2": yaml.safe_dump(serve, sort_keys=False),
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterDeletionDelaySeconds": OLD_CLUSTER_S,
        # It has no CPUs for replicas, and its work is to keep the cluster.
        "excludeHeadPodFromServeSvc": True,
        "rayClusterConfig": _cluster(config, groups, lasting=True),
    }
    return _object(config, "RayService", f"{run_name(config)}-chat", spec)


def ray_cluster(config: Config) -> Object:
    """A cluster of the same size to work on: `ray job submit`, notebooks, single stages."""
    stages: Iterable[str] = STAGES
    spec = _cluster(config, worker_groups(config, stages), driver=True, lasting=True)
    return _object(config, "RayCluster", f"{run_name(config)}-work", spec)


def objects(config: Config) -> dict[str, list[Object]]:
    """What each folder of the rendered files holds, beside what runs share."""
    folders = {
        "train": [config_map(config), ray_job(config)],
        "interactive": [config_map(config), ray_cluster(config)],
    }
    if has(config, "publish"):
        folders["serve"] = [ray_service(config)]
    return folders


def _object(config: Config, kind: str, name: str, spec: Object) -> Object:
    return {
        "apiVersion": API,
        "kind": kind,
        "metadata": metadata(config, name, _queue_labels(config)),
        "spec": spec,
    }


def _queue_labels(config: Config) -> dict[str, str]:
    """By which Kueue and Volcano know an object as theirs."""
    kube = config.kube
    if kube.scheduler == "kueue":
        names = {"kueue.x-k8s.io/queue-name": kube.queue}
        names["kueue.x-k8s.io/priority-class"] = kube.priority_class
    elif kube.scheduler == "volcano":
        names = {"ray.io/scheduler-name": "volcano", "volcano.sh/queue-name": kube.queue}
        names["ray.io/priority-class-name"] = kube.priority_class
    else:
        return {}
    return {name: value for name, value in names.items() if value}


def _deletion(config: Config) -> Object:
    """When a job's cluster goes: at once where it is done, after a while where it failed."""
    seconds = config.kube.keep_failed_s
    if config.kube.scheduler == "kueue":
        # Kueue takes back what it lent when the job ends, and takes no other rule.
        return {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": 0}
    rules = [
        ("SUCCEEDED", "DeleteCluster", 0),
        ("FAILED", "DeleteWorkers", 0),
        ("FAILED", "DeleteCluster", seconds),
    ]
    return {
        "deletionStrategy": {
            "deletionRules": [
                {"policy": policy, "condition": {"jobStatus": status, "ttlSeconds": after}}
                for status, policy, after in rules
            ]
        }
    }


def _cluster(
    config: Config, groups: list[Group], driver: bool = False, lasting: bool = False
) -> Object:
    """A Ray cluster. `driver`: the run's driver is on the head; `lasting`: the cluster outlives a
    restart of its head.
    """
    gpus = any(group.gpus for group in groups)
    spec: dict[str, Any] = {
        "rayVersion": versions.RAY,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": False,
        "headGroupSpec": {
            # Nothing of a run is placed there.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": head(config, gpus, driver),
        },
        "workerGroupSpecs": [
            {
                "groupName": group.name,
                "replicas": group.pods,
                "minReplicas": group.pods,
                "maxReplicas": group.pods,
                "rayStartParams": {},
                "template": worker(config, group, gpus),
            }
            for group in groups
        ],
    }
    if lasting:
        storage: Object = {"size": "1Gi"}
        spec["gcsFaultToleranceOptions"] = {"backend": "rocksdb", "storage": storage}
    return spec

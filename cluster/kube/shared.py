"""What runs of a namespace have in common: storage, an account without rights, network rules."""

from __future__ import annotations

from math import ceil
from urllib.parse import urlsplit

from rayward.cluster.kube.names import ACCOUNT, VOLUME, Object
from rayward.configs.schema import Config

TCP, UDP = "TCP", "UDP"
OURS = {"matchLabels": {"app.kubernetes.io/part-of": "rayward"}}
SHARED = {"app.kubernetes.io/part-of": "rayward"}
SERVE_PORT, DASHBOARD_PORT, AGENT_PORT, METRICS_PORT, GCS_PORT = 8000, 8265, 52365, 8080, 6379


def claim_name(config: Config) -> str:
    """The claim that pods mount."""
    return config.kube.claim or VOLUME


def namespace(config: Config) -> Object:
    """The namespace, which admits only pods that keep to the restricted standard."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": config.kube.namespace,
            "labels": SHARED | {"pod-security.kubernetes.io/enforce": "restricted"},
        },
    }


def account(config: Config) -> Object:
    """Pods talk to Ray only, so they get no token of the Kubernetes API."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": ACCOUNT, "namespace": config.kube.namespace, "labels": SHARED},
        "automountServiceAccountToken": False,
    }


def storage(config: Config) -> list[Object]:
    """The claim of the volume for runs and models; none where one is given."""
    kube = config.kube
    if kube.claim:
        return []
    size = {"storage": f"{ceil(kube.storage_gib)}Gi"}
    spec: Object = {"accessModes": ["ReadWriteMany"], "resources": {"requests": size}}
    if kube.storage_class is not None:
        spec["storageClassName"] = kube.storage_class
    volumes: list[Object] = []
    if kube.bucket:
        name = f"{kube.namespace}-{VOLUME}"  # volumes have no namespace
        csi: Object = {"driver": kube.bucket_driver, "volumeHandle": kube.bucket}
        if kube.bucket_attributes:
            csi["volumeAttributes"] = dict(kube.bucket_attributes)
        volumes = [
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name, "labels": SHARED},
                "spec": {
                    "capacity": size,
                    "accessModes": ["ReadWriteMany"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "",
                    "csi": csi,
                },
            }
        ]
        spec |= {"storageClassName": "", "volumeName": name}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": VOLUME, "namespace": kube.namespace, "labels": SHARED},
        "spec": spec,
    }
    return [*volumes, claim]


def network_policy(config: Config) -> Object:
    """Who may talk to the pods, and whom they may ask.

    In: each other, KubeRay's operator, Prometheus, and pods of the namespace at the endpoint. Out:
    each other, names, HTTPS, and the ports of the services that scoring.sources ask.
    """
    everywhere: Object = {}

    def app(name: str) -> Object:
        return {
            "namespaceSelector": everywhere,
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": name}},
        }

    asked = [{"protocol": TCP, "port": port} for port in sorted({443, *_service_ports(config)})]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "rayward", "namespace": config.kube.namespace, "labels": SHARED},
        "spec": {
            "podSelector": OURS,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"podSelector": OURS}]},
                {
                    "from": [app("kuberay-operator")],
                    "ports": _ports(DASHBOARD_PORT, AGENT_PORT, SERVE_PORT),
                },
                {"from": [app("prometheus")], "ports": _ports(METRICS_PORT)},
                {"from": [{"podSelector": everywhere}], "ports": _ports(SERVE_PORT)},
            ],
            "egress": [
                {"to": [{"podSelector": OURS}]},
                {"ports": [{"protocol": kind, "port": 53} for kind in (UDP, TCP)]},
                {"ports": asked},
            ],
        },
    }


def _ports(*numbers: int) -> list[Object]:
    return [{"protocol": TCP, "port": number} for number in numbers]


def _service_ports(config: Config) -> set[int]:
    """Of the addresses of http sources and judges, which stand behind an @."""
    ports = set()
    for source in config.scoring.sources:
        if source.target and "://" in source.target:
            url = urlsplit(source.target.rpartition("@")[2])
            ports.add(url.port or (443 if url.scheme == "https" else 80))
    return ports


def monitors(config: Config) -> list[Object]:
    """What the Prometheus operator reads: Ray's figures of head and workers."""
    kinds = {
        "ServiceMonitor": ("head", "endpoints"),
        "PodMonitor": ("worker", "podMetricsEndpoints"),
    }
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": kind,
            "metadata": {
                "name": f"rayward-{node}s",
                "namespace": config.kube.namespace,
                "labels": SHARED,
            },
            "spec": {
                "namespaceSelector": {"matchNames": [config.kube.namespace]},
                "selector": {"matchLabels": {"ray.io/node-type": node}},
                "jobLabel": "ray.io/cluster",
                endpoints: [{"port": "metrics", "path": "/metrics", "interval": "30s"}],
            },
        }
        for kind, (node, endpoints) in kinds.items()
    ]

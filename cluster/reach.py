"""Whether a Ray cluster answers: asked before Ray itself does, and told in a sentence.

Ray waits for minutes where nobody is, and then shows where in its code it gave up. All that is
wrong here is a ConfigError: an address or a token that is set otherwise mends it.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import time
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import ray
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.exceptions import AuthenticationError

from rayward.cluster.interfaces import interface_of, is_loopback
from rayward.cluster.ports import knock
from rayward.configs.load import ConfigError

ANSWER_WITHIN_S = 10
SUBMIT = "hand the run over with rayward submit"
TOKEN = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"


@dataclass(frozen=True)
class Head:
    """What the head of a cluster says of it."""

    address: str
    """HOST:PORT of Ray itself."""
    dashboard: str | None
    """URL that takes jobs; None where the head runs without one."""
    versions: dict[str, str]
    """ray_version and python_version."""
    nodes: tuple[str, ...]
    """Ids of the nodes that are up."""


def check_joins(address: str, named_by: str) -> None:
    """ConfigError where this process cannot join the cluster at `address`, set by `named_by`."""
    if os.environ.get("RAY_USE_TLS") == "1":  # with certificates, which only Ray's own client knows
        _connect(_place(address, named_by), f"{address} ({named_by})")
        return
    head = head_of(address, named_by)
    ours = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    told = {name: head.versions.get(name, ours[name]) for name in ours}
    if not _fits(told, ours):
        raise ConfigError(
            f"the cluster at {head.address} ({named_by}) has Ray {told['ray_version']} and Python "
            f"{told['python_version']}, this process has Ray {ours['ray_version']} and Python "
            f"{ours['python_version']}: install the cluster's here, or {SUBMIT}, which runs it "
            "with those of the cluster"
        )
    # Ray joins through a node on this machine, for which it would wait a minute.
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while not services.find_node_ids() & set(head.nodes):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"this machine is no node of the cluster at {head.address} ({named_by}): {SUBMIT}, "
                f"or make it a node first (ray start --address {head.address})"
            )
        time.sleep(0.5)
        head = head_of(address, named_by)


def head_of(address: str, named_by: str) -> Head:
    """What the head at an address of Ray (HOST:PORT or auto) says; ConfigError: why it does not."""
    if address == "auto":
        # As Ray does for this machine's cluster, which may have made a token of its own.
        logging.disable(logging.WARNING)
        try:
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        except AuthenticationError:
            raise _no_token(f"{address} ({named_by})") from None
        finally:
            logging.disable(logging.NOTSET)
    place = _place(address, named_by)
    who = f"{place} ({named_by})"
    _connect(place, who)
    try:
        told, dashboard, nodes = _ask(place, who)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise _token(who) from None
        raise ConfigError(
            f"what answers at {who} is no head of Ray {ray.__version__}: give the address that "
            "ray start --head printed"
        ) from None
    return Head(
        place,
        f"http://{dashboard.decode()}" if dashboard else None,
        json.loads(told) if told else {},
        nodes,
    )


def _ask(place: str, who: str) -> tuple[bytes, bytes, tuple[str, ...]]:
    """Versions as JSON, the dashboard's HOST:PORT, and ids of the nodes that are up, from the
    store of a cluster.

    Not by Ray's own client: it waits 40 s where something else answers, writes to the terminal, and
    aborts the process where a token is missing.
    """
    more = {"timeout": ANSWER_WITHIN_S, "metadata": tuple(_headers(who).items())}
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        store = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
        values = [
            store.InternalKVGet(
                gcs_service_pb2.InternalKVGetRequest(key=key, namespace=namespace), **more
            ).value
            for key, namespace in (
                (CLUSTER_METADATA_KEY, ray_constants.KV_NAMESPACE_CLUSTER),
                (ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD),
            )
        ]
        nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(
            gcs_service_pb2.GetAllNodeInfoRequest(), **more
        )
    alive = (node for node in nodes.node_info_list if node.state == GcsNodeInfo.ALIVE)
    return values[0], values[1], tuple(node.node_id.hex() for node in alive)


def dashboard_of(address: str, named_by: str) -> str:
    """The URL that takes jobs of a cluster, by that URL or by Ray's own address.

    ConfigError where it does not answer, or runs another Ray.
    """
    if "://" not in address:
        head = head_of(address, named_by)
        if not head.dashboard:
            raise ConfigError(
                f"the head at {head.address} ({named_by}) takes no jobs, since it runs without its "
                "dashboard: start it with ray start --head --include-dashboard true"
            )
        _check_reached(head, named_by)
        address = head.dashboard
    elif not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{named_by} is {address}, and jobs are handed over by HTTP: give "
            "http://HOST:8265 of the head"
        )
    url = address.rstrip("/")
    version = _version(url, f"{url} ({named_by})")
    if version != ray.__version__:
        raise ConfigError(
            f"the cluster at {url} ({named_by}) has Ray {version}, and this Rayward works with Ray "
            f"{ray.__version__}: install the same Rayward and Ray on both sides"
        )
    return url


def _check_reached(head: Head, named_by: str) -> None:
    """ConfigError where the dashboard of another machine listens for that one alone."""
    host = httpx.URL(head.dashboard or "").host
    if is_loopback(host) and not _is_here(head.address.rpartition(":")[0].strip("[]")):
        raise ConfigError(
            f"the head at {head.address} ({named_by}) takes jobs from its own machine only (its "
            f"dashboard listens at {host}): start it with ray start --head --dashboard-host "
            "0.0.0.0, or submit there"
        )


def _is_here(host: str) -> bool:
    """Whether a host, by name or address, is this machine."""
    try:
        address = socket.gethostbyname(host)
    except OSError:  # of IPv6: not known for another
        return True
    return interface_of(address) is not None


def _version(url: str, who: str) -> str:
    """The version of Ray behind a dashboard."""
    headers = _headers(who)
    try:
        answer = httpx.get(f"{url}/api/version", headers=headers, timeout=ANSWER_WITHIN_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"nobody answers at {who}: {_why(error)}; give the address of a dashboard that runs, "
            "http://HOST:8265 unless the head was started otherwise"
        ) from None
    if answer.status_code in (401, 403):
        raise _token(who)
    try:
        return str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"what answers at {who} is no dashboard of Ray (status {answer.status_code}): give "
            "http://HOST:8265 of the head"
        ) from None


def _place(address: str, named_by: str) -> str:
    """HOST:PORT that an address means."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{named_by} is {address}, the address of a dashboard, which takes jobs: {SUBMIT}, or "
            "give the address of Ray itself, HOST:6379"
        )
    if "://" in address:
        raise ConfigError(
            f"{named_by} is {address}, and Ray Client cannot run this: {SUBMIT}, or give the "
            "address of Ray itself, HOST:6379"
        )
    logging.disable(logging.ERROR)  # of a host without a name Ray prints a stack
    try:
        place = services.canonicalize_bootstrap_address(address)
        if place is None and address == "auto":
            place = next(iter(services.find_gcs_addresses()), None)
    except (ValueError, OSError):
        place = None
    finally:
        logging.disable(logging.NOTSET)
    if place is None and address == "auto":
        raise ConfigError(
            f"{named_by} is auto, and no Ray runs on this machine: start one (ray start --head), "
            "or give HOST:PORT of a head"
        )
    port = (place or "").rpartition(":")[2]
    if place is None or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"{named_by} is {address}, which is no address of Ray: give HOST:PORT of a head "
            "(usually HOST:6379)"
        )
    return place


def _connect(place: str, who: str) -> None:
    try:
        knock(place, ANSWER_WITHIN_S)
    except OSError as error:
        raise ConfigError(
            f"nobody answers at {who}: {_why(error)}; start Ray there (ray start --head), or give "
            "the address of a head that runs"
        ) from None


def _fits(cluster: dict[str, str], ours: dict[str, str]) -> bool:
    """Whether Ray lets a process of `ours` join."""
    level = os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch")
    parts = 2 if level == "minor" else 3
    pythons = [versions["python_version"].split(".")[:parts] for versions in (cluster, ours)]
    return cluster["ray_version"] == ours["ray_version"] and pythons[0] == pythons[1]


def _headers(who: str) -> dict[str, str]:
    """The token that was given, as Ray sends it; nothing where none is wanted."""
    try:
        return dict(AuthenticationTokenLoader.instance().get_token_for_http_header())
    except AuthenticationError:
        raise _no_token(who) from None


def _no_token(who: str) -> ConfigError:
    return ConfigError(
        f"a token is wanted here for the cluster at {who}, and there is none or its file cannot be "
        f"read: set {TOKEN} to that of its head"
    )


def _token(who: str) -> ConfigError:
    given = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    which = "no token was given" if not given else "the token given here is missing or another one"
    return ConfigError(
        f"the cluster at {who} asks for a token, and {which}: set {TOKEN} to that of its head"
    )


def _why(error: Exception) -> str:
    """A network's error in a few words."""
    cause: Any = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "the host's name is unknown"
        if isinstance(cause, ConnectionRefusedError):
            return "the connection was refused"
        if isinstance(cause, TimeoutError):
            return f"no answer within {ANSWER_WITHIN_S} s"
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__

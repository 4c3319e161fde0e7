"""The chat model as an OpenAI-compatible endpoint on Ray Serve (`ray.serve.llm`, on vLLM)."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.llm import LLMConfig, build_openai_app

from rayward.cluster.connect import joined_address
from rayward.cluster.hosts import head_address, several
from rayward.cluster.interfaces import is_loopback, of_groups
from rayward.cluster.ports import free_port
from rayward.cluster.run_name import run_name
from rayward.cluster.serve import keeper
from rayward.cluster.serve.endpoint import Endpoint
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Cluster

APP = "rayward"
ANYWHERE = ("0.0.0.0", "::")
"""Hosts that are addresses on every node."""


def llm_config(endpoint: Endpoint) -> LLMConfig:
    """The Serve configuration of a model."""
    engine: dict[str, Any] = {"dtype": endpoint.dtype, "max_model_len": endpoint.context_tokens}
    if endpoint.trust_remote_code:
        engine["trust_remote_code"] = True
    environment = {"VLLM_LOGGING_LEVEL": "ERROR"}
    if endpoint.gpus:
        engine |= {
            "gpu_memory_utilization": endpoint.gpu_memory_fraction,
            "tensor_parallel_size": endpoint.gpus,
        }
        # On one host, which may have other interfaces than this one.
        environment |= {n: v for n, v in of_groups().items() if not n.endswith("_SOCKET_IFNAME")}
        # One bundle for each GPU that the model is split over, all on one host.
        placement: dict[str, Any] = {
            "placement_group_config": {
                "bundles": [{"GPU": 1, "CPU": 1}] * endpoint.gpus,
                "strategy": "STRICT_PACK",
            }
        }
    else:
        engine |= {"enforce_eager": True, "max_num_seqs": 16}
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(endpoint.kv_cache_gib),
            # Replicas that bind by themselves would all take the same cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(endpoint.threads),
        }
        placement = {
            "accelerator_config": {"kind": "cpu"},
            "placement_group_config": {"bundles": [{"CPU": 0.5}]},
        }
    return LLMConfig(
        model_loading_config={"model_id": endpoint.model_id, "model_source": endpoint.folder},
        engine_kwargs=engine,
        deployment_config={
            "num_replicas": endpoint.replicas,
            "ray_actor_options": {"num_cpus": 0.1},
        },
        runtime_env={"env_vars": environment},
        log_engine_metrics=False,
        **placement,
    )


def application(endpoint: Endpoint) -> serve.Application:
    """The OpenAI-compatible application; ValueError where there is no model."""
    return build_openai_app(
        {
            "llm_configs": [llm_config(endpoint)],
            "ingress_deployment_config": {"ray_actor_options": {"num_cpus": 0.1}},
        }
    )


def app_name(config: Config, run_folder: Path) -> str:
    """The application of a run; on a joined cluster one of its own, as others may serve there."""
    if not joined_address(config.cluster):
        return APP
    return run_name(config.name, str(run_folder.resolve()))


def start(folder: str, config: Config, run_folder: Path) -> str:
    """Start the endpoint and wait until every replica is up; its base URL (…/v1).

    Raises TimeoutError where that takes longer than publish.start_timeout_s.
    """
    publish = config.publish
    name = app_name(config, run_folder)
    url = publish_app(
        lambda: application(Endpoint.of(config, folder)),
        name,
        publish.host,
        publish.port,
        publish.start_timeout_s,
        ("publish.host", "publish.start_timeout_s"),
        # Of a Ray of our own / is ours; on a cluster two runs cannot both have it.
        "/" if name == APP else f"/{name}",
        config.cluster,
    )
    return url + "/v1"


def publish_app(
    build: Callable[[], serve.Application],
    name: str,
    host: str | None,
    port: int,
    timeout_s: float,
    settings: tuple[str, str],
    route: str = "/",
    cluster: Cluster | None = None,
) -> str:
    """Run a Serve application at `route` of the head node and wait until it is up; its URL.

    `host` None listens where Ray does on a cluster of several hosts, so that they reach it, and
    else on loopback. Port 0 takes a free one. Where Serve runs on the cluster already, its address
    and port are used, not those given. Prints who else reaches it. Raises TimeoutError, and what
    Serve raises. `settings`: what the user calls `host` and `timeout_s`. `build` is called when
    Serve has started. On a joined cluster it is taken down with this process, however that ends.
    """
    if joined_address(cluster or Cluster()):
        keeper.hold(name)
    # Of the head, on which Serve's proxy runs.
    address = head_address() if several() else "127.0.0.1"
    wanted = host or address
    # Its greeting comes before the level that it is given.
    logging.disable(logging.WARNING)
    try:
        _start_serve({"host": wanted, "port": port or free_port()})
    finally:
        logging.disable(logging.NOTSET)
    for logger in ("", "ray.serve", "httpx"):  # Serve turns the whole process's logging on
        logging.getLogger(logger).setLevel(logging.ERROR)
    http = _get_global_client().http_config  # of the Serve that runs, ours or an older one
    # `serve.run` waits without a deadline of its own, so a thread waits for it. A daemon: one that
    # is late does not keep the process.
    failures: list[BaseException] = []
    starting = threading.Thread(target=_run, args=(build(), name, route, failures), daemon=True)
    starting.start()
    starting.join(timeout_s)
    if failures:
        raise failures[0]
    if starting.is_alive():
        status = serve.status().applications.get(name)  # none yet where Serve is that slow
        raise TimeoutError(
            f"the endpoint was not up within {timeout_s:.0f} s; if the model only loads slowly, "
            f"allow it more ({settings[1]}); Serve says: "
            f"{status.message if status and status.message else 'nothing'}"
        )
    tell_who_reaches(http.host, http.port, wanted, settings[0])
    shown = address if http.host == "0.0.0.0" else http.host
    return f"http://{shown}:{http.port}{route.rstrip('/')}"


def tell_who_reaches(host: str, port: int, wanted: str, setting: str) -> None:
    """Say who may ask a model behind `host`, where that is more than this machine.

    `wanted`: the host that `setting` asked for.
    """
    if is_loopback(host):
        return
    who = "on any network of the head" if host in ANYWHERE else f"who reaches {host}"
    change = (
        f"{setting} 127.0.0.1 leaves it to the head's own machine"
        if host == wanted
        else f"Serve was up before with that address, so {setting} changes nothing"
    )
    print(f"   note: anyone {who}, port {port}, can ask the model: there is no key; {change}")


def _start_serve(http: dict[str, Any]) -> None:
    """Start Serve, or join the one that runs."""
    tries = 20
    while True:
        try:
            serve.start(
                # Ray's own is a proxy on each node with a replica, which cannot have an address of
                # the head: it would fail, and be started again.
                None if http["host"] in ANYWHERE else "HeadOnly",
                http_options=http,
                logging_config={"log_level": "ERROR", "enable_access_log": False},
            )
            return
        except ValueError as error:
            # Ray looks whether one runs and then starts it: another run may come between the two.
            tries -= 1
            if "already exists" not in str(error) or not tries:
                raise
            time.sleep(0.5)


def _run(app: serve.Application, name: str, route: str, failures: list[BaseException]) -> None:
    try:
        serve.run(app, name=name, route_prefix=route, blocking=False)
    except BaseException as error:  # any: `publish_app` raises it in the thread that waits
        failures.append(error)


def stop(cluster: Cluster, name: str = APP) -> None:
    """Take the endpoint down; of a joined cluster also Serve, where nobody else needs it."""
    if joined_address(cluster):
        keeper.release(name)
    elif _get_global_client(raise_if_no_controller_running=False):
        # A Ray that this process has started ends with it, and Serve with Ray.
        serve.delete(name)


def stop_after_error(cluster: Cluster, name: str = APP) -> None:
    """The same where another error is on its way, which one of this must not replace."""
    try:
        stop(cluster, name)
    except Exception as error:  # any: the other one is the cause
        why = (str(error).strip() or repr(error)).splitlines()[-1]
        print(f"rayward: the endpoint {name} may still be up: {why}", file=sys.stderr)

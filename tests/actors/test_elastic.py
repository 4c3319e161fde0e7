"""A role that may have fewer processes goes on without those whose host is gone, and takes them
back when there is room again. Three of Ray's nodes on this machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile

import pytest

pytestmark = pytest.mark.timeout(240)
SCRIPT = """
import json, os, sys, time
import ray
from ray.cluster_utils import Cluster as Nodes
from rayward.actors.renewable import RenewableGroup
from rayward.cluster.placement import Placement
from rayward.configs.sections.machines import Cluster, EngineRole, Role

few = {"object_store_memory": 10**8}
nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, **few})
second = nodes.add_node(num_cpus=1, **few)
ray.init(address=nodes.address, log_to_driver=False)
cluster = Cluster(start_timeout_s=60, call_timeout_s=30, retries=3)


class Here:
    def __init__(self, rank):
        pass

    def node(self):
        return ray.get_runtime_context().get_node_id()

    def work(self, seconds):
        time.sleep(seconds)
        return "done"


role = EngineRole(workers={"min": 1, "max": 3}, cpus=1)
placement = Placement({"rollout": role}, cluster)
group = RenewableGroup(
    "rollout", Here, role, cluster, (), placement.seats("rollout"), later=placement.later("rollout")
)
group.ready()
said = {"at first": len(set(group.call("node"))), "none yet": group.take_back()}


def joined(count):
    for _ in range(300):
        count -= group.take_back()
        if not count:
            return True
        time.sleep(0.1)


third = nodes.add_node(num_cpus=1, **few)
said["one more"] = joined(1)
said["then"] = len(set(group.call("node")))
calls = group.begin("work", 3.0)
nodes.remove_node(second, allow_graceful=False)
said["without the lost one"] = group.finish(calls)
said["left"] = len(set(group.call("node")))
nodes.add_node(num_cpus=1, **few)
said["back"] = joined(1)
said["all again"] = len(set(group.call("node")))
group.stop()
placement.remove()
ray.shutdown()
nodes.shutdown()
print(json.dumps(said))
"""


@pytest.mark.slow
def test_a_host_goes_and_another_comes() -> None:
    # Ray leaves the address of such a cluster where others look for one. A short path, for sockets.
    with tempfile.TemporaryDirectory(prefix="rw") as folder:
        environment = os.environ | {"RAY_TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {
        "at first": 2,
        "none yet": 0,
        "one more": True,
        "then": 3,
        "without the lost one": ["done", "done"],
        "left": 2,
        "back": True,
        "all again": 3,
    }
    assert re.search(r"no room for rollout \d: goes on with 2 until there is", done.stdout)

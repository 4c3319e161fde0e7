"""Mode colocate: engine and learners of a rank on the same GPU, each rank on its own. Ray is told
of two GPUs here.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(180)
SCRIPT = """
import json
import ray
from actors.group import Group
from cluster.placement import Placement
from configs.load import load
from configs.plan import roles

shares = [
    "resources.rollout={workers: 2, gpus: 0.4}",
    "resources.policy={workers: 2, gpus: 0.4}",
    "resources.critic={workers: 2, gpus: 0.2}",
    "rl.mode=colocate",
    "resources.rollout.cpus=0.1",
]
config = load("quickstart", shares)
ray.init(
    address="local",
    num_cpus=4,
    num_gpus=2,
    include_dashboard=False,
    log_to_driver=False,
    object_store_memory=10**8,
)


class Here:
    def __init__(self, rank):
        pass

    def gpus(self):
        return ray.get_gpu_ids()


placement = Placement(roles(config, "rl"), config.cluster, config)
groups = [
    Group("one", Here, getattr(config.resources, name), config.cluster, (), placement.seats(name))
    for name in ("rollout", "policy", "critic")
]
print(json.dumps([group.call("gpus") for group in groups]))
"""


def test_ranks_that_take_turns_stand_on_one_gpu_each() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    engines, policies, critics = json.loads(done.stdout.splitlines()[-1])
    assert engines == policies == critics and sorted(engines) == [[0], [1]]

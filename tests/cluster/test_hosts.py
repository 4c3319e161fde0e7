"""Several hosts, each a network namespace of this machine with an address of its own, and the real
Ray and Rayward over them (cluster/local_cluster.sh).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from rayward.cluster.ports import free_port
from tests.cluster.ray_head import until
from tests.cluster.test_slurm import shellcheck
from tests.conftest import SMALL, TinyModels
from tests.same_run import differences

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "local_cluster.sh"
NAME = f"rw{os.getpid() % 10000}"
NET = f"10.{64 + os.getpid() % 64}.77"
# RL alone: what Ray Train does over hosts is among the slow tests.
RL = ("--stages", "prepare,rl", "--set", "sft=null", "--set", "reward=null")
TRAINED = ("--stages", "prepare,sft,reward")
pytestmark = pytest.mark.timeout(400)

# Three hosts of two CPUs: a rank of the policy takes most of one. Sizes decide no result.
PLACES = {
    "train": {"workers": 2, "cpus": 1.5, "threads": 1},
    "policy": {"workers": 2, "cpus": 1.5, "threads": 1},
    "reference": {"cpus": 0.2, "threads": 1},
    "reward": {"cpus": 0.2, "threads": 1},
    "rollout": {"workers": 2, "cpus": 0.4, "threads": 1},
}
CONFIG = SMALL | {
    "resources": PLACES,
    "rl": {
        **{key: value for key, value in SMALL["rl"].items() if key not in ("ppo", "apa")},
        "algorithms": ["rloo"],
        "rloo": {"learning_rate": 1e-3},
    },
    "sample": None,
    "dpo": None,
    "evaluate": None,
    "publish": None,
}


class Hosts:
    """Three hosts that are up."""

    def __init__(self, folder: Path):
        self.folder = folder
        # Nor what a test that ran before in this process has set for its groups.
        ours = ("RAY", "GLOO_", "NCCL_", "VLLM_HOST_IP")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "LOCAL_CLUSTER": NAME,
            "LOCAL_CLUSTER_NET": NET,
            "LOCAL_CLUSTER_GPUS": "2",
            # A host that is cut off is taken for dead after 15 s, in place of Ray's 65. Less would
            # make hosts dead that are only busy, when all start at once on two cores.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "4000",
            "RAY_health_check_failure_threshold": "3",
        }
        self.script("up", "3")

    def script(self, *arguments: str) -> str:
        done = subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    def start(self, *command: str, log: Path) -> subprocess.Popen[str]:
        """A command on host 1."""
        with log.open("w") as output:
            return subprocess.Popen(
                ["bash", str(SCRIPT), "run", *command],
                env=self.environment,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )

    def python(self, code: str) -> str:
        """What a program on host 1 prints."""
        return self.script("run", "python", "-c", code)

    def said(self, code: str) -> Any:
        """What it prints as JSON; Ray may print more."""
        return said(self.python(code))


def said(printed: str) -> Any:
    return json.loads([line for line in printed.splitlines() if line.startswith("[")][-1])


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, tiny_models: TinyModels) -> Iterator[Hosts]:
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    probe = subprocess.run(["ip", "netns", "add", f"{NAME}p"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no network namespaces here: {probe.stderr.strip()}")
    subprocess.run(["ip", "netns", "del", f"{NAME}p"], check=True)
    folder = tmp_path_factory.mktemp("hosts")
    try:
        cluster = Hosts(folder)
        sources = {"scoring": {"sources": [{"paths": [tiny_models.reward]}]}}
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | sources))
        yield cluster
    finally:
        subprocess.run(["bash", str(SCRIPT), "down"], env=os.environ | {"LOCAL_CLUSTER": NAME})


def test_shellcheck_finds_nothing() -> None:
    assert shellcheck(SCRIPT).stdout == ""


def test_without_a_word_it_says_how_it_is_used() -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2 and "local_cluster.sh up N" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_others_have_put_in_its_place_ends_nothing(tmp_path: Path) -> None:
    state = Path("/tmp") / f"{NAME}o"
    bystander = subprocess.Popen(["sleep", "60"])
    down = ["bash", str(SCRIPT), "down"]
    try:
        (tmp_path / "pids").write_text(f"{bystander.pid}\n")
        state.symlink_to(tmp_path)
        environment = os.environ | {"LOCAL_CLUSTER": state.name}
        done = subprocess.run(down, env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and f"{state} is a link" in done.stderr
        state.unlink()
        shutil.copytree(tmp_path, state)
        os.chown(state, 65534, 65534)
        done = subprocess.run(down, env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and f"{state} is somebody else's" in done.stderr
        assert bystander.poll() is None and (state / "pids").is_file()
    finally:
        bystander.kill()
        bystander.wait()
        if state.is_symlink():
            state.unlink()
        shutil.rmtree(state, ignore_errors=True)


NODES = """
import json, ray
ray.init(logging_level="ERROR", log_to_driver=False)
found = {node["NodeManagerAddress"]: node["Resources"]["CPU"] for node in ray.nodes()}
print(json.dumps(list(found.items())))
"""


@pytest.mark.slow
def test_without_namespaces_loopback_addresses_stand_for_hosts(tmp_path: Path) -> None:
    name = f"rw{os.getpid() % 10000}l"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LOCAL_CLUSTER": name,
        "LOCAL_CLUSTER_KIND": "loopback",
        "LOCAL_CLUSTER_CPUS": "3,1",
        "LOCAL_CLUSTER_PORT": str(free_port()),
    }

    def script(*arguments: str, status: int = 0) -> str:
        command = ["bash", str(SCRIPT), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=120
        )
        assert done.returncode == status, (done.stdout + done.stderr)[-4000:]
        return done.stdout + done.stderr

    try:
        assert "no network namespaces: 2 loopback addresses" in script("up", "2")
        nodes = dict(said(script("run", "python", "-c", NODES)))
        # In place of 127.0.0.1 Ray tells the machine's own.
        assert nodes.pop("127.0.0.2") == 1 and list(nodes.values()) == [3]
        assert "is a loopback address, which cannot be cut" in script("cut", "2", status=1)
        assert f"/tmp/{name} is there" in script("up", "2", status=1)
    finally:
        script("down")
    assert not Path("/tmp", name).exists()
    assert f"no cluster {name} is up" in script("run", "true", status=1)

    def left() -> list[str]:
        every = psutil.process_iter(["cmdline"])
        lines = [" ".join(process.info["cmdline"] or ()) for process in every]
        return [line for line in lines if f"/tmp/{name}/" in line]

    until(lambda: not left(), 20, lambda: str(left()))


WHERE = """
import json, sys, time
import ray
from rayward.actors.group import Group
from rayward.cluster.connect import connect
from rayward.cluster.placement import Placement, train_hosts
from rayward.configs.sections.machines import Cluster, Role

cluster = Cluster(start_timeout_s=60)
connect(cluster)

class Here:
    def __init__(self, rank):
        pass
    def place(self):
        return [ray.util.get_node_ip_address(), ray.get_gpu_ids()]
    def told(self):
        import os
        from rayward.cluster.interfaces import use_own_interface
        use_own_interface()
        return [os.environ.get(name) for name in ("GLOO_SOCKET_IFNAME", "NCCL_NET", "OTHER")]
"""
PACKED = """
table = {
    "policy": Role(workers=4, gpus=1, cpus=0.1),
    "rollout": Role(gpus=1, cpus=0.1),
    "reward": Role(cpus=0, gpus=0),
}
with Placement(table, cluster) as placement:
    said = placement.plan.addresses()
    groups = {
        name: Group(name, Here, role, cluster, (), placement.seats(name))
        for name, role in table.items()
    }
    answers = {name: group.call("place") for name, group in groups.items()}
    told = groups["policy"].call("told")
    for group in groups.values():
        group.stop()
try:
    Placement({"rollout": Role(gpus=3, cpus=0.1)}, cluster)
except ValueError as error:
    print(json.dumps([said, answers, told, str(error)]))
"""


@pytest.mark.slow
def test_ranks_follow_hosts_and_gpus_as_planned(hosts: Hosts) -> None:
    """And what users set for Gloo and NCCL reaches them."""
    given = ("env", "GLOO_SOCKET_IFNAME=e0", "NCCL_NET=Socket", "OTHER=no")
    planned, answers, told, refused = said(
        hosts.script("run", *given, "python", "-c", WHERE + PACKED)
    )
    for name, places in answers.items():
        assert [address for address, _ in places] == planned[name], name
    assert answers["policy"] == [[f"{NET}.{host}", [gpu]] for host in (1, 2) for gpu in (0, 1)]
    # What is left.
    assert [address for address, _ in answers["rollout"]] == [f"{NET}.3"]
    assert told == [["e0", "Socket", None]] * 4
    # Six GPUs, and no host with three.
    assert "rollout finds no host with 0.1 CPU, 3 GPU to spare" in refused
    assert f"host {NET}.2: 2 CPU, 2 GPU" in refused


SERVES = """
import subprocess
from ray import serve
from rayward.cluster.serve.deploy import publish_app, stop

ASKS = "import sys, httpx; print(httpx.get(sys.argv[1], trust_env=False).text)"

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Hello:
    def __call__(self, request):
        return "hello"

url = publish_app(lambda: Hello.bind(), "hello", None, 0, 60, ("a host", "a wait"))
from_host_2 = ["ip", "netns", "exec", sys.argv[1], sys.executable, "-c", ASKS, url]
said = subprocess.run(from_host_2, capture_output=True, text=True)
print(json.dumps([url, said.stdout.strip() or said.stderr]))
stop(cluster, "hello")
"""


@pytest.mark.slow
def test_what_is_published_is_reached_from_another_host(hosts: Hosts) -> None:
    printed = hosts.script("run", "python", "-c", WHERE + SERVES, f"{NAME}2")
    url, answer = said(printed)
    assert url.startswith(f"http://{NET}.1:") and answer == "hello"
    assert f"note: anyone who reaches {NET}.1, port {url.rsplit(':')[-1]}, can ask" in printed
    assert "there is no key; a host 127.0.0.1 leaves it to the head's own machine" in printed


HOLDER = """
group = Group("policy", Here, Role(workers=2, cpus=1.5), cluster, ())
print(json.dumps(sorted(address for address, _ in group.call("place"))), flush=True)
time.sleep(600)
"""
NEXT = """
try:
    Placement({"policy": Role(workers=3, cpus=1.5)}, Cluster(start_timeout_s=1))
except TimeoutError as error:
    # Elsewhere, where there is room.
    one = Placement({"policy": Role(cpus=1.5)}, cluster).plan.addresses()["policy"]
    try:
        train_hosts(Role(workers=3, cpus=1.5), Cluster(start_timeout_s=1))
    except TimeoutError as of_train:
        print(json.dumps([str(error), one, str(of_train)]))
"""
LEFT = """
from ray._private.state import actors
from ray.util import placement_group_table
from tests.cluster.ray_head import RAYS_OWN

def left():
    alive = [a["ActorClassName"] for a in actors().values() if a["State"] != "DEAD"]
    alive = [name for name in alive if name not in RAYS_OWN]
    groups = [g["state"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
    return alive + groups

until = time.monotonic() + 20
while left() and time.monotonic() < until:
    time.sleep(0.2)
print(json.dumps(left()))
"""


@pytest.mark.slow
def test_runs_share_no_place_and_a_killed_one_leaves_none(hosts: Hosts, tmp_path: Path) -> None:
    holder = hosts.start("python", "-c", WHERE + HOLDER, log=tmp_path / "log.txt")
    try:
        until = time.monotonic() + 60
        while "[" not in (tmp_path / "log.txt").read_text():
            assert time.monotonic() < until and holder.poll() is None
            time.sleep(0.2)
        told, one, of_train = hosts.said(WHERE + NEXT)
        assert "others use it: policy 1 of 3 (from 0) finds no host with" in told
        assert "others use it: train 1 of 3 (from 0) finds no host with" in of_train
        assert {*one, *said((tmp_path / "log.txt").read_text())} == {
            f"{NET}.{number}" for number in (1, 2, 3)
        }
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
    assert hosts.said(WHERE + LEFT) == []


@pytest.fixture(scope="module")
def run(hosts: Hosts) -> Path:
    """RL over three hosts."""
    return over_hosts(hosts, "three", *RL)


def over_hosts(hosts: Hosts, name: str, *options: str) -> Path:
    log = hosts.folder / f"{name}.txt"
    command = ["rayward", "align", "config.yaml", "--run", name, *options]
    done = hosts.start(*command, log=log).wait(300)
    assert done == 0, log.read_text()[-4000:]
    return hosts.folder / name


def on_one(hosts: Hosts, name: str, *options: str) -> Path:
    """The same on this host alone."""
    command = [str(Path(sys.executable).parent / "rayward"), "align", "config.yaml"]
    command += ["--run", name, *options]
    for role in ("train", "policy"):
        command += ["--set", f"resources.{role}.cpus=0.2"]
    environment = {k: v for k, v in hosts.environment.items() if not k.startswith("RAY")}
    done = subprocess.run(
        command, env=environment, cwd=hosts.folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return hosts.folder / name


def unlike(one: Path, three: Path) -> list[str]:
    """What differs, but for what is of the machine."""
    left_out = (".lock", "machine.json", "config.yaml", "summary.json")
    return [line for line in differences(one, three) if not line.startswith(left_out)]


def places(log: str, role: str) -> list[str]:
    """The hosts of a role's actors, as they said themselves when RL began."""
    (found,) = re.findall(rf"^   {role} on (.*)$", log, re.MULTILINE)
    return found.split(", ")


def test_everybody_stands_where_the_plan_says(hosts: Hosts, run: Path) -> None:
    log = (hosts.folder / "three.txt").read_text()
    one, two, three = (f"{NET}.{n}" for n in (1, 2, 3))
    assert places(log, "policy") == [one, two]
    assert places(log, "rollout") == [three, one]
    assert places(log, "reward") == places(log, "reference") == [three]
    stages = ("--stages", "prepare,sft,rl", "--set", "reward=null")
    command = ("rayward", "align", "config.yaml", "--run", "new", *stages, "--dry-run")
    plan = hosts.script("run", *command)
    assert f"  rl        policy     0 on {one}; 1 on {two}\n" in plan
    assert f"  rl        rollout    0 on {three}; 1 on {one}\n" in plan
    assert f"  rl        reward     0 on {three}\n" in plan
    assert f"  sft       train      0 on {one}; 1 on {two}\n" in plan


def test_doctor_finds_the_way_between_hosts(hosts: Hosts) -> None:
    said = hosts.script("run", "rayward", "doctor")
    assert re.search(r"Gloo between nodes +3 nodes, 32 MiB summed at \d+\.\d\d GB/s", said), said
    assert "NCCL" not in said and "a run can start here" in said


def test_three_hosts_give_the_bits_of_one(hosts: Hosts, run: Path) -> None:
    assert unlike(on_one(hosts, "one", *RL), run) == []
    assert (run / "rl" / "rloo" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_training_over_hosts_gives_the_bits_of_one(hosts: Hosts) -> None:
    trained = over_hosts(hosts, "trained", *TRAINED)
    assert unlike(on_one(hosts, "trained-on-one", *TRAINED), trained) == []
    assert (trained / "reward" / "model" / "model.safetensors").is_file()


WATCH = """
from ray._private.state import state
while True:
    if gone := [node["NodeManagerAddress"] for node in ray.nodes() if not node["Alive"]]:
        print(json.dumps([gone, time.time()]), flush=True)
        break
    time.sleep(0.1)
"""


@pytest.mark.slow
def test_a_host_that_is_cut_off_ends_the_run(hosts: Hosts, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, hosts.folder / "cut")
    shutil.rmtree(hosts.folder / "cut" / "rl")
    log = tmp_path / "log.txt"
    command = ["rayward", "align", "config.yaml", "--run", "cut", *RL]
    command += ["--set", "rl.iterations=500", "--set", "cluster.retries=0"]
    watcher = hosts.start("python", "-c", WHERE + WATCH, log=tmp_path / "watch.txt")
    started = hosts.start(*command, log=log)
    metrics, until = hosts.folder / "cut" / "rl" / "rloo" / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 1):
        assert started.poll() is None and time.monotonic() < until, log.read_text()[-4000:]
        time.sleep(0.2)
    hosts.script("cut", "2")
    try:
        assert started.wait(120) == 1, log.read_text()[-4000:]
        ended_at = time.time()
        assert watcher.wait(30) == 0
        gone, noticed_at = said((tmp_path / "watch.txt").read_text())
        assert gone == [f"{NET}.2"]
        assert ended_at - noticed_at < 10
        told = log.read_text().splitlines()[-1]
        assert told.startswith(f"rayward: host {NET}.2 is gone: "), log.read_text()[-4000:]
        assert hosts.said(WHERE + LEFT) == []
    finally:
        hosts.script("mend", "2")

"""`rayward kube render`: every file against the definitions of KubeRay and Kubernetes, and what the
config asks against what the pods have.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayward.cluster.kube import versions
from rayward.cluster.kube.names import run_name
from rayward.cluster.kube.overlays import merge_patch
from rayward.cluster.kube.ray_objects import entrypoint, objects
from rayward.cluster.kube.render import render
from rayward.cluster.kube.sizes import sized
from rayward.configs.load import ConfigError, load
from rayward.configs.schema import Config
from rayward.configs.sections.kube import TAKEN, Kube
from rayward.pipelines.cli import main
from tests.cluster.kube_schemas import RAY_KINDS, mistakes

ROOT = Path(__file__).parents[2]
SIZES = [(1, 8), (8, 8)]
JUDGED = [
    "kube.scheduler=kueue",
    "kube.queue=research",
    "kube.priority_class=high",
    "kube.image=registry.example:5000/team/rayward",
    "kube.node_selector={gpu: h100}",
    "kube.bucket=our-runs",
    "kube.bucket_attributes={fileCacheCapacity: 10Gi}",
    "scoring.sources=[{kind: judge, target: 'big@https://judge.example:8443/v1', key: JUDGE_KEY}]",
]
CONFIGS = {
    "quickstart": ["data.root=/shared/data"],
    "smollm2": ["data.root=/shared/data", *JUDGED],
    "dpo_smollm2": ["data.root=/shared/data", "kube.claim=team", "kube.priority_class=low"],
    "real_small": ["data.root=/shared/data", "kube.scheduler=volcano", "kube.queue=q"],
}


@pytest.fixture(scope="module", params=CONFIGS)
def rendered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Path]:
    """A config and the folder of its files."""
    config = load(request.param, CONFIGS[request.param])
    folder = tmp_path_factory.mktemp("kube")
    render(config, folder, SIZES)
    return config, folder


def documents(folder: Path) -> dict[str, dict[str, Any]]:
    """The objects of one folder by their files; overlays are patches and not among them."""
    return {
        str(path.relative_to(folder)): yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.yaml"))
        if path.name != "kustomization.yaml" and "overlays" not in path.parts
    }


def pod_templates(item: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(replicas, template) of every pod that an object asks for."""
    spec = item["spec"]
    if template := spec.get("submitterPodTemplate"):
        yield 1, template
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    if "headGroupSpec" in cluster:
        yield 1, cluster["headGroupSpec"]["template"]
        yield from ((g["replicas"], g["template"]) for g in cluster["workerGroupSpecs"])


def ray_objects(folder: Path) -> list[dict[str, Any]]:
    return [item for item in documents(folder).values() if item["kind"] in RAY_KINDS]


def test_every_file_keeps_to_its_definition(rendered: tuple[Config, Path]) -> None:
    _, folder = rendered
    found = documents(folder)
    assert len(found) >= 8
    for name, item in found.items():
        if item["kind"] not in ("ServiceMonitor", "PodMonitor"):
            assert mistakes(item) == [], name


PLANTED: list[tuple[str, str, Any]] = [
    ("RayJob", "spec.backofLimit", 3),
    ("RayJob", "spec.backoffLimit", "three"),
    ("RayJob", "spec.deletionStrategy.deletionRules.0.policy", "DeleteAll"),
    ("RayJob", "spec.deletionStrategy.deletionRules.0.condition.jobDeploymentStatus", "Failed"),
    ("RayJob", "spec.deletionStrategy.onSuccess", {"policy": "DeleteSelf"}),
    ("RayJob", "spec.managedBy", "somebody"),
    ("RayJob", "spec.submitterPodTemplate.spec.containers.0.image", ["rayward"]),
    ("RayService", "spec.rayClusterConfig.headGroupSpec.template.spec.containers", "none"),
    ("RayService", "spec.serveConfig", "text"),
    ("RayService", "spec.rayClusterConfig.gcsFaultToleranceOptions.backend", "sqlite"),
    ("RayCluster", "spec.workerGroupSpecs.0.minReplicas", "one"),
    ("RayCluster", "spec.authOptions.mode", "password"),
    ("RayCluster", "spec.workerGroupSpecs.0.template.spec.tolerances", []),
    ("Namespace", "spec.finalizer", []),
    ("ServiceAccount", "automountServiceAccountToken", "no"),
    ("PersistentVolumeClaim", "spec.accessModes", "ReadWriteMany"),
    ("NetworkPolicy", "spec.ingress.0.form", []),
    ("ConfigMap", "data.config.yaml", 3),
]


@pytest.mark.parametrize(("kind", "path", "value"), PLANTED)
def test_a_wrong_field_is_caught(kind: str, path: str, value: Any, tmp_path: Path) -> None:
    render(load("quickstart"), tmp_path, [])
    item = next(item for item in documents(tmp_path).values() if item["kind"] == kind)
    assert mistakes(item) == []
    keys = path.split(".") if kind != "ConfigMap" else ["data", "config.yaml"]
    inner: Any = item
    for key in keys[:-1]:
        inner = inner[int(key)] if isinstance(inner, list) else inner.setdefault(key, {})
    inner[keys[-1]] = value
    assert mistakes(item) != []


def test_a_missing_field_is_caught(tmp_path: Path) -> None:
    render(load("quickstart"), tmp_path, [])
    for item in ray_objects(tmp_path):
        cluster = item["spec"]
        cluster = cluster.get("rayClusterSpec") or cluster.get("rayClusterConfig") or cluster
        del cluster["headGroupSpec"]
        assert any("headGroupSpec" in line for line in mistakes(item)), item["kind"]


def test_images_have_the_version_and_ray_is_that_of_the_locks(
    rendered: tuple[Config, Path],
) -> None:
    config, folder = rendered
    assert versions.KUBERAY == "1.7.0", "that of ../shared/kuberay"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == versions.RAYWARD
    for kind in ("cpu", "gpu"):
        lock = (ROOT / "requirements" / f"{kind}.lock").read_text()
        found = re.search(r"^ray==(\S+)", lock, re.MULTILINE)
        assert found and found[1] == versions.RAY
    for item in ray_objects(folder):
        cluster = item["spec"].get("rayClusterSpec") or item["spec"].get("rayClusterConfig")
        assert (cluster or item["spec"])["rayVersion"] == versions.RAY
        for _, template in pod_templates(item):
            for container in template["spec"]["containers"]:
                expected = f"{config.kube.image}-cpu:{project['version']}"
                assert container["image"] == expected


def test_pods_have_no_rights_and_a_root_that_is_read_only(rendered: tuple[Config, Path]) -> None:
    for item in ray_objects(rendered[1]):
        for _, template in pod_templates(item):
            spec = template["spec"]
            assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"]
            assert spec["automountServiceAccountToken"] is False
            volumes = {volume["name"] for volume in spec["volumes"]}
            for container in spec["containers"]:
                context = container["securityContext"]
                assert context["readOnlyRootFilesystem"] is True
                assert context["allowPrivilegeEscalation"] is False
                assert context["capabilities"] == {"drop": ["ALL"]}
                resources = container["resources"]
                assert resources["requests"] == resources["limits"] != {}
                mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
                assert {*mounts.values()} <= {*TAKEN, rendered[0].kube.mount}
                assert set(mounts) == volumes and mounts["tmp"] == "/tmp"


def test_the_head_takes_no_actor_and_asks_for_a_token(rendered: tuple[Config, Path]) -> None:
    for item in ray_objects(rendered[1]):
        cluster = item["spec"].get("rayClusterSpec") or item["spec"].get("rayClusterConfig")
        cluster = cluster or item["spec"]
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["authOptions"] == {"mode": "token"}


def test_kueue_gets_no_deletion_rules_and_others_do(rendered: tuple[Config, Path]) -> None:
    """KubeRay refuses shutdownAfterJobFinishes beside rules, and Kueue a job without it."""
    config, folder = rendered
    job = yaml.safe_load((folder / "train" / "rayjob.yaml").read_text())
    assert ("deletionStrategy" in job["spec"]) != (config.kube.scheduler == "kueue")
    assert job["spec"].get("shutdownAfterJobFinishes", False) == (config.kube.scheduler == "kueue")
    names = job["metadata"]["labels"]
    queues = {"kueue": "kueue.x-k8s.io/queue-name", "volcano": "volcano.sh/queue-name"}
    for scheduler, label in queues.items():
        assert (label in names) == (config.kube.scheduler == scheduler)
        assert names.get(label, config.kube.queue) == config.kube.queue
    priority = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    plain = config.kube.priority_class if not config.kube.scheduler else None
    assert priority.get("priorityClassName") == plain


def test_keys_come_from_the_secret_and_services_are_let_through(tmp_path: Path) -> None:
    config = load("smollm2", CONFIGS["smollm2"])
    render(config, tmp_path, [])
    text = "".join(path.read_text() for path in tmp_path.rglob("*.yaml"))
    job = yaml.safe_load((tmp_path / "train" / "rayjob.yaml").read_text())
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    variables = {entry["name"]: entry for entry in worker["containers"][0]["env"]}
    key = variables["JUDGE_KEY"]["valueFrom"]["secretKeyRef"]
    assert key == {"name": "rayward-keys", "key": "JUDGE_KEY", "optional": False}
    assert variables["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is True
    assert "kind: Secret" not in text and "JUDGE_KEY" not in job["spec"]["runtimeEnvYAML"]
    policy = yaml.safe_load((tmp_path / "base" / "networkpolicy.yaml").read_text())
    ports = [rule["port"] for entry in policy["spec"]["egress"] for rule in entry.get("ports", [])]
    assert {443, 8443, 53} == set(ports)
    volume = yaml.safe_load((tmp_path / "base" / "persistentvolume.yaml").read_text())
    assert volume["spec"]["csi"]["volumeHandle"] == "our-runs"


def test_a_claim_that_is_there_is_mounted_and_none_is_made(tmp_path: Path) -> None:
    config = load("dpo_smollm2", ["kube.claim=team"])
    render(config, tmp_path, [])
    assert not (tmp_path / "base" / "persistentvolumeclaim.yaml").exists()
    assert not (tmp_path / "serve").exists(), "publish is null"
    for item in ray_objects(tmp_path):
        for _, template in list(pod_templates(item))[-1:]:
            claims = [v["persistentVolumeClaim"] for v in template["spec"]["volumes"][-1:]]
            assert claims == [{"claimName": "team"}]


def test_the_mounted_config_is_the_config(rendered: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = rendered
    item = yaml.safe_load((folder / "train" / "configmap.yaml").read_text())
    (tmp_path / "config.yaml").write_text(item["data"]["config.yaml"])
    assert load(str(tmp_path / "config.yaml")) == config
    job = yaml.safe_load((folder / "train" / "rayjob.yaml").read_text())["spec"]
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mounted,) = [v["configMap"] for v in head["volumes"] if v["name"] == "config"]
    assert mounted == {"name": item["metadata"]["name"]}
    (place,) = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == "config"]
    assert f" {place['mountPath']}/config.yaml " in job["entrypoint"]


def test_monitors_find_head_and_workers_by_the_port_that_pods_name(tmp_path: Path) -> None:
    render(load("quickstart"), tmp_path, [])
    service, pod = (
        yaml.safe_load((tmp_path / "monitoring" / f"{kind}.yaml").read_text())["spec"]
        for kind in ("servicemonitor", "podmonitor")
    )
    assert service["selector"]["matchLabels"] == {"ray.io/node-type": "head"}
    assert pod["selector"]["matchLabels"] == {"ray.io/node-type": "worker"}
    ports = {service["endpoints"][0]["port"], pod["podMetricsEndpoints"][0]["port"]}
    for item in ray_objects(tmp_path):
        for _, template in list(pod_templates(item))[-2:]:
            named = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
            assert ports <= named


def applied(patch: Any, before: Any) -> Any:
    """A JSON merge patch on values (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    after = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        else:
            after[name] = applied(value, after.get(name))
    return after


@pytest.mark.parametrize("size", SIZES)
def test_an_overlay_makes_what_the_config_of_that_size_asks(
    rendered: tuple[Config, Path], size: tuple[int, int]
) -> None:
    config, folder = rendered
    wanted = objects(sized(config, *size))
    for name, items in wanted.items():
        overlay = folder / "overlays" / f"{size[0]}x{size[1]}" / name
        for item in items:
            file = f"{item['kind'].lower()}.yaml"
            before = yaml.safe_load((folder / name / file).read_text())
            patch = yaml.safe_load((overlay / file).read_text())
            assert applied(patch, before) == item != before
            assert mistakes(item) == []


def test_kustomize_builds_the_same(rendered: tuple[Config, Path]) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which brings Kustomize, is not installed")
    config, folder = rendered
    for name, items in objects(sized(config, 8, 8)).items():
        done = subprocess.run(
            ["kubectl", "kustomize", str(folder / "overlays" / "8x8" / name)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        built = {item["kind"]: item for item in yaml.safe_load_all(done.stdout)}
        assert built == {item["kind"]: item for item in items}
    plain = subprocess.run(
        ["kubectl", "kustomize", str(folder / "base")], capture_output=True, text=True, timeout=60
    )
    assert plain.returncode == 0, plain.stderr


def test_merge_patches_do_what_the_standard_says() -> None:
    before = {"a": 1, "b": {"c": [1, 2], "d": 3}, "gone": {"e": 1}}
    after = {"a": 1, "b": {"c": [2], "d": 3, "new": {}}, "f": None}
    patch = merge_patch(before, {k: v for k, v in after.items() if k != "f"})
    assert patch == {"gone": None, "b": {"c": [2], "new": {}}}
    assert applied(patch, copy.deepcopy(before)) == {k: v for k, v in after.items() if k != "f"}
    assert merge_patch(before, before) == {}


def test_names_are_those_that_kubernetes_takes(tmp_path: Path) -> None:
    for name in ("7 Days!", "Ünicode_run", "x" * 90, "a-" * 30, "***"):
        config = load("quickstart").model_copy(update={"name": name})
        for items in objects(config).values():
            for item in items:
                found = item["metadata"]["name"]
                assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found) and len(found) <= 47
                assert mistakes(item) == []


def test_runs_of_different_names_have_different_objects() -> None:
    long = "a-study-of-learning-rates-with-seed-number"
    names = ["my-run", "my_run", "My-Run", "my run", "my-run-", "-my-run", "run-my-run"]
    names += ["7", "run-7", "run", "***", "---", long, f"{long}-1", f"{long}-2", "ä", "ö"]
    config = load("quickstart")
    found = {name: run_name(config.model_copy(update={"name": name})) for name in names}
    assert len(set(found.values())) == len(names), found
    assert max(map(len, found.values())) == 40
    # Names that Kubernetes takes stay as they are.
    assert all(found[name] == name for name in ("my-run", "run-my-run", "run-7", "run"))
    assert re.fullmatch("my-run-[0-9a-f]{6}", found["my_run"])


@pytest.mark.parametrize("name", ["my run; touch x", "it's $(touch x)", "`touch x`", "plain"])
def test_a_shell_takes_the_entrypoint_as_one_command(name: str, tmp_path: Path) -> None:
    config = load("quickstart").model_copy(update={"name": name})
    # A shell's function in place of the command: it says its arguments, a line each.
    script = f"rayward() {{ printf '%s\\n' \"$@\"; }}\n{entrypoint(config)}\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    expected = ["align", "/etc/rayward/config.yaml", "--run", f"/shared/runs/{name}"]
    assert done.stdout.splitlines() == expected and not done.stderr
    assert list(tmp_path.iterdir()) == []


def test_render_keeps_what_is_not_its_own_and_replaces_what_is(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    out = tmp_path / "kube"
    first = render(load("quickstart"), out, SIZES)
    again = render(load("quickstart"), out, [])
    assert set(again) < set(first) and not (out / "overlays").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt, which is not of rayward kube render"):
        render(load("quickstart"), out, [])
    assert (out / "train" / "rayjob.yaml").is_file()


@pytest.mark.parametrize("name", ["train/mine.jsonl", "base/kept/rayjob.yaml", "overlays/a.yaml"])
def test_render_takes_no_folder_that_others_have_made(tmp_path: Path, name: str) -> None:
    out = tmp_path / "kube"
    before = render(load("quickstart"), out, SIZES)
    texts = [path.read_bytes() for path in before]
    mine = out / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("apiVersion: mine\n")
    with pytest.raises(ValueError, match=rf"holds {name}, which is not of .* another folder"):
        render(load("smollm2"), out, [])
    assert mine.read_text() == "apiVersion: mine\n"
    assert [path.read_bytes() for path in before] == texts, "nothing was removed or written"
    mine.unlink()
    mine.symlink_to(before[0])
    with pytest.raises(ValueError, match=rf"holds {name}"):
        render(load("quickstart"), out, [])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("kube.image=rayward:latest", "without tag or digest"),
        ("kube.image=reg.example/rayward@sha256:00", "without tag or digest"),
        ("kube.queue=research", "one needs the other"),
        ("kube.bucket_driver=s3.csi.aws.com", "kube.bucket_driver has no effect without kube.buc"),
        ("kube.namespace=Rayward", "kube.namespace is 'Rayward'"),
        ("kube.mount=shared", "kube.mount is 'shared'"),
        ("kube.mount=/shared/../x", "expected a folder by its plain path"),
        *((f"kube.mount={folder}", "where pods have other things") for folder in TAKEN),
        ("kube.claim=My Claim", "kube.claim is 'My Claim'"),
        ("kube.priority_class=high_", "kube.priority_class is 'high_'"),
        ("kube={claim: a, bucket: b}", "give one"),
        ("kube={claim: a, storage_gib: 3}", "kube.storage_gib has no effect"),
    ],
)
def test_mistakes_of_the_section_are_told(given: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("quickstart", [given])
    assert told in str(caught.value)


def test_the_command_says_what_it_wrote_and_what_pods_will_not_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "kube")
    command = ["kube", "render", "rloo_rule_smollm2", "--out", out, "--size", "1x8"]
    assert main(command) == 0
    said = capsys.readouterr().out
    job = yaml.safe_load((tmp_path / "kube" / "train" / "rayjob.yaml").read_text())
    assert f"files, for {job['metadata']['name']}\n" in said
    assert "workers cpu: 1 x " in said and f"kubectl apply -k {out}/train" in said
    assert "note: data.root is ., which pods do not have" in said and "/serve" not in said
    assert "model.path" not in said, "a hub name is fetched"
    assert "scoring.functions" not in said, "rayward.data.rules is installed"
    assert main([*command, "--set", "data.root=/shared/data"]) == 0
    assert "note" not in capsys.readouterr().out
    assert main(["kube", "render", "quickstart", "--out", out, "--size", "1x4"]) == 2
    assert "4 GPUs are too few" in capsys.readouterr().err
    assert (tmp_path / "kube" / "train" / "rayjob.yaml").is_file(), "nothing was removed"
    assert main(["kube", "render", "quickstart", "--out", out, "--set", "kube.image=a:b"]) == 2
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "kube"):
        assert main(["kube", "render", "quickstart", "--out", str(place)]) == 2
        assert f"{tmp_path / 'file'} is no folder" in capsys.readouterr().err


def test_the_page_names_settings_versions_and_folders_that_are_there(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    settings = set(re.findall(r"\bkube\.([a-z_]+)\b", page))
    assert settings and settings <= set(Kube.model_fields)
    assert re.findall(r"--version (\S+)", page) == [versions.KUBERAY]
    assert set(re.findall(r"rayward-gpu:([\d.]+\d)", page)) == {versions.RAYWARD}
    render(load("quickstart"), tmp_path, SIZES)
    folders = re.findall(r"^\| `([^`]+)/`", page, re.MULTILINE)
    assert {folder.split("/")[0] for folder in folders} == {p.name for p in tmp_path.iterdir()}
    names = {item["metadata"]["name"] for item in ray_objects(tmp_path)}
    assert {"quickstart", "quickstart-chat", "quickstart-work"} == names
    assert "rayservice/NAME-chat " in page and "rayjob/NAME " in page

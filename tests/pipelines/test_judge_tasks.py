"""`rayward judge tasks` against a real vLLM server: figures equal those of transformers alone, and
those of lm-eval's own back end on SmolLM2.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rayward.cluster.serve.vllm_server import served
from rayward.pipelines.cli import main
from tests.pipelines.task_copies import SUBJECTS, write_all

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed: make install-eval",
)

ROOT = Path(__file__).parents[2]
CONTEXT = 1600  # holds all but 25 examples: the tiny tokenizer has a token for two letters or so
SMOLLM2 = os.environ.get("RAYWARD_TEST_SMOLLM2")
MAKE_SMOLLM2 = ROOT.parent / "shared" / "models" / "make_smollm2.py"
NEAR_TIE = 2e-5  # nats a token, or a letter where the metric is of letters


@pytest.fixture(scope="module")
def folder(random_llama: Callable[..., Path]) -> Path:
    """A random Llama whose tokenizer puts BOS before every text, as Llama's do."""
    return random_llama(CONTEXT, bos=True)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def likelihoods(folder: Path) -> Callable[[Mapping[str, Any]], list[float]]:
    """The log-likelihood of each choice of an item after its prompt, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def of_item(item: Mapping[str, Any]) -> list[float]:
        found = []
        bos = not item["prompt"].startswith(tokenizer.bos_token)  # a chat template writes it out
        for choice in item["choices"]:
            begun = len(tokenizer(item["prompt"], add_special_tokens=bos).input_ids)
            ids = tokenizer(item["prompt"] + choice, add_special_tokens=bos).input_ids
            assert ids.count(tokenizer.bos_token_id) == 1
            said = len(ids) - begun
            ids = torch.tensor([ids[-(CONTEXT - 1) :]])  # cut at its beginning where it is too long
            with torch.no_grad():
                logprobs = model(ids).logits[0, :-1].log_softmax(-1)
            chosen = logprobs.gather(-1, ids[0, 1:, None])[-said:, 0]
            found.append(float(chosen.sum()))
        return found

    return of_item


def test_a_served_model_is_measured_in_both_ways_and_only_once(
    folder: Path, likelihoods: Callable[..., list[float]], tmp_path: Path, capsys: Any
) -> None:
    data, out, figures = (
        write_all(tmp_path / "data", items=2),
        tmp_path / "out",
        tmp_path / "f.json",
    )
    command = ["judge", "tasks", "--data", str(data), "--subjects", ",".join(SUBJECTS)]
    command += ["--tokenizer", str(folder), "--out", str(out), "--json", str(figures)]
    command += ["--chat-template", "both", "--name", "toy", "--retries", "1"]
    with served(str(folder), CONTEXT, timeout_s=400, more="--dtype float32") as url:
        assert main([*command[:2], f"tiny@{url}", *command[2:]]) == 0
        told = capsys.readouterr().out
        log = (out / "lm_eval.log").read_text(encoding="utf-8")
        made = {path.name: path.stat().st_mtime_ns for path in (out / "plain").iterdir()}
        started = time.monotonic()
        assert main([*command[:2], f"tiny@{url}", *command[2:]]) == 0
        assert time.monotonic() - started < 10
    assert made == {path.name: path.stat().st_mtime_ns for path in (out / "plain").iterdir()}
    assert "12 parts to measure, 12 of them done" in capsys.readouterr().out
    assert "punkt" not in log, "the network was asked"
    assert "without chat template" in told and "with chat template" in told
    assert "mmlu: 2 of its 57 subjects: anatomy,astronomy" in told
    result = json.loads(figures.read_text())
    counts = {name: of["effective"] for name, of in result["n-samples"].items()}
    assert counts["mmlu"] == 4 and counts["arc_challenge"] == counts["gsm8k"] == 2

    arc = rows(out / "plain" / "arc.jsonl")
    for item in arc:
        assert item["prompt"].count("Question: ") == 26 and item["prompt"].endswith("\nAnswer:")
        assert [choice.strip() for choice in item["choices"]] == item["doc"]["choices"]["text"]
    assert all(item["cut"] for item in arc)
    assert "arc, without chat template: the context is too small for 2 of 2 items" in told
    for task in ("plain/mmlu", "plain/truthfulqa", "plain/hellaswag", "plain/arc", "chat/mmlu"):
        for item in rows(out / f"{task}.jsonl"):
            assert item["loglikelihoods"] == pytest.approx(likelihoods(item), abs=2e-3), task
    mmlu = rows(out / "plain" / "mmlu.jsonl")
    assert mmlu[0]["prompt"].startswith("The following are multiple choice questions")
    assert mmlu[0]["prompt"].count("\nAnswer:") == 6 and mmlu[0]["choices"] == [
        " A",
        " B",
        " C",
        " D",
    ]
    right = [
        item["loglikelihoods"].index(max(item["loglikelihoods"])) == item["doc"]["answer"]
        for item in mmlu
    ]
    assert [item["metrics"]["acc,none"] for item in mmlu] == right
    assert result["results"]["mmlu"]["acc,none"] == sum(right) / 4
    hellaswag = rows(out / "plain" / "hellaswag.jsonl")
    assert all("[" not in item["prompt"] + "".join(item["choices"]) for item in hellaswag)
    letters = [
        [
            value / len(choice.strip())
            for value, choice in zip(item["loglikelihoods"], item["choices"], strict=True)
        ]
        for item in hellaswag
    ]
    best = [
        values.index(max(values)) == int(item["doc"]["label"])
        for values, item in zip(letters, hellaswag, strict=True)
    ]
    assert [item["metrics"]["acc_norm,none"] for item in hellaswag] == best
    true = rows(out / "plain" / "truthfulqa.jsonl")[0]
    masses = [math.exp(value) for value in true["loglikelihoods"]]
    labels = true["doc"]["mc2_targets"]["labels"]
    share = sum(mass for mass, label in zip(masses, labels, strict=True) if label) / sum(masses)
    assert true["metrics"]["acc,none"] == pytest.approx(share, abs=1e-6)
    chat = rows(out / "chat" / "gsm8k.jsonl")[0]
    assert chat["prompt"].count("GPT4 Correct User: ") == 6
    assert isinstance(chat["answer"], str) and "exact_match,strict-match" in chat["metrics"]
    columns = result["columns"]["plain"]
    assert columns["mean"] == pytest.approx(sum(list(columns.values())[:4]) / 4)
    assert set(columns) == {"mmlu", "arc", "truthfulqa", "hellaswag", "mean"}
    page = tmp_path / "board.html"
    assert main(["judge", "board", str(figures), "--out", str(page)]) == 0
    assert "arc_challenge, acc_norm in %" in page.read_text() and "toy" in page.read_text()
    # A prompt whose check needs data that is not here is named, where it is not here.
    asked = [item["doc"]["key"] for item in rows(out / "plain" / "ifeval.jsonl")]
    without = "ifeval: 1 prompts are left out" in told
    assert asked == ([1, 2] if without else [1, 2, 3])
    assert without == ("length_constraints:number_sentences (1)" in told)


@pytest.fixture(scope="module")
def smollm2(vllm_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that RAYWARD_TEST_SMOLLM2 names, or one that the script beside the repository
    makes.
    """
    if SMOLLM2:
        return Path(SMOLLM2)
    if not MAKE_SMOLLM2.is_file():
        pytest.skip("no SmolLM2: RAYWARD_TEST_SMOLLM2 names no folder of it")
    path = tmp_path_factory.mktemp("smollm2") / "smollm2"
    subprocess.run([sys.executable, str(MAKE_SMOLLM2), str(path)], check=True, timeout=300)
    return path


HF = """
import json, sys
from pathlib import Path
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
folder, definitions, limit, chat = sys.argv[1:]
names = [path.stem for path in sorted(Path(definitions).rglob("*.yaml"))]
made = simple_evaluate(
    model="hf",
    model_args={"pretrained": folder, "dtype": "float32", "max_length": 4095},
    tasks=names,
    device="cpu",
    batch_size=1,
    limit=int(limit),
    apply_chat_template=chat == "chat",
    task_manager=TaskManager(include_path=definitions, include_defaults=False),
    bootstrap_iters=0,
)
keep = ("doc_id", "filtered_resps", "acc", "acc_norm", "arguments")
print(json.dumps({
    name: [{key: sample[key] for key in keep if key in sample} for sample in samples]
    for name, samples in made["samples"].items()
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("way", "tasks", "metrics"),
    [("plain", "mmlu,arc,truthfulqa,hellaswag", 6), ("chat", "mmlu,truthfulqa", 2)],
)
def test_items_agree_with_lm_eval_s_own_back_end_on_smollm2(
    way: str, tasks: str, metrics: int, smollm2: Path, tmp_path: Path
) -> None:
    """acc and acc_norm are equal on every item whose two best choices differ by more than 2e-5
    nats a token; for acc_norm, of its value a letter.
    """
    items = 8
    data, out = write_all(tmp_path / "data", items=items), tmp_path / "out"
    command = ["judge", "tasks", str(smollm2), "--data", str(data), "--out", str(out)]
    command += ["--tasks", tasks, "--subjects", ",".join(SUBJECTS)]
    command += ["--chat-template", "yes" if way == "chat" else "no", "--vllm", "--dtype float32"]
    assert main(command) == 0
    definitions = str((out / "definitions").resolve())
    done = subprocess.run(
        [sys.executable, "-c", HF, str(smollm2), definitions, str(items), way],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours: dict[str, list[dict[str, Any]]] = {}
    for path in (out / way).glob("*.jsonl"):
        for row in rows(path):
            ours.setdefault(row["task"], []).append(row)
    assert ours.keys() == theirs.keys()
    compared = near = 0
    furthest = 0.0
    for name, samples in theirs.items():
        for mine, sample in zip(ours[name], samples, strict=True):
            assert (mine["item"], mine["prompt"]) == (sample["doc_id"], sample["arguments"][0][0])
            assert not mine["cut"]
            of_hf = [reply[0] for reply in sample["filtered_resps"]]
            difference = max(abs(a - b) for a, b in zip(mine["loglikelihoods"], of_hf, strict=True))
            furthest = max(furthest, difference)
            if name == "truthfulqa_mc2":
                assert mine["metrics"]["acc,none"] == pytest.approx(sample["acc"], abs=1e-3)
                continue
            letters = [len(choice.removeprefix(" ")) for choice in mine["choices"]]
            tokens = _tokens(smollm2, mine["choices"])
            for metric, sizes in (("acc", tokens), ("acc_norm", letters)):
                if metric not in sample:
                    continue
                compared += 1
                if _gap(of_hf, sizes, metric) > NEAR_TIE:
                    assert mine["metrics"][f"{metric},none"] == sample[metric], (name, metric)
                else:
                    near += 1
    print(f"{way}: {compared} metrics of items, {near} of them near-ties, the others equal;")
    print(f"log-likelihoods differ by at most {furthest:.2g} nats")
    assert compared == metrics * items and near < compared / 10


def _tokens(folder: Path, choices: list[str]) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [len(tokenizer(choice).input_ids) for choice in choices]


def _gap(values: list[float], sizes: list[int], metric: str) -> float:
    """Between the two best choices: nats a token of the longer one, or of values by letter."""
    if metric == "acc_norm":
        first, second = sorted((v / s for v, s in zip(values, sizes, strict=True)), reverse=True)[
            :2
        ]
        return first - second
    (first, a), (second, b) = sorted(zip(values, sizes, strict=True), reverse=True)[:2]
    return (first - second) / max(a, b)

"""`python -m rayward.pipelines.judging.harness.process WORK.json`: lm-eval in its own process.

Its switches for working offline are read when libraries are imported, and its log goes to a file.
WORK.json says which server, model and definitions; what is measured is written a task at a time.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def main(path: str) -> int:
    """1 where a task could not be measured: its file then says why, under "error"."""
    work = json.loads(Path(path).read_text(encoding="utf-8"))
    # With the command, even where that is killed: prctl(PR_SET_PDEATHSIG).
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != work["parent"]:
        return 1
    if work["offline"]:
        _import_ifeval_without_network()
    model = _model(work["server"])
    failed = False
    for part in work["parts"]:
        started = time.monotonic()
        try:
            made = _measure(model, part, work)
        except Exception as error:  # of a library or the server; the other tasks go on
            traceback.print_exc()
            failed = True
            made = {"error": f"{type(error).__name__}: {error}"}
        made |= {"settings": part["settings"], "seconds": round(time.monotonic() - started, 1)}
        _write(Path(part["out"]), made)
        print(json.dumps({"done": part["title"], "error": made.get("error")}), flush=True)
    return int(failed)


def _import_ifeval_without_network() -> None:
    """Its module fetches NLTK's punkt_tab when it is imported, but in the first process only."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        import lm_eval.tasks.ifeval.instructions_util  # noqa: F401
    except ImportError:  # without the packages of IFEval, which is then not measured
        pass
    finally:
        del os.environ["LOCAL_RANK"]
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def _model(server: Mapping[str, Any]) -> Any:
    """lm-eval's client of completions, with BOS where the tokenizer of the model puts one."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from rayward.data.templates.tokenizer import tokenizer_of

    class Completions(LocalCompletionsAPI):
        def tok_encode(
            self, string: Any, left_truncate_len: int | None = None, **_: Any
        ) -> list[Any]:
            # As lm-eval's `hf` has it; its client of completions leaves BOS out of every prompt.
            texts = [string] if isinstance(string, str) else list(string)
            bos = self.tokenizer.bos_token
            ids = [
                self.tokenizer.encode(
                    text, add_special_tokens=not (bos and text.startswith(bos)), verbose=False
                )
                for text in texts
            ]
            if left_truncate_len:
                ids = [each[-left_truncate_len:] for each in ids]
            return ids[0] if isinstance(string, str) else ids

    model = Completions(
        model=server["model"],
        base_url=server["url"],
        tokenizer=server["tokenizer"],
        tokenizer_backend="huggingface",
        tokenized_requests=True,
        num_concurrent=server["concurrency"],
        max_retries=server["tries"],
        timeout=server["timeout_s"],
        max_length=server["context_tokens"],
        trust_remote_code=server["trust_remote_code"],
    )
    model.tokenizer = tokenizer_of(server["tokenizer"])[0]  # read as everywhere in Rayward
    if server["chat_template"]:
        model.tokenizer.chat_template = server["chat_template"]
    return model


def _measure(model: Any, part: Mapping[str, Any], work: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a task, or of all subjects of one, by lm-eval's names; its items go to a file."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = str(Path(part["definitions"]).resolve())
    results = simple_evaluate(
        model=model,
        tasks=part["names"],
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        use_cache=part["cache"],
        limit=work["limit"],
        apply_chat_template=part["chat"],
        fewshot_as_multiturn=part["chat"],
        log_samples=True,
    )
    assert results is not None  # None is of the other processes of several
    items: dict[str, int] = {}
    cut: dict[str, int] = {}
    with Path(part["items"]).open("w", encoding="utf-8") as file:
        for name in part["names"]:
            rows = _items(model, name, results["samples"][name])
            items[name], cut[name] = len(rows), sum(row["cut"] for row in rows)
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    return {
        "results": {name: _plain(results["results"][name]) for name in part["names"]},
        "versions": results["versions"],
        "items": items,
        "cut": cut,
    }


def _plain(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers among a task's metrics; None for an error that lm-eval does not give."""
    return {
        name: float(value) if isinstance(value, int | float) else None
        for name, value in metrics.items()
        if "," in name
    }


def _items(model: Any, task: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row an item: what was asked, what the model said, and the metrics.

    lm-eval has a row for each way of reading the answer (filter), too.
    """
    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:
        requests, replies = sample["arguments"], [each[0] for each in sample["resps"]]
        row = rows.setdefault(
            sample["doc_id"],
            {
                "task": task,
                "item": sample["doc_id"],
                "doc": sample["doc"],
                "target": sample["target"],
                "prompt": requests[0][0],
                "cut": False,
                "metrics": {},
            },
        )
        if isinstance(requests[0][1], str):
            row["choices"] = [choice for _, choice in requests]
            row["loglikelihoods"] = [reply[0] for reply in replies]
            row["greedy"] = [bool(reply[1]) for reply in replies]
            row["cut"] = any(_tokens(model, *request) > model.max_length for request in requests)
        else:
            row["answer"] = replies[0]
            room = model.max_length - requests[0][1].get("max_gen_toks", model._max_gen_toks)
            row["cut"] = len(model.tok_encode(requests[0][0])) > room
        row["metrics"] |= {
            f"{name},{sample['filter']}": _number(sample[name]) for name in sample["metrics"]
        }
    return list(rows.values())


def _tokens(model: Any, context: str, choice: str) -> int:
    """Tokens of a request, of which the server takes as many as its context has, but one."""
    return len(model.tok_encode(context + choice))


def _number(value: Any) -> Any:
    """A metric of an item as JSON has it: numpy's numbers and the truth of each instruction."""
    if isinstance(value, list | tuple):
        return [_number(each) for each in value]
    return float(value)


def _write(path: Path, value: Any) -> None:
    from rayward.pipelines.run.files import write_json

    write_json(path, value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""What a checkpoint costs: seconds that training waits for it, and seconds to go on from it.

    python benchmarks/checkpoint_cost.py --model FOLDER --json FILE [--repeats 3]

One rank trains a model (all of its weights, Adam) for a step on one row, then writes checkpoints as
a stage does, in turn at once and beside the training: its files, hashes, flush, rename, and reading
back. Training waits for all of that, or only for the copy. Then they are loaded again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from rayward.actors.checkpoints import Checkpoints
from rayward.actors.models.load import load_policy
from rayward.actors.process import Rendezvous
from rayward.actors.training.engine import TrainEngine
from rayward.configs.sections.training import Updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    rendezvous = Rendezvous(0, 1, 60)
    rendezvous.open()
    context = rendezvous.join("127.0.0.1", 0, 0)
    module = load_policy(options.model, "float32")
    engine = TrainEngine(module, Updates(), 1e-5, 100, "float32", context.device)
    ids = torch.randint(0, engine.vocab_size, (1, 32))

    def loss(model, ids):
        return model.module.lm(ids).logits.float().logsumexp(-1).sum(), {}

    engine.step([ids], loss, 32)
    parameters = sum(weight.numel() for weight in module.parameters())
    writing, completing, copying, beside, loading = [], [], [], [], []
    work = Path(tempfile.mkdtemp(dir=options.work, prefix="checkpoint-cost-"))
    try:
        made = Checkpoints(work, keep=1)
        for step in range(options.repeats):
            started_at = time.perf_counter()
            engine.save_state(made.new(2 * step))
            written_at = time.perf_counter()
            made.complete(2 * step, {})
            writing.append(written_at - started_at)
            completing.append(time.perf_counter() - written_at)
            started_at = time.perf_counter()
            saving = engine.save_state(made.new(2 * step + 1), copies=1)
            copying.append(time.perf_counter() - started_at)
            saving.result()
            done = made.complete(2 * step + 1, {})
            beside.append(time.perf_counter() - started_at)
            started_at = time.perf_counter()
            engine.load_state(done.folder)
            loading.append(time.perf_counter() - started_at)
        size = sum(path.stat().st_size for path in done.folder.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(work)
    at_once, copied = median(writing) + median(completing), median(copying)
    figures = {
        "parameters": parameters,
        "bytes": size,
        "write_s": [round(seconds, 2) for seconds in writing],
        "hash_flush_read_s": [round(seconds, 2) for seconds in completing],
        "copy_s": [round(seconds, 2) for seconds in copying],
        "beside_s": [round(seconds, 2) for seconds in beside],
        "load_s": [round(seconds, 2) for seconds in loading],
        "waited_at_once_s": round(at_once, 2),
        "waited_s": round(copied, 2),
        "share_of_an_hour": round(copied / 3600, 6),
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""A training step of a small model on the CPU in fp32: as it came, with fused norms and rotations
(actors/models/cpu/fused.py), and with a last layer that skips what is not read
(actors/models/lean.py), in turn.

python benchmarks/cpu_modules.py --hidden 128 512 --repeats 15 --json FILE

Rows of 96 tokens, of which the last quarter is read, as in SFT on answers. Seconds are those of the
processor over all threads, forward and backward; the ratio to the plain step is the median over
turns of both in a row.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rayward.actors.models.cpu.fused import fuse
from rayward.actors.models.heads import TokenPolicy
from rayward.actors.models.lean import skip_unread
from rayward.pipelines.run.metrics import table

ROWS, TOKENS, LAYERS, VOCABULARY = 12, 96, 4, 640
KINDS = ("plain", "fused", "lean", "both")


def policies(hidden: int) -> dict[str, TokenPolicy]:
    """The same random model of each kind."""
    torch.manual_seed(0)
    heads = hidden // 32
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    made = {kind: TokenPolicy(copy.deepcopy(model)) for kind in KINDS}
    for kind in ("fused", "both"):
        assert fuse(made[kind].lm)
    for kind in ("lean", "both"):
        assert skip_unread(made[kind])
    return made


def seconds(policy: TokenPolicy, ids_BT: Tensor, chosen_BT: Tensor) -> float:
    """Processor seconds of a forward and backward pass."""
    start = time.process_time()
    policy(ids_BT, chosen_BT)[0].sum().backward()
    spent = time.process_time() - start
    policy.zero_grad(set_to_none=True)
    return spent


def measure(hidden: int, repeats: int) -> dict[str, float | int]:
    """Milliseconds a step of each kind, and the ratios to the plain one."""
    made = policies(hidden)
    ids_BT = torch.randint(0, VOCABULARY, (ROWS, TOKENS))
    chosen_BT = torch.zeros(ROWS, TOKENS, dtype=torch.bool)
    chosen_BT[:, 3 * TOKENS // 4 :] = True
    turns = [
        {kind: seconds(policy, ids_BT, chosen_BT) for kind, policy in made.items()}
        for _ in range(repeats + 2)
    ][2:]  # the first two warm up
    found: dict[str, float | int] = {"hidden": hidden}
    for kind in KINDS:
        found[f"{kind}_ms"] = 1000 * statistics.median(turn[kind] for turn in turns)
        found[f"{kind}_ratio"] = statistics.median(turn[kind] / turn["plain"] for turn in turns)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 512], help="widths to try")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = [measure(hidden, options.repeats) for hidden in options.hidden]
    columns = ("hidden", *(f"{kind}_ms" for kind in KINDS), *(f"{kind}_ratio" for kind in KINDS))
    table("a training step", [tuple(row[name] for name in columns) for row in found], columns)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

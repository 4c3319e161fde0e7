"""Peak memory of log-probs, loss and backward at the policy's head, against the size of the
vocabulary.

python benchmarks/logprob_memory.py --json FILE

Ours (rayward.algorithms.logprobs.token_logprobs_from_hidden, in chunks that the backward pass
recomputes) against the plain way: logits of all tokens, log_softmax over them in fp32, gather. Each
case is a process of its own; its peak is the highest resident memory after the backward pass
(getrusage) less that before, when hidden states and head are there already. Log-probs and gradients
of both are compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COLUMNS = (
    "vocabulary",
    "one [N, V], MiB",
    "plain, MiB",
    "ours, MiB",
    "plain / ours",
    "plain, s",
    "ours, s",
    "log-prob gap",
    "gradient gap",
)
MIB = 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[1024, 32768, 131072, 262144])
    parser.add_argument("--tokens", type=int, default=2048, help="N")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument(
        "--chunk-tokens", type=int, help="tokens of a chunk (default: that of training)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--half", nargs=3, metavar=("KIND", "V", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.half:
        half(options, options.half[0], int(options.half[1]), Path(options.half[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = [one(options, vocabulary, Path(folder)) for vocabulary in options.vocabulary]
    from rayward.pipelines.run.metrics import table
    from rayward.pipelines.run.stage import versions

    about = f"{options.tokens} tokens, hidden {options.hidden}, fp32"
    table(about, [tuple(of[name] for name in COLUMNS) for of in found], COLUMNS)
    if options.json:
        settings = {
            name: value for name, value in vars(options).items() if name not in ("json", "half")
        }
        written = {"cases": found, "settings": settings, "versions": versions(("torch",))}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def one(options: argparse.Namespace, vocabulary: int, folder: Path) -> dict[str, Any]:
    """Both ways at one size. This process stays small: the peak of a child begins at its
    parent's.
    """
    seen = {}
    for kind in ("plain", "ours"):
        command = [
            sys.executable,
            __file__,
            *sys.argv[1:],
            "--half",
            kind,
            str(vocabulary),
            str(folder),
        ]
        subprocess.run(command, check=True)
        seen[kind] = json.loads((folder / f"{kind}.json").read_text())
    plain, ours = (seen[kind]["peak_bytes"] / MIB for kind in ("plain", "ours"))
    shown = (
        vocabulary,
        options.tokens * vocabulary * 4 / MIB,
        plain,
        ours,
        plain / ours,
        seen["plain"]["seconds"],
        seen["ours"]["seconds"],
        *seen["ours"]["gaps"],
    )
    print(f"V {vocabulary}: plain {plain:.0f} MiB, ours {ours:.0f} MiB", flush=True)
    return dict(zip(COLUMNS, shown, strict=True))


def half(options: argparse.Namespace, kind: str, vocabulary: int, folder: Path) -> None:
    """Peak bytes above what was there, seconds, and of the second way its gaps to the first."""
    import torch

    from rayward.algorithms.logprobs import CHUNK_TOKENS, token_logprobs_from_hidden
    from rayward.algorithms.policy import ppo_clip

    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def step(
        hidden_NH: torch.Tensor, head_VH: torch.Tensor, targets_N: torch.Tensor
    ) -> torch.Tensor:
        if kind == "ours":
            chunk = options.chunk_tokens or CHUNK_TOKENS["cpu"]
            logprobs_N = token_logprobs_from_hidden(
                hidden_NH, head_VH, targets_N, chunk_tokens=chunk
            )[0]
        else:
            logits_NV = torch.nn.functional.linear(hidden_NH, head_VH).float()
            logprobs_N = torch.log_softmax(logits_NV, -1).gather(1, targets_N[:, None])[:, 0]
            del logits_NV
        advantages_N = torch.linspace(-1, 1, len(targets_N))
        loss, _ = ppo_clip(logprobs_N, logprobs_N.detach(), advantages_N)
        (loss / len(targets_N)).backward()
        return logprobs_N.detach()

    # What autograd needs once.
    step(drawn(4, 8).requires_grad_(), drawn(16, 8).requires_grad_(), torch.arange(4))
    hidden_NH = drawn(options.tokens, options.hidden).requires_grad_()
    head_VH = (drawn(vocabulary, options.hidden) / options.hidden**0.5).requires_grad_()
    targets_N = torch.randint(vocabulary, (options.tokens,), generator=generator)
    before = peak_bytes()
    begun = time.perf_counter()
    logprobs_N = step(hidden_NH, head_VH, targets_N)
    found: dict[str, Any] = {
        "seconds": time.perf_counter() - begun,
        "peak_bytes": peak_bytes() - before,
    }
    results = [logprobs_N, hidden_NH.grad, head_VH.grad]
    if kind == "plain":
        torch.save(results, folder / "plain.pt")
    else:
        plain = torch.load(folder / "plain.pt")
        gaps = [
            float((ours - theirs).abs().max()) for ours, theirs in zip(results, plain, strict=True)
        ]
        found["gaps"] = [gaps[0], max(gaps[1:])]
    (folder / f"{kind}.json").write_text(json.dumps(found))


def peak_bytes() -> int:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()

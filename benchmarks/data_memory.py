"""Peak memory and speed of data work on generated ShareGPT files of several sizes.

python benchmarks/data_memory.py --gigabytes 0.2 2 --to openai     # what `rayward data convert`
does python benchmarks/data_memory.py --gigabytes 0.2 2 --render        # read, render, tokenise and
pack, one core

Each size is worked on in a process of its own. Peak memory should be the same for all sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = 2000
CONVERT = """
import json, resource, sys, time
from pathlib import Path
from rayward.data.formats.convert import convert
begun, cpu_begun = time.perf_counter(), time.process_time()
account = convert(Path(sys.argv[1]), Path(sys.argv[2]), "sharegpt", sys.argv[3])
wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_begun
peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
rows = {"read": account.read, "written": account.written}
print(json.dumps(rows | {"wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": peak_bytes}))
"""
RENDER = """
import json, resource, sys, time
from itertools import islice
from pathlib import Path
from rayward.data.formats.registry import read
from rayward.data.packing import plan_packs
from rayward.data.templates.template import encode, find, truncate
from rayward.data.templates.tokenizer import load_tokenizer
template, tokenizer = find("openchat_3.5"), load_tokenizer(sys.argv[2])
begun, cpu_begun, rows, tokens, packs = time.perf_counter(), time.process_time(), 0, 0, 0
stream = read(Path(sys.argv[1]), "sharegpt")
while records := list(islice(stream, 1024)):
    encoded = (encode(template, record.turns, tokenizer) for record in records)
    lengths = [len(truncate(row, 8192).ids) for row in encoded]
    packs += len(plan_packs(lengths, 1, 8192)[0])
    rows, tokens = rows + len(lengths), tokens + sum(lengths)
wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_begun
peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
found = {"read": rows, "written": rows, "wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": peak_bytes}
print(json.dumps(found | {"tokens": tokens, "fill": tokens / packs / 8192}))
"""


def make(path: Path, num_bytes: int, seed: int = 0) -> None:
    """A JSON array of conversations of 2 to 12 turns and 20 to 400 words each, at least `num_bytes`
    long.
    """
    rng = random.Random(seed)
    words = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyzé", k=rng.randrange(1, 11)))
        for _ in range(WORDS)
    ]
    texts = [" ".join(rng.choices(words, k=rng.randrange(20, 400))) for _ in range(500)]
    with path.open("w", encoding="utf-8") as file:
        size, number = file.write("["), 0
        while size < num_bytes:
            turns = [
                {"from": speaker, "value": f"{number} {rng.choice(texts)}"}
                for _ in range(rng.randrange(1, 7))
                for speaker in ("human", "gpt")
            ]
            row = {"id": str(number), "conversations": turns}
            size += file.write(",\n" * bool(number) + json.dumps(row, ensure_ascii=False))
            number += 1
        file.write("]\n")


def _tokenizer(path: Path, folder: Path) -> None:
    """A byte-level BPE of 8192 tokens, trained on the beginning of the file."""
    sys.path.insert(0, str(ROOT))
    from rayward.data.templates.tokenizer import train_tokenizer

    with path.open(encoding="utf-8") as file:
        train_tokenizer(
            file.read(5_000_000).split("\n"), 8192, ["<|end_of_turn|>"], 8192
        ).save_pretrained(folder)


def main() -> None:
    """Make the files, convert them, and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gigabytes",
        type=float,
        nargs="+",
        default=[0.2, 2.0],
        help="sizes, in units of 1e9 bytes",
    )
    parser.add_argument("--to", default="openai", help="format to write")
    parser.add_argument(
        "--out", default="out.jsonl", help="name of the output, which tells the container"
    )
    parser.add_argument(
        "--render", action="store_true", help="render, tokenise and pack instead of converting"
    )
    options = parser.parse_args()
    print(
        f"{'GB':>6} {'rows':>9} {'wall s':>8} {'CPU s':>8} {'rows/s':>8} {'rows/CPU s':>11} "
        f"{'MB/CPU s':>9} {'peak MiB':>9}"
    )
    for gigabytes in options.gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sharegpt.json"
            make(path, int(gigabytes * 1e9))
            command = [
                sys.executable,
                "-c",
                CONVERT,
                str(path),
                str(Path(folder) / options.out),
                options.to,
            ]
            if options.render:
                _tokenizer(path, Path(folder) / "tokenizer")
                command[2:] = [RENDER, str(path), str(Path(folder) / "tokenizer")]
            alone = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
            done = subprocess.run(
                command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout)
            assert found["read"] == found["written"]
            print(
                f"{gigabytes:>6g} {found['read']:>9} {found['wall_s']:>8.1f} "
                f"{found['cpu_s']:>8.1f} {found['read'] / found['wall_s']:>8.0f} "
                f"{found['read'] / found['cpu_s']:>11.0f} "
                f"{path.stat().st_size / 1e6 / found['cpu_s']:>9.1f} "
                f"{found['peak_bytes'] / 2**20:>9.0f}",
                flush=True,
            )
            if options.render:
                print(
                    f"{found['tokens'] / found['cpu_s']:15.0f} tokens/CPU s, packs "
                    f"{found['fill']:.1%} full"
                )


if __name__ == "__main__":
    main()

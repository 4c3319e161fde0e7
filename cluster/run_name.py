"""What a run is called on a cluster, where others run too."""

from __future__ import annotations

import hashlib
import re


def run_name(name: str, folder: str) -> str:
    """`rayward-NAME-DIGEST`: readable, and one for each run folder."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    digest = hashlib.sha256(folder.encode()).hexdigest()[:8]
    return "-".join(filter(None, ("rayward", words, digest)))

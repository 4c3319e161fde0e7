"""Versions that the files name; a test holds them to pyproject.toml and to the locks."""

from __future__ import annotations

RAYWARD = "0.1.0"
RAY = "2.60.0"
KUBERAY = "1.7.0"
"""The operator whose fields are used: GCS fault tolerance with RocksDB came with it."""

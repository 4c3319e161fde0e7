"""Rows in files and out of them: JSON lines, JSON arrays, CSV, parquet, Arrow, the hub."""

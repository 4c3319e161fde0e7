"""Rows as records, by one function a format."""

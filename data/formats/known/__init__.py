"""The formats that are known."""

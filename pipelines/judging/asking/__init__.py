"""Asking judges, and models: with a budget, a pace and a cache an item."""

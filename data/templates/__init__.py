"""Turns to text and token ids: templates, tokenizers, and what proves that they fit."""

"""Hugging Face models as modules, their log-probs and scores, and how rows are laid out for them."""

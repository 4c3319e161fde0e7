"""Hugging Face models as modules, their log-probs and scores, and the layouts of their rows."""

"""The reward of responses: sources, their blend, reward folders and judges."""

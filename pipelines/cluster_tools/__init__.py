"""Commands that describe a run to the machinery of a cluster."""

"""The commands under `rayward data`, and the endpoint that some of them ask."""

"""The commands under `rayward judge`: verdicts, and the numbers and pages that are made of them."""

"""Intervals of means with a known standard error."""

NORMAL_95 = 1.959963984540054
"""Standard errors on each side of a 95 % interval."""

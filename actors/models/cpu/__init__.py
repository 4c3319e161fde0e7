"""What serves models on the CPU in fp32 only: faster ways to the same numbers.

Elsewhere a model runs what it came with, and nothing that belongs to the process is patched.
"""

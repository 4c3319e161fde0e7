"""What only serves the CPU in fp32: faster and leaner ways to the same numbers."""

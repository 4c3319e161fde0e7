"""Optimizer steps: the DeepSpeed engine, the loops that Ray Train runs, and RL's updates."""

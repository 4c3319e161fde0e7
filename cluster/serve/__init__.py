"""Ray Serve: applications and the vLLM server behind them."""

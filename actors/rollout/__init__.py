"""Generation: the vLLM worker, what it returns, and how new weights reach it."""

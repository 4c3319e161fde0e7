"""Data that language models make: simulated conversations and rankings, and their prompts."""

"""The typed configuration of a run and the YAML presets. Imports neither torch nor Ray, so every command answers at once."""

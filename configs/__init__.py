"""The typed configuration of a run, and YAML presets. Light, so that commands answer at once."""

"""The typed configuration of a run and the YAML presets; imports neither torch nor Ray, so commands
answer at once.
"""

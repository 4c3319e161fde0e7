"""The stages of the road, one file each; they know each other through the run folder only."""

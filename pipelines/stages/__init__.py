"""The stages of the road and what is of one alone; they know each other through the run folder."""

"""Online RL: the driver's loop, its actors, responses, advantages, watching and recording."""

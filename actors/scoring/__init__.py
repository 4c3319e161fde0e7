"""Actors that give numbers to responses: reward models, the reference, other sources."""

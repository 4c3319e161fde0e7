"""Actors that give numbers to responses: reward models, the reference, and sources of other kinds."""

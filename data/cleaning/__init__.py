"""Cleaning of pages, the sieve, near duplicates and languages."""

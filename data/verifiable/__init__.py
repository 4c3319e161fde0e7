"""Functions for scoring.sources whose reward can be checked: mathematics, exact texts, programs."""

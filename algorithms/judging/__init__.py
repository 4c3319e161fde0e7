"""Statistics of verdicts: pure functions of numbers that numpy, scipy and scikit-learn work out."""

"""The files of verdicts: AlpacaEval's, FastChat's and our own, read row by row."""

"""Numbers of verdicts: win rates, ratings, agreement, with their intervals."""

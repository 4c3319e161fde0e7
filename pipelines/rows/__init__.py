"""Records to rows of tokens: reading, splitting, quality and what is left out."""

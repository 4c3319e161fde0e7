"""What a person looks at: the report page, its sections, and rows on a terminal."""

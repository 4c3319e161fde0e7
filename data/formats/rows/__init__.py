"""What stands in a row: its fields, its turns, and which of them carry meaning."""

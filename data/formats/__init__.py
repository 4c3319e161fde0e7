"""Files to records and back: containers, the formats that people have, and token files."""

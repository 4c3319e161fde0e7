"""Records as rows of the formats that people use."""

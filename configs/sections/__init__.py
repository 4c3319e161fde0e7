"""The sections of a config, one file each: fields, bounds, and a sentence for each."""

"""Folders and hub names of models: where they lie and whether they are whole."""

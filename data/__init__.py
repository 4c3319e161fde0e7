"""Records, formats, cleaning, chat templates, masks and packing. Plain Python: no torch, no Ray."""

"""The run folder and the machine it runs on; imports no stage."""

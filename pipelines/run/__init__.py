"""The run folder and the machine it runs on; knows no stage."""

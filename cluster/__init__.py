"""Where a run happens: the Ray connection, what it costs, the Serve application."""

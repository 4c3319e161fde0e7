"""Where a run happens: the Ray connection, what a stage asks of the cluster, the Serve
application.
"""

"""Running a plan: in worker processes on this machine, or on a Dask cluster, against the same store."""

"""Tools for long runs: locks, stop requests, the record of a job's cost, progress."""

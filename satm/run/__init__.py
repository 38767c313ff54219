"""How a process survives: locks, stop requests, the record of what a job took, progress."""

"""Tables from the results of other stages; a module per kind.

Importing a module here imports neither torch nor matplotlib: campaigns look up their kinds here, and a Snakefile reads
campaigns each time it is parsed, in every job of a cluster. Functions that need these libraries import them.
"""

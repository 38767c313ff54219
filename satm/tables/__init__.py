"""Tables from the files that other stages left behind; a module per kind.

Importing a module here imports neither torch nor matplotlib: a campaign looks its kinds up here, and a Snakefile reads
campaigns each time it is parsed, in every job of a cluster. Functions that need such libraries import them.
"""

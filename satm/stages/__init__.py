"""The stages: each reads the files of the one before it and writes its own. The only place that joins both worlds.

A function here does what one command does, by names; `satm.cli` turns flags into these calls.
"""

"""The stages: each reads the files of earlier stages and writes its own.

Each command has a function here, which joins the files of a campaign with the library; `satm.cli` turns flags into
calls of these functions.
"""

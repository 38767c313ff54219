"""One file per network: its options and a builder registered with `satm.networks.network`.

A new file here is found without an import elsewhere. Builders import torch when they are called, never at the top of a
file: the workflow reads the options of all networks in every cluster job, where importing torch would take seconds.
"""

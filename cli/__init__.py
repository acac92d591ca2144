"""The command line `vectorshard`: starts servers, loads files, prints tables.

No search, storage or RPC is implemented here. Importing the package loads nothing, because the
command line must set the environment before numpy is loaded.
"""

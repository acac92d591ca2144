"""The router over shards, and what people start: the client and the command line.

Stands above `shard`, which never imports it. Importing the package itself loads nothing: the
command line must set the environment before numpy is loaded.
"""

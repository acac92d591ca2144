"""Backups: collections copied through the servers into a target, checked, listed and pruned.

A target is a directory or a prefix of an object store; docs/formats.md has its layout. Nothing here
serves a call or opens a data directory that a server uses. gRPC and the terminal must not enter.
"""

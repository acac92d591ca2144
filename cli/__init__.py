"""The command line, `vectorshard`: starts servers, loads files, prints tables.

Importing the package itself loads nothing: the command line must set the environment before numpy
is loaded.
"""

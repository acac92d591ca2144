"""Tests of the router, one file a module."""

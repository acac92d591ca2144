"""Tests of the whole: real server processes, asked over real sockets."""

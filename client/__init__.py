"""The Python client: numpy in, numpy out, one tree of errors.

It needs the contract, the vocabulary, the wire and the status codes, and no library of a server.
"""

"""Ours beside other vector stores: the same rows, client processes and recall, in one run."""

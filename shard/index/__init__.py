"""Candidate generation and scoring: the exact scan, the IVF index, its calibration and its recall.

The only room that imports FAISS. No file and no lock enters here.
"""

"""Proposing and scoring rows: the exact scan, the IVF index, its calibration and its recall.

The only room that knows FAISS. No file and no lock enters here.
"""

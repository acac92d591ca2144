"""One query against one snapshot: candidate generation, filters, explanations, live recall.

Pure functions of an immutable snapshot: no file, no lock and no clock enters here.
"""

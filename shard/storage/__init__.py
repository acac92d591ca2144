"""What is durable: every file of the data directory, behind one seam to the disk.

docs/formats.md is the normative description of the files. No search and no network enters here.
"""

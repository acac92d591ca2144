"""What is durable: every file of the data directory, behind one seam to the disk.

docs/formats.md is normative for the files. No search and no network enters here.
"""

"""The load generator, `vectorshard bench`: calls at a rate, timed from their intended starts.

`command` is the command line. `schedule` decides when calls start, `requests` encodes them, and
`workload` provides their vectors. `engine` makes the calls over `connections`. `record` takes the
times, `recall` measures the quality, and `result` and `output` report both. `ingest` fills a
collection, and `stored_rows` checks whether it holds the rows of the file.
"""

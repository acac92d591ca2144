"""The load generator, `vectorshard bench`: calls at a rate, timed from their intended starts.

`command` is the command line. `schedule` says when calls shall start, `requests` what they say, and
`workload` where that comes from; `engine` makes them over `connections`; `record` takes the times,
`recall` the quality, and `result` and `output` tell both. `ingest` fills a collection, and
`stored_rows` says whether it holds the rows of the data.
"""

"""The load generator, `vectorshard bench`: calls at a rate, timed from their intended starts.

`command` is the command line. `schedule` says when calls shall start, `requests` what they say, and
`data` where that comes from; `engine` makes them over `connections`; `record` takes the times,
`recall` the quality, and `result` and `output` tell both.
"""

"""The router: a shard whose rows live in other shards.

`fan_out` places rows and merges answers over any Shard; `remote` is a Shard in another process.
"""

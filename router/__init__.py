"""The router: a shard whose rows live in other shards.

`fan_out` places rows and merges answers over any Shard; `remote` is a Shard in another process.
No row is stored and no index is searched here.
"""

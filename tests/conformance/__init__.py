"""One suite over the Shard protocol: whoever implements it must pass."""

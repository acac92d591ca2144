"""The whole stack against a model: random operations over shards, routers and restarts."""

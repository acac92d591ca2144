"""Backups: targets, manifests, and what a backup of a shard consists of."""

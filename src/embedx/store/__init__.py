"""Stores: shard files, run records and the Delta table that makes them one version."""

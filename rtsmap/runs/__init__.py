"""Runs: plan, shards, executors and the pipelines that tie the rooms together."""

"""Stages of the pipeline: bases, corpus, shards, training. Worker functions live here, jobs are thin."""

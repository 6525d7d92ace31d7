"""The stages of the pipeline: what is read, what is written, under which recipe; each does nothing when it is done.

A stage is a function `run(config)` inside a Ray session. Its worker functions are here too, so that workers can import
them; the jobs are thin entry points.
"""

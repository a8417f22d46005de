"""Batch jobs: a table of texts in, the same table with results out.

job.py      what is asked; the run of it on this machine
tables.py   tables as files: read in spans and chunks, written as a stream
results.py  results as columns
work.py     one span of a table -> parts of the output; both engines do this
parts.py    finished parts beside the output, so that a killed job goes on
on_ray.py   the same job by Ray's actors
"""

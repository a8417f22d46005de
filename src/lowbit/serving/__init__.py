"""A model behind HTTP: a parent that holds it, one front, and workers that share its memory.

    parent ── forks ──► front    HTTP, tokenizing, the queue            app.py, limits.py, front.py
       └──── forks ──► workers   batches in, results out                worker.py

settings.py    numbers that bound everything
processes.py   the parent: forks, watches, stops
channel.py     messages between the front and a worker
queue.py       rows that wait, and which of them are a batch
dispatcher.py  rows -> queue -> workers -> results; gives a dead worker's rows to another
metrics.py     what Prometheus reads
"""

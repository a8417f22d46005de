"""A model's forward pass as one native program.

capture.py   the model as a graph: torch's operators, and one for each quantized module
masks.py     which tokens see which, shown by trying the part of the graph that says so
lower.py     the part of the graph on rows of tokens, as a list of operations
program.py   that list; it can be printed, run by PyTorch, and built for native code
compiled.py  the door: `lowbit.compile`
"""

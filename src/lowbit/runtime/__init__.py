"""A model's forward pass as one native program.

capture.py     the model as a graph: torch's operators, and one for each quantized module
masks.py       which tokens see which, found by running the part of the graph that makes the mask
lower.py       the part of the graph on rows of tokens, as a list of operations (steps/)
row_by_row.py  steps that native code lacks, which torch computes on the rows
allocate.py    the offsets of the matrices between operations in one buffer
program.py     the list of operations; it can be printed, run by PyTorch, and built for native code
padding.py     which padding a program accepts
held.py        the modules and tensors that a program reads, and whether the model still has them
programs.py    the programs of a model, and which calls they serve
compiled.py    `lowbit.compile`
backend.py     `torch.compile(model, backend="lowbit")`
saved.py       graphs in a file of the model's folder, in the format of graph_file.py
summary.py     the part of `lowbit.explain` about programs
"""

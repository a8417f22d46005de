"""A model's forward pass as one native program.

capture.py     the model as a graph: torch's operators, and one for each quantized module
masks.py       which tokens see which, shown by trying the part of the graph that says so
lower.py       the part of the graph on rows of tokens, as a list of operations (steps/)
row_by_row.py  steps that native code lacks, which torch computes on the rows
allocate.py    where the matrices between operations lie in one memory
program.py     that list; it can be printed, run by PyTorch, and built for native code
padding.py     which padding a program may be given
held.py        what a program reads of a model, and whether the model still has it
programs.py    the programs of a model, and which calls they serve
compiled.py    `lowbit.compile`
backend.py     `torch.compile(model, backend="lowbit")`
saved.py       graphs in a file beside the model, as graph_file.py writes them
summary.py     what `lowbit.explain` says of programs
"""

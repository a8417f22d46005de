"""GGUF, the files of llama.cpp: in and out, code for code.

blocks.py     bytes of a block <-> its numbers
grids.py      its numbers <-> a quantized tensor
header.py     reads and checks the header of a file;  writer.py  writes a file
incoming.py   a file -> what lowbit imports
outgoing.py   a lowbit folder or a float model -> a file; its metadata: architectures.py,
              vocabulary.py
"""

from lowbit.interop.door import Reader, Writer
from lowbit.interop.gguf.incoming import open_gguf, recognizes
from lowbit.interop.gguf.outgoing import check, write, write_float

READER = Reader(recognizes, open_gguf)
WRITER = Writer(check, write, into_file=True, write_float=write_float)

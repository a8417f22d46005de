"""GGUF, the files of llama.cpp: in and out, code for code.

blocks.py     bytes of a block <-> its numbers
grids.py      its numbers <-> a quantized tensor
header.py     the header of a file, read with suspicion;  writer.py  a file, written
incoming.py   a file -> what lowbit imports
outgoing.py   a folder of lowbit's -> a file; architectures.py, vocabulary.py: what it is told
"""

from lowbit.interop.door import Reader, Writer
from lowbit.interop.gguf.incoming import open_gguf, recognizes
from lowbit.interop.gguf.outgoing import check, write

READER = Reader(recognizes, open_gguf)
WRITER = Writer(check, write, into_file=True)

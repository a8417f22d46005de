"""A GGUF file as llama.cpp itself opens, tokenizes and runs it, and its own quantizer."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp", reason="the package llama-cpp-python is absent")
_SILENT = llama_cpp.llama_log_callback(lambda *_: None)


def silence():
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))


def quantize(source, to, kind):
    """All matrices of a float file in one type, by llama.cpp's own quantizer."""
    silence()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.nthread, options.pure = 1, True
    paths = (str(path).encode() for path in (source, to))
    assert not llama_cpp.llama_model_quantize(*paths, ctypes.byref(options))
    return Path(to)


class LlamaCpp:
    def __init__(self, file, context=128, embeddings=False):
        silence()
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        assert self._model, f"llama.cpp refuses {file}"
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx = asked.n_batch = asked.n_ubatch = context
        asked.n_threads = asked.n_threads_batch = 1
        asked.embeddings = embeddings
        self._context = llama_cpp.llama_init_from_model(self._model, asked)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def close(self):
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def tokens(self, text):
        stored = text.encode()
        found = (llama_cpp.llama_token * (len(stored) + 8))()
        count = llama_cpp.llama_tokenize(
            self._vocab, stored, len(stored), found, len(found), True, True
        )
        return list(found[:count])

    def logits(self, ids):
        """[tokens, vocabulary], in an empty context."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        assert not self._run(llama_cpp.llama_decode, ids)
        count = llama_cpp.llama_vocab_n_tokens(self._vocab)
        return self._floats(llama_cpp.llama_get_logits(self._context), (len(ids), count))

    def translated(self, ids, start):
        """Logits of the first tokens of the decoder, whose input is `ids`."""
        assert not self._run(llama_cpp.llama_encode, ids)
        return self.logits(start)

    def embedding(self, ids):
        """The one vector of a text."""
        assert not self._run(llama_cpp.llama_encode, ids)
        width = llama_cpp.llama_model_n_embd(self._model)
        return self._floats(llama_cpp.llama_get_embeddings_seq(self._context, 0), (width,))

    def _run(self, call, ids):
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for at, number in enumerate(ids):
            batch.token[at], batch.pos[at], batch.logits[at] = number, at, 1
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
        result = call(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        return result

    def _floats(self, pointer, shape):
        return np.ctypeslib.as_array(pointer, shape).copy()

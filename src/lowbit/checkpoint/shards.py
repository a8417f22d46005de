"""Writing a checkpoint tensor by tensor: shards of bounded size and their index."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lowbit.checkpoint.atomic_write import writing
from lowbit.checkpoint.hashes import tensor_hash
from lowbit.checkpoint.read import INDEX, SINGLE

MAX_SHARD_BYTES = 500 * 10**6


class ShardWriter:
    """Holds at most one shard of `max_bytes` (or one larger tensor) in memory. After `close`,
    `hashes` has that of every tensor; they are computed beside the work, on a thread."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.pending: dict[str, Tensor] = {}
        self.hashes: dict[str, str] = {}
        self.shards: list[list[str]] = []
        self.bytes = 0
        self._hashing: dict[str, Future[str]] = {}
        self._thread = ThreadPoolExecutor(1, "lowbit-hash")

    def add(self, name: str, tensor: Tensor) -> None:
        """Raises InputError where the disk is full or cannot be written."""
        size = sum(t.nbytes for t in self.pending.values())
        if self.pending and size + tensor.nbytes > self.max_bytes:
            self._flush()
        self.pending[name] = tensor.contiguous()
        self._hashing[name] = self._thread.submit(tensor_hash, self.pending[name])
        self.bytes += tensor.nbytes

    def close(self) -> None:
        """Write the last shard, give all of them their names, and write the index."""
        self._flush()
        self._thread.shutdown()
        count = len(self.shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self.shards, 1):
            final = SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
            self._part(number).rename(self.folder / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            index = {"metadata": {"total_size": self.bytes}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.safetensors"

    def _flush(self) -> None:
        self.shards.append(list(self.pending))
        with writing(self.folder):
            save_file(self.pending, self._part(len(self.shards)), metadata={"format": "pt"})
        # Only now may the tensors go.
        self.hashes |= {name: found.result() for name, found in self._hashing.items()}
        self._hashing, self.pending = {}, {}

"""Keep the latents of images in files of safetensors, which runs with the same autoencoder share.

A shard is whole or absent; its name says which tensors it has, so that processes may write into one folder. Tensors are
read by themselves, through a memory map, and compared with their checksums.
"""

import hashlib
import shutil
import warnings
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ldmrt.runtime.errors import LdmrtWarning, first_line
from ldmrt.runtime.files.writing import remove, write_atomically

SHARD = 256_000_000  # bytes
MEGABYTE = 1_000_000


def checksum(tensor: Tensor) -> str:
    """Return the CRC-32 of a tensor's bytes, as text."""
    return f"{zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data):08x}"


class LatentFiles:
    """Keeps tensors by name in the shards of a folder; those of a shard that is not full yet are in memory."""

    def __init__(self, folder: Path, kind: str, shard: int = SHARD) -> None:
        """Open the shards that earlier runs wrote; a damaged one is removed, with a warning.

        Args:
            folder: Where the shards are.
            kind: What the tensors depend on beside their names; begins the names of the shards.
            shard: Bytes of tensors in a shard at most.
        """
        self.folder, self.kind, self.shard = folder, kind, shard
        self.waiting: dict[str, Tensor] = {}
        self.full = False  # the folder could not be written to, so what comes stays in memory
        self._bytes = 0
        self._files: dict[str, tuple[safe_open, str]] = {}  # and the checksum
        for path in sorted(folder.glob(f"{kind}-*.safetensors")):
            self._open(path)

    def _open(self, path: Path) -> None:
        """Learn which tensors a shard has."""
        try:
            opened = safe_open(path, framework="pt")
            sums = opened.metadata() or {}
            self._files |= {name: (opened, sums[name]) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError) as error:
            _warn(f"{path} is damaged ({first_line(error)}): its latents are computed again")
            remove(path)

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a tensor of this name."""
        return name in self.waiting or name in self._files

    def get(self, name: str) -> Tensor | None:
        """Return a tensor; None where there is none, or it is damaged."""
        if name in self.waiting or name not in self._files:
            return self.waiting.get(name)
        opened, expected = self._files[name]
        tensor: Tensor = opened.get_tensor(name)
        if checksum(tensor) == expected:
            return tensor
        _warn(f"latents in {self.folder} are damaged (checksum of {name}): they are computed again")
        del self._files[name]
        return None

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor; a shard that becomes full is written."""
        if not self.full and self.waiting and self._bytes + tensor.nbytes > self.shard:
            self.write()
        self.waiting[name] = tensor.cpu().contiguous()
        self._bytes += tensor.nbytes

    def write(self) -> None:
        """Write the tensors in memory as a shard; where that fails, they stay in memory, with a warning."""
        if self.full or not self.waiting:
            return
        digest = hashlib.sha256("".join(sorted(self.waiting)).encode()).hexdigest()[:16]
        path = self.folder / f"{self.kind}-{digest}.safetensors"
        try:
            with write_atomically(path) as file:
                file.write(save(self.waiting, {name: checksum(tensor) for name, tensor in self.waiting.items()}))
        except OSError as error:
            self.full = True
            _warn(
                f"latents cannot be kept in {self.folder} ({error.strerror}): {self._bytes / MEGABYTE:.1f} MB needed"
                f"{_free(self.folder)}; they stay in memory"
            )
            return
        self.waiting, self._bytes = {}, 0
        self._open(path)


def _free(folder: Path) -> str:
    """Say how much space is free, where there is a folder."""
    return f", {shutil.disk_usage(folder).free / MEGABYTE:.1f} MB free" if folder.is_dir() else ""


def _warn(problem: str) -> None:
    warnings.warn(f"train: {problem}", LdmrtWarning, stacklevel=3)

"""Files that are complete or absent, whatever happens to the process or the machine in between."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_synced(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes bytes, or what `content(file)` writes, and waits until they are on the disk."""
    with open(path, "wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            content(file)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """As `write_synced`, but `path` holds the old content until the new is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

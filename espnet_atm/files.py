"""Files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO, Iterator, Mapping

from espnet_atm.errors import UserError


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """Write a file beside its place, and put it there at the end.

    Whenever the process is killed or the disk is full, the file is what it was before.

    Args:
        file: the path to write, in a folder that exists.

    Yields:
        What to write to, in binary.

    Raises:
        OSError: naming ``file``, also where torch hides it behind a RuntimeError.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        partial.replace(file)
    except (OSError, RuntimeError) as e:
        partial.unlink(missing_ok=True)
        cause = e if isinstance(e, OSError) else e.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(file)) from None


def write_line(file: Path, text: str) -> None:
    """Write a file of one line, whole or not at all."""
    with whole_file(file) as f:
        f.write(f"{text}\n".encode())


def write_new(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder, which is made, and none in place of another.

    Args:
        folder: where to.
        contents: by name.

    Raises:
        UserError: naming a file that is there and not the same, before any is written.
        OSError: naming the file that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        file = folder / name
        if file.exists() and file.read_bytes() != content:
            raise UserError(f"{file}: is there, and is another: give another --output_dir")
    for name, content in contents.items():
        with whole_file(folder / name) as f:
            f.write(content)

"""Files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO, Iterator


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


def write_once(file: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", encoding="utf-8") as f:
        f.write(text + "\n")
        f.flush()
        os.fsync(f.fileno())
    partial.replace(file)

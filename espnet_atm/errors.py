"""A user's mistake is one line; a traceback is for our own faults."""

import contextlib
import errno
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, Iterator, Sequence, Union

import yaml

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """What a user can mend: the message names the thing, its value and the place."""


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """End the process with one line, and exit code 1, on what a user can mend.

    The one place where a command turns errors into words: :class:`UserError`, from
    this process or from one that reads data for it, and what the system says of files
    (missing, a folder, not to be read, no room left). Everything else is a fault of the
    program and keeps its traceback.

    Args:
        program: what to begin the line with, e.g. ``espnet_atm.bin.score``; its
            arguments are in ``sys.argv``.
    """
    try:
        _refuse_fifos(sys.argv[1:])
        yield
    except UserError as e:
        message = _original(str(e))
    except OSError as e:
        if e.errno is None:
            raise
        names = [str(x) for x in (e.filename, e.filename2) if x is not None]
        message = ": ".join([*names, e.strerror or str(e)])
    else:
        return
    sys.exit(f"{program}: error: {' '.join(message.split())}")


def _refuse_fifos(arguments: Sequence[str]) -> None:
    """Opening a named pipe that nobody writes to would wait for ever.

    What bash makes of ``<(command)`` has its writer.
    """
    for argument in arguments:
        for word in (argument, argument.partition("=")[2]):
            path = word.partition(",")[0]  # PATH,NAME,TYPE of ESPnet's data options
            try:
                is_fifo = stat.S_ISFIFO(os.stat(path).st_mode)
            except (OSError, ValueError):  # no path at all
                continue
            if is_fifo and not path.startswith(("/dev/fd/", "/proc/")):
                raise UserError(f"{path}: is a named pipe (FIFO), and no file")


def _original(message: str) -> str:
    """What was raised in a reading process, of the traceback that torch makes of it."""
    *_, found = re.split(r"^[\w.]*UserError: ", message, flags=re.MULTILINE)
    return found


def check_file(file: Union[str, Path]) -> None:
    """Refuse what is there and cannot be read as a file: again, and from any place.

    Raises:
        UserError: naming it.
        OSError: when nothing is there.
    """
    try:
        mode = os.stat(file).st_mode
    except ValueError as e:  # a null character
        raise UserError(f"{str(file)!r}: is no path: {e}") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{file}: is a folder, and no file")
    if not stat.S_ISREG(mode):
        raise UserError(
            f"{file}: is a pipe or a device, which can be read once only: write what "
            "it gives to a file"
        )


def read_text(file: Union[str, Path]) -> str:
    """The text of a small file.

    Raises:
        UserError: naming the file, when it is no file or no text in UTF-8.
        OSError: when it cannot be read.
    """
    check_file(file)
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{file}: is no text in UTF-8: {e.reason}") from None


def read_yaml(file: Union[str, Path]) -> Any:
    """The contents of a YAML file.

    Raises:
        UserError: naming the file, and the line where it is no YAML.
        OSError: when it cannot be read.
    """
    try:
        return yaml.safe_load(read_text(file))
    except yaml.YAMLError as e:
        raise UserError(f"{file}: is no YAML: {e}") from None
    except (ValueError, RecursionError) as e:  # e.g. a date that does not exist
        if isinstance(e, UserError):
            raise
        raise UserError(f"{file}: is no YAML that can be read: {e}") from None


def read_config(file: Union[str, Path]) -> dict:
    """A ``config.yaml``, as ESPnet's training leaves it.

    Raises:
        UserError: naming the file, when it holds no options.
        OSError: when it cannot be read.
    """
    config = read_yaml(file)
    if not isinstance(config, dict) or not all(isinstance(x, str) for x in config):
        raise UserError(
            f"{file}: holds no options with values: it is not the config.yaml that "
            "ESPnet's training writes"
        )
    return config


@contextlib.contextmanager
def telling_full_disk(what: str) -> Iterator[None]:
    """End with a line that says what could not be written, of a run that can go on."""
    try:
        yield
    except OSError as e:
        if e.errno not in FULL_DISK:
            raise
        sys.exit(
            f"{what} cannot be written: {e.strerror}. Make room and run this again: it goes "
            "on where it was"
        )

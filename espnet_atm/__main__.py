"""Run an ESPnet module with the extension installed.

``python -m espnet_atm -m espnet2.bin.ssl_train --config ...`` behaves as
``python -m espnet2.bin.ssl_train --config ...`` does, and understands ``ssl_conf``.
What a user can mend is told in one line.
"""

import contextlib
import importlib.util
import re
import runpy
import sys
import traceback
from pathlib import Path
from typing import Iterator, Optional

import yaml

from espnet_atm.errors import UserError, one_line_errors, read_yaml

USAGE = "usage: python -m espnet_atm -m MODULE [argument ...]"

# What ends a training run from outside, by what torch and the system say of it.
CAUSES = [
    (
        r"Connection (closed|reset) by peer|Broken pipe|remote process exited"
        r"|DistBackendError|DistNetworkError|DistStoreError|[Tt]imed out waiting .*ms"
        r"|NCCL (error|communicator was aborted)|gloo.*(Read|Write) error",
        "another process of this training has died or cannot be reached: look for its "
        "own message; the same command goes on from the last checkpoint",
    ),
    (
        r"Too many open files|received 0 items of ancdata",
        "too many open files: raise their number (ulimit -n), or lower num_workers or "
        "max_cache_fd",
    ),
    (
        r"DataLoader worker .*(killed by signal: Killed|exited unexpectedly)",
        "a process that reads data was killed, or had no memory left: give more memory, "
        "or lower num_workers or the size of batches",
    ),
    (
        r"DataLoader worker .*Bus error|</torch_\S*>",
        "no shared memory left: raise the size of /dev/shm (docker run --shm-size=8g), "
        "or set num_workers: 0",
    ),
    (
        r"can't allocate memory|out of memory|Cannot allocate memory",
        "out of memory: lower the size of batches (batch_bins, batch_size), or "
        "num_workers",
    ),
    (
        r"process \d+ terminated with (exit code|signal)",
        "a process of this training has ended, and so the others were: its own message "
        "is above; the same command goes on from the last checkpoint",
    ),
]

# In the traceback that torch makes of a fault in a reading process.
WORKER = re.compile(r"^Caught \w+ in DataLoader worker process \d+")
OF_FILES = re.compile(
    r"^(?:FileNotFoundError|PermissionError|IsADirectoryError|OSError"
    r"|soundfile\.LibsndfileError): (.*)",
    re.MULTILINE,
)


def uses_a_task(module: str) -> bool:
    """Whether ``module`` trains or loads models, as far as its source says.

    The others (tokenizers, statistics, launchers) must not pay the 10 seconds that
    importing ESPnet's tasks takes: a recipe starts dozens of them.
    """
    spec = importlib.util.find_spec(module)
    if spec is None:
        sys.exit(f"python -m espnet_atm: no module named {module!r}")
    return (
        spec.origin is not None
        and spec.origin.endswith(".py")
        and "espnet2.tasks" in Path(spec.origin).read_text(encoding="utf-8")
    )


def check_config(module: str, file: str) -> None:
    """Refuse what is no YAML, which ESPnet would not name, and another task's ssl_conf.

    Raises:
        UserError: naming the file.
    """
    config = read_yaml(file)
    ours = module.endswith("ssl_train") or not module.endswith("_train")
    if isinstance(config, dict) and "ssl_conf" in config and not ours:
        raise UserError(
            f"{file}: ssl_conf is for espnet2.bin.ssl_train, the task of recipes like "
            f"egs2/TEMPLATE/ssl1, and {module} has no such option: train by ssl.sh, with "
            "a config like egs2/librispeech/ssl1/conf/tuning/train_hubert.yaml"
        )


def cause(error: BaseException) -> Optional[str]:
    """What a user can mend, of an error that is not :class:`UserError`; else None."""
    if isinstance(error, MemoryError):
        error = RuntimeError(f"out of memory {error}")
    elif isinstance(error, EOFError) and _of_a_pipe(error):
        # torch may see the end of its pipe before it sees the end of the process.
        error = RuntimeError("DataLoader worker exited unexpectedly")
    elif not isinstance(error, (OSError, RuntimeError)) and not hasattr(
        error, "error_index"  # of the processes that ESPnet starts
    ):
        return None
    message = str(error)
    if WORKER.match(message):
        files = OF_FILES.findall(message)
        if files:
            return files[-1]
    elif type(error).__name__ == "LibsndfileError":
        return message
    said = f"{type(error).__name__}: {message}"
    for pattern, words in CAUSES:
        if re.search(pattern, said):
            lines = [x for x in message.splitlines() if re.search(pattern, x)]
            return f"{words} ({(lines or [message])[0].strip()[:300]})"
    return None


def _of_a_pipe(error: BaseException) -> bool:
    """Whether it was raised while a process waited for another's data."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(x.filename.endswith("multiprocessing/connection.py") for x in frames)


def was_interrupted(error: Optional[BaseException]) -> bool:
    """Whether it all began with Ctrl-C: torch makes another error of one while it saves."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Say of what the system or another process did that it can be mended, and how."""
    try:
        yield
    except UserError:
        raise
    except yaml.YAMLError as e:
        raise UserError(f"is no YAML: {e}") from None
    except (Exception, KeyboardInterrupt) as e:
        if was_interrupted(e):
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        words = cause(e)
        if words is None:
            raise
        raise UserError(words) from None


def main() -> None:
    """Install the extension if the named module needs it, then run the module."""
    if len(sys.argv) < 3 or sys.argv[1] != "-m":
        sys.exit(USAGE)
    module = sys.argv[2]
    sys.argv = sys.argv[2:]
    with one_line_errors(f"espnet_atm -m {module}"), in_words():
        for option, value in zip(sys.argv[1:], sys.argv[2:]):
            if option == "--config" and Path(value).is_file():
                check_config(module, value)
        if uses_a_task(module):
            from espnet_atm import task, transducer

            task.install()
            transducer.install()
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Show how far a training is, from the log that ESPnet writes.

Ends at the end of its standard input, which whoever trains holds.
"""

import argparse
import os
import re
import select
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Iterator, Optional

EVERY = 0.5  # seconds from one look to the next
BATCHES = 60  # seconds at least between two lines within an epoch

STARTED = re.compile(r" (\d+)/(\d+)epoch started(?:\. Estimated time to finish: (.+))?")
RESULTS = re.compile(r" (\d+)epoch results: (.*)")
PART = re.compile(r"\[(train|valid)\] (.*?)(?=, \[|$)")
LOSS = re.compile(r"(?:^|[ ,])loss=([^,]+)")
WITHIN = re.compile(r" (\d+)epoch:train:\d+-(\d+)batch: (.*)")


class Progress:
    """What to say of a log's lines.

    Args:
        every: seconds at least between two lines within an epoch.
    """

    def __init__(self, every: float = BATCHES):
        self.every = every
        self.epochs = "?"
        self.said = -every

    def __call__(self, line: str, now: float) -> Optional[str]:
        """In a few words; None of most lines.

        Args:
            line: of the log.
            now: in seconds, of a clock that never goes back.
        """
        if found := STARTED.search(line):
            epoch, self.epochs, left = found.groups()
            self.said = now
            left = f", about {left} left" if left else ""
            return f"epoch {epoch} of {self.epochs} begins{left}"
        if found := RESULTS.search(line):
            epoch, rest = found.groups()
            losses = {part: _loss(text) for part, text in PART.findall(rest)}
            return (
                f"epoch {epoch} of {self.epochs}: loss {losses.get('train', '?')}, "
                f"validation {losses.get('valid', '?')}"
            )
        found = WITHIN.search(line)
        if found and now - self.said >= self.every:
            self.said = now
            epoch, batch, rest = found.groups()
            return f"epoch {epoch} of {self.epochs}, batch {batch}: loss {_loss(rest)}"
        return None


def _loss(text: str) -> str:
    found = LOSS.search(text)
    return found[1] if found else "?"


def follow(file: Path, inode: int, at: int) -> Iterator[str]:
    """The lines that come, until standard input is at its end.

    Args:
        file: may come later, or be replaced.
        inode, at: which file is known, up to how many bytes.
    """
    rest, ended = "", False
    while True:
        if file.exists():
            with file.open("rb") as f:
                there = os.fstat(f.fileno())
                if there.st_ino != inode or there.st_size < at:
                    inode, at, rest = there.st_ino, 0, ""
                f.seek(at)
                rest += f.read().decode(errors="replace")
                at = f.tell()
            *lines, rest = rest.split("\n")
            yield from lines
        if ended:  # this was one more look at what has been written
            return
        ready = select.select([sys.stdin], [], [], EVERY)[0]
        ended = bool(ready) and not os.read(0, 1024)


def main(cmd=None) -> None:
    """Print as lines come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("inode", type=int, help="of the log that is there; 0 if none")
    parser.add_argument("size", type=int, help="of it in bytes; what comes is shown")
    args = parser.parse_args(cmd)
    progress = Progress()
    for line in follow(args.log, args.inode, args.size):
        said = progress(line, time.monotonic())
        if said:
            now = datetime.now().strftime("%Y-%m-%dT%H:%M:%S")
            print(f"{now} ({args.log.parent.name}) {said}", flush=True)


if __name__ == "__main__":
    main()

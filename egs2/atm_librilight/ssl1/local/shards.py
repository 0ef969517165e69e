#!/usr/bin/env python3
"""Parts of a wav.scp or of segments, for local/format_shards.sh.

``next`` writes the lines of the next one, of about so many seconds of audio. ``check`` says
which lines of a list cannot be read.
"""

import argparse
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import soundfile
from cuts import lines_of

from espnet_atm.errors import UserError, one_line_errors
from espnet_atm.files import whole_file

UNKNOWN = 120  # seconds, of what a command writes: they cost time to start, too


class Line(NamedTuple):
    """What is in a table, and what to read for it; "" if that is not known."""

    number: int  # from 1
    text: str
    utt: str
    source: str


def lines_of_table(table: Path, wav_scp: Path | None, skip: int = 0) -> Iterator[Line]:
    """The lines after the first ``skip``.

    Args:
        table: a wav.scp, or segments if there is a wav.scp to look them up in.
    """
    recordings = dict(lines_of(wav_scp)) if wav_scp else {}
    with open(table, encoding="utf-8") as f:
        for number, line in itertools.islice(enumerate(f, 1), skip, None):
            utt, rest = line.split(maxsplit=1)
            source = recordings.get(rest.split()[0], "") if wav_scp else rest.strip()
            yield Line(number, f"{utt} {rest.strip()}", utt, source)


def seconds_of(source: str) -> float:
    """How long a file is; a guess of what is none, or cannot be read."""
    try:
        return soundfile.info(source).duration
    except (soundfile.SoundFileError, OSError):
        return UNKNOWN


def next_lines(table: Path, wav_scp: Path | None, skip: int, seconds: float) -> list[str]:
    """The lines after the first ``skip``, of about so many seconds, one at least.

    ESPnet's script reads a recording as a whole, once for all of its segments.

    Raises:
        UserError: naming file and line, on a segment that is none.
    """
    lines, total, before = [], 0.0, None
    for line in lines_of_table(table, wav_scp, skip):
        if line.source != before:
            before = line.source
            total += seconds_of(before)
        if wav_scp:
            try:
                _, _, start, end = line.text.split()
                total += max(float(end) - float(start), 0)
            except ValueError:
                raise UserError(
                    f"{table}:{line.number}: {line.text}: is no recording and two times"
                ) from None
        if lines and total > seconds:
            break
        lines.append(f"{line.text}\n")
    return lines


def fault(source: str) -> str | None:
    """Why audio cannot be read, by us or as ESPnet's script does.

    Raises:
        UserError: when nothing is there: a disk, say, or a program.
    """
    from espnet_atm.audio import read_audio  # takes seconds, and mostly nothing is bad

    if not source.endswith("|") and not os.path.exists(source):
        raise UserError(
            f"{source}: no such file, or in an archive, which ESPnet's script cannot read"
        )
    try:
        read_audio(source)
        if not source.endswith("|"):
            soundfile.read(source)
    except Exception as e:  # whatever the reader of a damaged file raises
        why = " ".join(f"{source}: {e}".split())
        if re.search("its command ends with 12[67]:", why):  # bash: cannot be run
            raise UserError(why) from None
        return why
    return None


def check(table: Path, wav_scp: Path | None) -> dict[str, str]:
    """Why, of each utterance that cannot be read.

    Raises:
        UserError: naming one of which nothing is there.
    """
    found, before, why = {}, None, None
    for line in lines_of_table(table, wav_scp):
        if line.source != before:
            before = line.source
            try:
                why = fault(before)
            except UserError as e:
                raise UserError(f"{table}: {line.utt}: {e}") from None
        if why:
            found[line.utt] = why
    return found


def main(cmd=None) -> None:
    """Next, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one, two = map(commands.add_parser, ("next", "check"))
    one.add_argument("--skip", type=int, default=0, help="lines that were taken before")
    one.add_argument("--hours", type=float, required=True, help="of audio for a job")
    one.add_argument("--jobs", type=int, default=1)
    for command in (one, two):
        command.add_argument("--wav_scp", type=Path, help="of the recordings of segments")
        command.add_argument("table", type=Path, help="a wav.scp, or segments")
        command.add_argument("output", type=Path)
    args = parser.parse_args(cmd)
    if args.command == "next":
        seconds = 3600 * args.hours * args.jobs
        lines = next_lines(args.table, args.wav_scp, args.skip, seconds)
    else:
        bad = check(args.table, args.wav_scp)
        lines = [f"{utt} {why}\n" for utt, why in bad.items()]
    with whole_file(args.output) as f:
        f.write("".join(lines).encode())


if __name__ == "__main__":
    with one_line_errors("shards.py"):
        main()

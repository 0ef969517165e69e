#!/usr/bin/env python3
"""Refuse data directories whose tables are damaged or whose audio is not there.

ESPnet's scripts would take a byte-order mark for the beginning of an id, leave out what
they cannot match, or die hours later in the stage that reads the recording. What is wrong
is named and counted; nothing is dropped here.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import soundfile

from espnet_atm.audio import AudioError, check_whole
from espnet_atm.errors import UserError, one_line_errors

TABLES = ("wav.scp", "segments", "text", "utt2spk", "spk2utt")
SHOWN = 10  # of the recordings that are bad
UNREADABLE = (
    "does not say its length (it was written to a pipe), without which ESPnet's "
    "format_wav_scp.py cannot read it: write it anew"
)
UNKNOWN = 1 << 40  # more samples than a file has: libsndfile's word for not known


def read_table(file: Path) -> Iterator[tuple[str, str]]:
    """The id and the rest of each line.

    Raises:
        UserError: naming file and line, on what ESPnet would misread.
    """
    before, number = "", 0
    for number, line in enumerate(file.open("rb"), 1):
        line, where = line.removesuffix(b"\n"), f"{file}:{number}"
        if line.startswith(b"\xef\xbb\xbf"):
            raise UserError(f"{where}: begins with a byte-order mark: write plain UTF-8")
        if line.endswith(b"\r"):
            raise UserError(f"{where}: has the line ends of Windows: take out its \\r")
        try:
            key, _, rest = line.decode("utf-8").replace("\t", " ").partition(" ")
        except UnicodeDecodeError:
            raise UserError(f"{where}: {line[:40]!r} is no text in UTF-8") from None
        if not key:
            raise UserError(f"{where}: the line has no id: {line[:40]!r}")
        if key == before:
            raise UserError(f"{where}: {key} is there twice")
        before = key
        yield key, rest.strip()
    if not number:
        raise UserError(f"{file}:1: the line has no id: the file is empty")


def look(source: str) -> tuple[str | None, int]:
    """What is wrong with a recording, by its container and its last sample; its channels.

    Pipes and archives are not opened: stage 3 reads them whole. Their channels are 0.
    """
    if source.endswith("|") or source.rpartition(":")[2].isdigit():
        return None, 0
    if os.path.isfile(source) and not os.path.getsize(source):
        return "is empty", 0
    try:
        check_whole(source)
        with soundfile.SoundFile(source) as audio:
            last = audio.frames
            if not last:
                return "has no samples", 0
            if last > UNKNOWN:
                return UNREADABLE, 0
            try:
                if audio.seekable():
                    audio.seek(last - 1)
                    last = 1
                whole = len(audio.read(last)) == last
            except soundfile.SoundFileError:
                whole = False
            why = None if whole else "is cut off: its last sample cannot be read"
            return why, audio.channels
    except AudioError as e:
        return str(e), 0
    except (soundfile.SoundFileError, OSError) as e:
        return f"cannot be read: {e}", 0


def check_audio(folders: list[Path], jobs: int) -> dict[str, int]:
    """Look at each recording once; the channels of each.

    Raises:
        UserError: naming the first that are bad, with their number.
    """
    recordings = {
        source: f"{folder}/wav.scp: {key}"
        for folder in folders
        for key, source in read_table(folder / "wav.scp")
    }
    with ProcessPoolExecutor(min(jobs, len(recordings))) as pool:
        found = dict(zip(recordings, pool.map(look, recordings, chunksize=64)))
    bad = [f"{recordings[x]}: {x} {why}" for x, (why, _) in found.items() if why]
    for line in bad[:SHOWN]:
        print(line, file=sys.stderr)
    if bad:
        raise UserError(
            f"{len(bad)} of {len(recordings)} recordings are bad, the first: {bad[0]}; "
            "mend them, or take their utterances out"
        )
    return {source: channels for source, (_, channels) in found.items()}


def check_channels(folder: Path, channels: dict[str, int]) -> None:
    """Refuse a set that training could not put into one batch.

    Raises:
        UserError: naming two recordings that have not as many channels.
    """
    first = {}
    for key, source in read_table(folder / "wav.scp"):
        if channels[source]:
            first.setdefault(channels[source], f"{key} {source} has {channels[source]}")
    if len(first) > 1:
        one, other, *_ = (first[x] for x in sorted(first))
        raise UserError(
            f"{folder}/wav.scp: {one} channels and {other}, which no batch holds together: "
            "bring all recordings to one channel"
        )


def main(cmd=None) -> None:
    """Check all folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nj", type=int, default=1)
    for name, what in (
        ("labelled", "whose transcripts and audio count"),
        ("pool", "whose audio counts"),
        ("tables", "of which only the tables are looked at"),
    ):
        parser.add_argument(
            f"--{name}", type=Path, action="append", default=[], help=f"a set {what}"
        )
    args = parser.parse_args(cmd)
    for folder in (*args.labelled, *args.pool, *args.tables):
        for name in TABLES:
            if (name == "text" and folder not in args.labelled) or (
                name in ("segments", "spk2utt") and not (folder / name).exists()
            ):
                continue
            for _ in read_table(folder / name):
                pass
    folders = list(dict.fromkeys((*args.labelled, *args.pool)))
    if folders:
        channels = check_audio(folders, args.nj)
        for folder in args.labelled:
            check_channels(folder, channels)


if __name__ == "__main__":
    with one_line_errors("check_data.py"):
        main()

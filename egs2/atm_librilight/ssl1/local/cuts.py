#!/usr/bin/env python3
"""A pool as cuts into its recordings: what ESPnet's stages 3 and 4 make, without audio.

``make`` writes a data directory whose wav.scp says FILE:first:last of each segment, the
samples that ESPnet's format_wav_scp.py would write, and utt2num_samples. It ends with 3,
and a line that says why, where the recordings have to be written anew. ``select`` keeps
what is long enough and not too long. ``write`` writes the audio of a part of the cuts,
for who wants files, and ``join`` the data directory of what was written; a recording that
is damaged in its middle loses the segments over the damage. All go line by line: the files
of a data directory name the same utterances in the same order.
"""

import argparse
import io
import itertools
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from espnet_atm.cuts import SEEKABLE, split_cut
from espnet_atm.errors import UserError, one_line_errors
from espnet_atm.files import whole_file

TO_WRITE = 3  # exit code
TABLES = ("wav.scp", "utt2num_samples", "utt2spk", "text")
FOLDER_BYTES = 100_000  # of the table, for a subfolder of files: about 1000


class CannotCut(Exception):
    """Why recordings have to be written anew."""


class Lost(Exception):
    """Why a cut has no audio."""


class Recording(NamedTuple):
    """A file, and what its header says."""

    source: str
    samples: int
    rate: int
    channels: int
    format: str


def look_at(source: str) -> Recording | None:
    """The header of a file; None of a pipe or an archive.

    Raises:
        UserError: when it cannot be read.
    """
    if source.endswith("|") or source.rpartition(":")[2].isdigit():
        return None
    try:
        found = soundfile.info(source)
    except (soundfile.SoundFileError, OSError) as e:
        raise UserError(f"{source}: cannot be read: {e}") from None
    return Recording(
        *(source, found.frames, found.samplerate, found.channels, found.format)
    )


def refuse(name: str, recording: Recording | None, fs: int) -> None:
    """Raise CannotCut on what is not of one channel at this rate, in a file to seek in."""
    if recording is None:
        raise CannotCut(f"{name} is a pipe or in an archive")
    if recording.format not in SEEKABLE:
        raise CannotCut(f"{name} is {recording.format}, where no cut is exact")
    if recording.rate != fs:
        raise CannotCut(f"{name} has {recording.rate} Hz, not {fs}")
    if recording.channels != 1:
        raise CannotCut(f"{name} has {recording.channels} channels")


def lines_of(file: Path) -> Iterator[tuple[str, str]]:
    """The id and the rest of each line."""
    with open(file, encoding="utf-8") as f:
        for line in f:
            key, rest = line.split(maxsplit=1)
            yield key, rest.rstrip()


def read_recordings(wav_scp: Path, fs: int, jobs: int) -> dict[str, Recording]:
    """Recordings by name.

    Raises:
        CannotCut: naming the first that has to be written anew.
        UserError: naming one that cannot be read.
    """
    names, sources = zip(*lines_of(wav_scp))
    found = {}
    with ProcessPoolExecutor(min(jobs, len(names))) as pool:
        looking = pool.map(look_at, map(str.strip, sources), chunksize=256)
        bar = tqdm(looking, total=len(names), unit="file", mininterval=5, delay=5)
        try:
            for name, recording in zip(names, bar):
                refuse(f"{wav_scp}: {name}", recording, fs)
                found[name] = recording
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def cuts_of(
    segments: Path, recordings: dict[str, Recording]
) -> Iterator[tuple[str, str, int]]:
    """Utterance, FILE:first:last and number of samples of each segment.

    Raises:
        UserError: naming file and line, on a segment that is none.
    """
    for number, (utt, rest) in enumerate(lines_of(segments), 1):
        where = f"{segments}:{number}: {utt} {rest}"
        try:
            name, start, end = rest.split()
            recording, start, end = recordings[name], float(start), float(end)
        except (ValueError, KeyError):
            raise UserError(f"{where}: is no recording and two times") from None
        # As format_wav_scp.py: -1 is the end, and nothing is beyond it.
        last = recording.samples
        if end != -1:
            last = min(int(end * recording.rate), last)
        first = int(start * recording.rate)
        if not 0 <= first < last:
            raise UserError(
                f"{where}: nothing of {recording.source}, which has {recording.samples} "
                f"samples at {recording.rate} Hz, is there"
            )
        yield utt, f"{recording.source}:{first}:{last}", last - first


def make(data_dir: Path, output_dir: Path, fs: int, jobs: int) -> None:
    """Write the data directory; what was there is written over."""
    segments = data_dir / "segments"
    if not segments.exists():
        raise CannotCut(f"{data_dir} has whole recordings")
    recordings = read_recordings(data_dir / "wav.scp", fs, jobs)
    output_dir.mkdir(parents=True, exist_ok=True)
    speakers = lines_of(data_dir / "utt2spk")
    with Tables(output_dir) as tables:
        for utt, cut, samples in tqdm(
            cuts_of(segments, recordings), unit="utt", mininterval=5, delay=5
        ):
            speaker, name = next(speakers, ("no more", ""))
            if speaker != utt:
                raise UserError(
                    f"{data_dir / 'utt2spk'}: has {speaker} where segments has {utt}: sort "
                    "both, by utils/fix_data_dir.sh"
                )
            # ESPnet wants a text file. The pool has none to give away.
            tables.write(utt, (cut, samples, name, "unlabelled"))
    if (extra := next(speakers, None)) is not None:
        raise UserError(f"{data_dir / 'utt2spk'}: has {extra[0]}, and segments has not")
    (output_dir / "feats_type").write_text("raw\n")
    # What is read are the recordings; the scripts ask whether it is an archive.
    (output_dir / "audio_format").write_text("flac\n")


def select(from_dir: Path, output_dir: Path, least: int, most: int) -> tuple[int, int]:
    """Copy what has more samples than ``least`` and fewer than ``most``.

    Returns:
        How many there are, and how many are kept.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    lines = zip(*(lines_of(from_dir / name) for name in TABLES), strict=True)
    total = 0
    with Tables(output_dir) as tables:
        for total, row in enumerate(lines, 1):
            if least < int(row[1][1]) < most:
                tables.write(row[0][0], [rest for _, rest in row])
    for name in ("feats_type", "audio_format"):
        shutil.copy(from_dir / name, output_dir)
    return total, tables.count


def cuts_with_files(
    table: Path, folder: Path, audio_format: str, part: tuple[int, int] = (1, 1)
) -> Iterator[tuple[str, str, Path]]:
    """Utterance, cut, and the file for its audio, of a part of a wav.scp: (2, 3), say.

    The place in the table says in which subfolder, so that none has many files, and nobody
    has to count lines.
    """
    begin, end = (table.stat().st_size * n // part[1] for n in (part[0] - 1, part[0]))
    with open(table, "rb") as f:
        if begin > 0:  # from the first line that begins there
            f.seek(begin - 1)
            f.readline()
        while (at := f.tell()) < end:
            utt, source = f.readline().decode().split(maxsplit=1)
            name = f"{utt.replace('/', '%2F')}.{audio_format}"
            yield utt, source.rstrip(), folder / f"{at // FOLDER_BYTES:05}" / name


def read_samples(source: str) -> tuple[np.ndarray, int]:
    """A cut (N,), float64 as ESPnet reads it, and the sampling rate in Hz.

    Raises:
        UserError: when the file cannot be opened.
        Lost: when the cut cannot be read to its end.
    """
    file, (first, last) = split_cut(source)
    try:
        opened = soundfile.SoundFile(file)
    except (soundfile.SoundFileError, OSError) as e:
        raise UserError(f"{file}: cannot be opened any more: {e}") from None
    with opened as f:
        try:
            f.seek(first)
            audio = f.read(last - first)
        except (soundfile.SoundFileError, OSError) as e:
            raise Lost(f"{source}: is damaged: {e}") from None
        if len(audio) < last - first:
            raise Lost(f"{source}: is damaged: only {len(audio)} samples are there")
        return audio, f.samplerate


def write(cuts: Path, output_dir: Path, audio_format: str, job: int, jobs: int) -> None:
    """Write the audio of a job's part, and ``parts/JOB.JOBS``: what is lost, and why.

    A file is there whole or not at all, and is not written again. Two processes may do the
    same part.
    """
    parts = output_dir / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    # In one place, where what a killed process leaves is found again.
    partial = parts / f"{socket.gethostname()}.{os.getpid()}.partial"
    lost, there, written = [], 0, 0
    rows = cuts_with_files(
        cuts / "wav.scp", output_dir / "audio", audio_format, (job, jobs)
    )
    for utt, source, file in tqdm(rows, unit="utt", mininterval=30):
        if file.exists():
            there += 1
            continue
        try:
            audio, rate = read_samples(source)
        except Lost as e:
            lost.append(f"{utt} {' '.join(str(e).split())}\n")
            continue
        content = io.BytesIO()  # a full disk is Python's error, which libsndfile hides
        soundfile.write(content, audio, rate, format=audio_format)
        partial.write_bytes(content.getbuffer())
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(file)
        written += 1
    print("".join(lost), end="", file=sys.stderr)
    print(f"{written} written, {there} there already, {len(lost)} lost", file=sys.stderr)
    with whole_file(parts / f"{job}.{jobs}") as f:
        f.write("".join(lost).encode())


def join(cuts: Path, output_dir: Path, audio_format: str, jobs: int) -> None:
    """Write the data directory of what jobs have written, less what is lost.

    ``lost`` says which that is, and why.

    Raises:
        UserError: when more than half is lost, which is no damage.
    """
    parts = output_dir / "parts"
    lost = {
        utt: why for n in range(1, jobs + 1) for utt, why in lines_of(parts / f"{n}.{jobs}")
    }
    rows = zip(
        cuts_with_files(cuts / "wav.scp", output_dir / "audio", audio_format),
        *(lines_of(cuts / name) for name in TABLES[1:]),
        strict=True,
    )
    total = 0
    with Tables(output_dir) as tables:
        for total, ((utt, _, file), *columns) in enumerate(rows, 1):
            if utt not in lost:
                tables.write(utt, (file, *(rest for _, rest in columns)))
        if 2 * len(lost) > total:
            utt, why = next(iter(lost.items()))
            raise UserError(
                f"{len(lost)} of {total} cuts cannot be read, the first: {utt}: {why}"
            )
    with whole_file(output_dir / "lost") as f:
        f.writelines(f"{utt} {why}\n".encode() for utt, why in lost.items())
    (output_dir / "feats_type").write_text("raw\n")
    (output_dir / "audio_format").write_text(f"{audio_format}\n")
    shutil.rmtree(parts)


class Tables:
    """The files of a data directory, put in place together at the end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.count = 0

    def __enter__(self) -> "Tables":
        self.files = [
            open(self.folder / f"{name}.partial", "w", encoding="utf-8") for name in TABLES
        ]
        return self

    def write(self, utt: str, columns) -> None:
        """A line of each."""
        for file, value in zip(self.files, columns):
            file.write(f"{utt} {value}\n")
        self.count += 1

    def __exit__(self, error, *_) -> None:
        for file in self.files:
            file.close()
        if error is not None:
            return
        spk2utt = self.folder / "spk2utt.partial"
        write_spk2utt(self.folder / "utt2spk.partial", spk2utt)
        for name in (*TABLES, "spk2utt"):
            (self.folder / f"{name}.partial").replace(self.folder / name)


def write_spk2utt(utt2spk: Path, file: Path) -> None:
    """Utterances by speaker; one after the other, where theirs are together."""
    seen: dict[str, list[str]] = {}
    together = True
    with open(file, "w", encoding="utf-8") as f:
        for speaker, lines in itertools.groupby(lines_of(utt2spk), lambda x: x[1]):
            if speaker in seen:
                together = False
                break
            seen[speaker] = []
            f.write(" ".join([speaker, *(utt for utt, _ in lines)]) + "\n")
    if together:
        return
    seen = {}
    for utt, speaker in lines_of(utt2spk):
        seen.setdefault(speaker, []).append(utt)
    with open(file, "w", encoding="utf-8") as f:
        f.writelines(f"{speaker} {' '.join(seen[speaker])}\n" for speaker in sorted(seen))


def main(cmd=None) -> None:
    """Make, select, write or join."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one, two, three, four = map(commands.add_parser, ("make", "select", "write", "join"))
    one.add_argument("--fs", type=int, required=True, help="in Hz")
    one.add_argument("--nj", type=int, default=1)
    two.add_argument("--least", type=int, required=True, help="samples; more are kept")
    two.add_argument("--most", type=int, required=True, help="samples; fewer are kept")
    three.add_argument("--job", type=int, default=1, help="which part, from 1")
    for command in (three, four):
        command.add_argument("--jobs", type=int, default=1, help="how many parts")
        command.add_argument("--audio_format", default="flac")
    for command in (one, two, three, four):
        command.add_argument("from_dir", type=Path)
        command.add_argument("output_dir", type=Path)
    args = parser.parse_args(cmd)
    folders = args.from_dir, args.output_dir
    if args.command == "select":
        print(*select(*folders, args.least, args.most))
    elif args.command == "write":
        write(*folders, args.audio_format, args.job, args.jobs)
    elif args.command == "join":
        join(*folders, args.audio_format, args.jobs)
    else:
        try:
            make(*folders, args.fs, args.nj)
        except CannotCut as e:
            print(f"{e}: audio is written")
            sys.exit(TO_WRITE)


if __name__ == "__main__":
    with one_line_errors("cuts.py"):
        main()

#!/usr/bin/env python3
"""Libri-Light: find the recordings, and cut them along their voice activity.

The official layout is ``<size>/<speaker>/<book>/<name>.flac`` with ``<name>.json`` beside
it, which holds ``speaker``, ``book_meta`` with its ``id``, and ``voice_activity``, a list
of [onset, offset] in seconds (https://github.com/facebookresearch/libri-light). Audio is
not touched: what comes out are Kaldi's ``segments``.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TextIO

import soundfile
from espnet2.utils.types import str2bool
from kaldi_data import identity, walk
from tqdm import tqdm

SIZES = ("small", "medium", "large")
SAMPLE_RATE = 16000

FEW = 4  # speakers for validation, at least
# Times are whole hundredths of a second: the voice activity has no more, and sums are exact.
TICKS = 100
Span = tuple[int, int]

KEPT = "kept"
# Why audio is left out, in the order of the summary.
NO_JSON = "FLAC without JSON"
NO_FLAC = "JSON without FLAC"
BAD_JSON = "JSON cannot be read"
BAD_FLAC = "FLAC cannot be read"
EXCLUDED = "speaker or book of the exclusion list"
SILENT = "no voice activity in the recording"
OUTSIDE = "between segments, no voice activity"
SHORT = "voice activity too short for a segment"
BEYOND = "voice activity beyond the end of the FLAC"
TWICE = "same id as another recording"
REASONS = (
    NO_JSON,
    NO_FLAC,
    BAD_JSON,
    BAD_FLAC,
    EXCLUDED,
    SILENT,
    OUTSIDE,
    SHORT,
    BEYOND,
    TWICE,
)


def cut(
    activity: Iterable[Span], shortest: int, longest: int, max_pause: int
) -> tuple[list[Span], int]:
    """Contiguous segments that begin and end where speech does.

    A segment holds as much as fits, but leaves enough for another one where it can. Speech
    that goes on for too long without a pause is cut within.

    Args:
        activity: [onset, offset) of speech in hundredths of a second, in order and apart.
        shortest, longest: bounds of a segment, with ``shortest + max_pause < longest``.
        max_pause: a longer pause ends a segment.

    Returns:
        The segments, and how much time, from onset to offset, was too short for one.

    >>> cut([(0, 2000), (2100, 5000), (5100, 9000)], 3200, 6400, 500)
    ([(0, 5000), (5100, 9000)], 0)
    """
    segments, too_short = [], 0
    for chunks in runs(activity, max_pause):
        end = chunks[-1][1]
        while chunks:
            start = chunks[0][0]
            if end - start < shortest:
                too_short += end - start
                break
            if end - start <= longest:
                segments.append((start, end))
                break
            fitting = [
                i
                for i, (_, offset) in enumerate(chunks)
                if shortest <= offset - start <= longest
            ]
            leaving = [i for i in fitting if end - chunks[i + 1][0] >= shortest]
            if fitting:
                last = (leaving or fitting)[-1]
                segments.append((start, chunks[last][1]))
                chunks = chunks[last + 1 :]
                continue
            # No pause in reach: the first chunk that ends too late begins within it.
            late = next(
                i for i, (_, offset) in enumerate(chunks) if offset > start + longest
            )
            point = max(
                min(start + longest, end - shortest),
                start + shortest,
                chunks[late][0] + 1,
            )
            segments.append((start, point))
            chunks = [(point, chunks[late][1]), *chunks[late + 1 :]]
    return segments, too_short


def runs(activity: Iterable[Span], max_pause: int) -> Iterator[list[Span]]:
    """Stretches of speech without a pause longer than ``max_pause``."""
    run: list[Span] = []
    for onset, offset in activity:
        if run and onset - run[-1][1] > max_pause:
            yield run
            run = []
        run.append((onset, offset))
    if run:
        yield run


# ------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Recording:
    """What a JSON file says. Activity is in hundredths of a second."""

    speaker: str
    book: str
    activity: tuple[Span, ...]


def read_json(path: Path) -> Recording:
    """Read and check a recording's JSON.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        with path.open(encoding="utf-8") as f:
            content = json.load(f)
        speaker, book = str(content["speaker"]), str(content["book_meta"]["id"])
        activity = tuple(
            (round(float(onset) * TICKS), round(float(offset) * TICKS))
            for onset, offset in content["voice_activity"]
        )
    except KeyError as e:
        raise ValueError(f"{path} has no {e}") from None
    except (TypeError, ValueError, OverflowError) as e:
        raise ValueError(f"{path}: {e}") from None
    if not re.fullmatch(r"[A-Za-z0-9]+", speaker) or not re.fullmatch(r"\w+", book):
        raise ValueError(f"{path}: speaker {speaker!r} or book {book!r} is no id")
    before = 0
    for onset, offset in activity:
        if not before <= onset < offset:
            raise ValueError(
                f"{path}: voice_activity is not in order at "
                f"[{onset / TICKS}, {offset / TICKS}]"
            )
        before = offset
    return Recording(speaker, book, activity)


def flac_ticks(path: Path) -> int:
    """Length of a FLAC in hundredths of a second, from its header.

    The header of a file that was cut off still says what it was, so its last sample is
    read: some 0.3 ms, whatever the length.

    Raises:
        ValueError: naming the file, when it is none, not 16 kHz mono, or cut off.
    """
    try:
        with soundfile.SoundFile(str(path)) as audio:
            rate, channels, frames = audio.samplerate, audio.channels, audio.frames
            try:
                audio.seek(frames - 1)
                whole = len(audio.read(1)) == 1
            except soundfile.SoundFileError:
                whole = False
    except (soundfile.SoundFileError, OSError) as e:
        raise ValueError(f"{path}: {e}") from None
    if (rate, channels) != (SAMPLE_RATE, 1):
        raise ValueError(
            f"{path}: {rate} Hz with {channels} channels, not {SAMPLE_RATE} Hz mono"
        )
    if not whole:
        raise ValueError(
            f"{path} is cut off: its header says {frames / rate:.2f} s, but the last "
            "sample cannot be read"
        )
    return frames * TICKS // SAMPLE_RATE


def read_exclusions(paths: Iterable[Path]) -> tuple[set[str], set[str]]:
    """Speakers and books that must not be trained on.

    A file is LibriSpeech's SPEAKERS.TXT or CHAPTERS.TXT, of which the dev and test sets
    count, or has lines ``speaker <id>`` and ``book <id>``.

    Returns:
        LibriVox's ids of speakers, and of books (projects).

    Raises:
        ValueError: naming file and line that cannot be read.
    """
    speakers, books = set(), set()
    for path in paths:
        with path.open(encoding="utf-8-sig", errors="replace") as f:
            for number, line in enumerate(f, 1):
                line = line.strip()
                if not line or line.startswith(";"):
                    continue
                fields = [x.strip() for x in line.split("|")]
                words = line.split()
                if len(fields) >= 7 and is_held_out(fields[3]):  # CHAPTERS.TXT
                    speakers.add(fields[1])
                    books.add(fields[4])
                elif len(fields) >= 5 and is_held_out(fields[2]):  # SPEAKERS.TXT
                    speakers.add(fields[0])
                elif len(words) == 2 and words[0] in ("speaker", "book"):
                    (speakers if words[0] == "speaker" else books).add(words[1])
                elif len(fields) < 5:
                    raise ValueError(
                        f"{path}:{number}: {line!r} is neither 'speaker <id>' nor 'book "
                        "<id>' nor a line of SPEAKERS.TXT or CHAPTERS.TXT"
                    )
    return speakers, books


def is_held_out(subset: str) -> bool:
    """Whether a subset of LibriSpeech is for evaluation."""
    return subset.startswith(("dev-", "test-"))


# ------------------------------------------------------------------------------------
# Finding
# ------------------------------------------------------------------------------------
def find_recordings(
    root: Path, sizes: Iterable[str], lost: list[str]
) -> Iterator[str]:
    """Paths without suffix of all that is FLAC or JSON below ``<root>/<size>``, in order.

    Symbolic links are followed.

    Args:
        lost: gets a line for each link to nothing that may have been a folder. Recordings
            that are links to nothing are found, and counted when they are cut.

    Raises:
        ValueError: naming a folder that is not there, or has none.
    """
    for size in sizes:
        folder = root / size
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is not there: LIBRILIGHT in db.sh names the folder that holds "
                f"{', '.join(SIZES)}"
            )
        found = 0
        folders, above = sorted(folder.iterdir()), frozenset([identity(folder)])
        for speaker in tqdm(
            folders, desc=f"finding {size}", unit="speaker", mininterval=5
        ):
            stems = set()
            for x in walk(speaker, above) if speaker.is_dir() else [speaker]:
                if x.suffix in (".flac", ".json"):
                    stems.add(str(x.with_suffix("")))
                elif not x.exists():  # what a folder's link was, nobody knows
                    lost.append(f"{x} is a link to {os.readlink(x)}, which is not there")
            found += len(stems)
            yield from sorted(stems)
        if not found:
            raise ValueError(f"{folder} has no <speaker>/<book>/<name>.flac or .json")


# ------------------------------------------------------------------------------------
# One part of the recordings
# ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Settings:
    """What the segments of a recording depend on. Times in hundredths of a second."""

    shortest: int
    longest: int
    max_pause: int
    check_audio: bool
    speakers: frozenset[str]
    books: frozenset[str]


@dataclass(frozen=True)
class Cut:
    """A recording and its segments, in hundredths of a second."""

    rec: str
    flac: str
    speaker: str
    book: str
    segments: list[Span]

    @property
    def ticks(self) -> int:
        """Of all segments together."""
        return sum(end - start for start, end in self.segments)


class Part:
    """Segments and sums of some of the recordings.

    Args:
        folder: where ``cut``, a line of JSON for each recording, and ``problems`` are
            written; they are complete once ``summary.json`` is.
    """

    def __init__(self, folder: Path, settings: Settings):
        self.settings = settings
        self.cut = (folder / "cut").open("w", encoding="utf-8")
        self.problems = (folder / "problems").open("w", encoding="utf-8")
        self.recordings: Counter[str] = Counter()
        self.ticks: Counter[str] = Counter()

    def close(self) -> None:
        """Write what is buffered."""
        self.cut.close()
        self.problems.close()

    def account(self, reason: str, ticks: int) -> None:
        """Add a recording's time, of which there may be none."""
        self.recordings[reason] += 1
        self.ticks[reason] += ticks

    def add(self, stem: str) -> None:
        """Cut one recording; what is wrong with it is written down."""
        json_file, flac = Path(f"{stem}.json"), Path(f"{stem}.flac")
        length, recording, reason = 0, None, None
        if self.settings.check_audio and not flac.is_file():
            reason = NO_FLAC
            self.problems.write(f"{flac} is not there, beside its JSON\n")
        elif self.settings.check_audio:
            try:
                length = flac_ticks(flac)
            except ValueError as e:
                reason = BAD_FLAC
                self.problems.write(f"{e}\n")
        if not json_file.is_file():
            reason = reason or NO_JSON
            self.problems.write(f"{json_file} is not there, beside its FLAC\n")
        else:
            try:
                recording = read_json(json_file)
            except ValueError as e:
                reason = reason or BAD_JSON
                self.problems.write(f"{e}\n")
        activity = recording.activity if recording else ()
        says = activity[-1][1] if activity else 0
        total = max(length, says)
        if reason is None and (
            recording.speaker in self.settings.speakers
            or recording.book in self.settings.books
        ):
            reason = EXCLUDED
        if reason is None and not activity:
            reason = SILENT
        if reason is not None:
            self.account(reason, total)
            return
        beyond = 0
        if self.settings.check_audio and says > length:
            beyond = says - length
            activity = tuple((a, min(b, length)) for a, b in activity if a < length)
            self.account(BEYOND, beyond)
            # The voice activity is rounded to its own frames.
            if beyond > TICKS // 2:
                self.problems.write(
                    f"{flac} has {length / TICKS} s, but its JSON has voice activity up to "
                    f"{says / TICKS} s\n"
                )
        segments, too_short = cut(
            activity,
            self.settings.shortest,
            self.settings.longest,
            self.settings.max_pause,
        )
        name = re.sub(r"[^A-Za-z0-9_.]", "_", flac.stem)
        speaker, book = recording.speaker, recording.book
        found = Cut(f"{speaker}-{book}-{name}", str(flac), speaker, book, segments)
        if segments:
            self.account(KEPT, found.ticks)
            print(json.dumps(asdict(found)), file=self.cut)
        if too_short:
            self.account(SHORT, too_short)
        if outside := total - found.ticks - too_short - beyond:
            self.account(OUTSIDE, outside)


def cut_part(recordings: Path, folder: Path, settings: Settings) -> None:
    """Cut the recordings that a list names.

    Nothing is done when it was done before, unless there were problems: files may have
    been mended.
    """
    stems = recordings.read_text(encoding="utf-8").splitlines()
    key = [
        hashlib.md5("\n".join(stems).encode()).hexdigest(),
        *(sorted(x) if isinstance(x, frozenset) else x for x in astuple(settings)),
    ]
    done = folder / "summary.json"
    if (
        done.is_file()
        and json.loads(done.read_text(encoding="utf-8"))["key"] == key
        and not (folder / "problems").stat().st_size
    ):
        print(f"{folder}: done already", file=sys.stderr)
        return
    done.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    part = Part(folder, settings)
    for stem in tqdm(stems, desc="cutting", unit="recording", mininterval=5):
        part.add(stem)
    part.close()
    summary = {
        "key": key,
        "recordings": part.recordings,
        "ticks": part.ticks,
    }
    partial = folder / "summary.partial"
    partial.write_text(json.dumps(summary), encoding="utf-8")
    partial.replace(done)


# ------------------------------------------------------------------------------------
# All parts
# ------------------------------------------------------------------------------------
def held_out_speakers(hours: dict[str, float], wanted: float) -> set[str]:
    """Speakers for validation: by the hash of their id, until their hours suffice.

    They are :data:`FEW` at least, so that no one's voice decides: of those who have
    more than their part, the ones with the least are taken if others do not suffice. A
    tenth of all hours at most is given away, but one speaker always is.

    Raises:
        ValueError: when there are fewer than two speakers.
    """
    if len(hours) < 2:
        raise ValueError(
            f"{len(hours)} speakers with segments: two are needed, one for validation"
        )
    most = sum(hours.values()) / 10
    wanted = min(wanted, most)
    order = sorted(hours, key=lambda x: hashlib.md5(x.encode()).hexdigest())
    chosen: list[str] = []
    total = 0.0
    for speaker in order:
        if hours[speaker] <= wanted / FEW and total + hours[speaker] <= wanted:
            chosen.append(speaker)
            total += hours[speaker]
    for speaker in sorted(order, key=lambda x: hours[x]):
        if chosen and (len(chosen) >= FEW or total + hours[speaker] > most):
            break
        if speaker not in chosen:
            chosen.append(speaker)
            total += hours[speaker]
    return set(chosen)


def merge(parts: list[Path], folder: Path, valid_hours: float) -> str:
    """Put the parts together: Kaldi's tables, in ``<folder>/train`` and ``<folder>/valid``.

    Of recordings with one id, the first is taken. The lines keep the order of the
    parts: the caller sorts them.

    Returns:
        The summary as text; ``<folder>/summary.json`` has it too.
    """
    recordings: Counter[str] = Counter()
    ticks: Counter[str] = Counter()
    for part in parts:
        summary = json.loads((part / "summary.json").read_text(encoding="utf-8"))
        recordings.update(summary["recordings"])
        ticks.update(summary["ticks"])
    # All ids are held here: 30 MB for the 219,000 of Libri-Light.
    seen: set[str] = set()
    twice: set[str] = set()
    hours: Counter[str] = Counter()
    for found in read_cut(parts):
        if found.rec in seen:
            twice.add(found.rec)
            continue
        seen.add(found.rec)
        hours[found.speaker] += found.ticks / TICKS / 3600
    valid = held_out_speakers(hours, valid_hours)
    segments = 0
    first: dict[str, str] = {}
    with ExitStack() as stack:

        def create(*name: str) -> TextIO:
            file = folder.joinpath(*name)
            file.parent.mkdir(parents=True, exist_ok=True)
            return stack.enter_context(file.open("w", encoding="utf-8"))

        problems = create("problems")
        for part in parts:
            with (part / "problems").open(encoding="utf-8") as f:
                problems.writelines(f)
        tables = {x: [create(x, y) for y in TABLES] for x in ("train", "valid")}
        for found in read_cut(parts):
            if found.rec in first:
                problems.write(
                    f"{found.flac} has the same id, {found.rec}, as "
                    f"{first[found.rec]}, and is left out\n"
                )
                for reason, sign in ((KEPT, -1), (TWICE, 1)):
                    recordings[reason] += sign
                    ticks[reason] += sign * found.ticks
                continue
            if found.rec in twice:
                first[found.rec] = found.flac
            segments += len(found.segments)
            write(found, *tables["valid" if found.speaker in valid else "train"])
    result = {
        "hours_in": sum(ticks.values()) / TICKS / 3600,
        "hours_out": ticks[KEPT] / TICKS / 3600,
        "segments": segments,
        "speakers": len(hours),
        "speakers_held_out": sorted(valid),
        "dropped": {
            x: {"recordings": recordings[x], "hours": ticks[x] / TICKS / 3600}
            for x in REASONS
            if recordings[x]
        },
    }
    (folder / "summary.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [
        f"hours in                {result['hours_in']:12.3f}",
        f"hours out               {result['hours_out']:12.3f} in {segments} segments of "
        f"{len(hours)} speakers ({len(valid)} for validation)",
        "hours dropped",
    ]
    for reason, x in result["dropped"].items():
        lines.append(f"  {x['hours']:12.3f} of {x['recordings']} recordings: {reason}")
    return "\n".join(lines)


def read_cut(parts: Iterable[Path]) -> Iterator[Cut]:
    """The recordings of all parts."""
    for part in parts:
        with (part / "cut").open(encoding="utf-8") as f:
            for line in f:
                yield Cut(**json.loads(line))


TABLES = ("wav.scp", "segments", "utt2spk", "utt2book")


def write(
    found: Cut, wav_scp: TextIO, segments: TextIO, utt2spk: TextIO, utt2book: TextIO
) -> None:
    """Write a recording's lines."""
    print(found.rec, found.flac, file=wav_scp)
    for start, end in found.segments:
        utt = f"{found.rec}-{start:07d}-{end:07d}"
        times = f"{start / TICKS:.2f} {end / TICKS:.2f}"
        print(utt, found.rec, times, file=segments)
        print(utt, found.speaker, file=utt2spk)
        print(utt, found.book, file=utt2book)


# ------------------------------------------------------------------------------------
def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    find = commands.add_parser("find", help="write the list of recordings")
    find.add_argument("--root", type=Path, required=True)
    find.add_argument("--sizes", nargs="+", choices=SIZES, required=True)
    find.add_argument("--output", type=Path, required=True)
    one = commands.add_parser("cut", help="cut the recordings of a list")
    one.add_argument("--recordings", type=Path, required=True)
    one.add_argument("--output_dir", type=Path, required=True)
    one.add_argument("--exclude", type=Path, nargs="*", default=[])
    one.add_argument("--min_seconds", type=float, default=32)
    one.add_argument("--max_seconds", type=float, default=64)
    one.add_argument(
        "--max_pause", type=float, default=5, help="seconds within a segment"
    )
    one.add_argument(
        "--check_audio",
        type=str2bool,
        default=True,
        help="look at every FLAC: is it there, whole, and as long as its JSON says?",
    )
    every = commands.add_parser("merge", help="put the parts together")
    every.add_argument("--parts", type=Path, nargs="+", required=True)
    every.add_argument("--output_dir", type=Path, required=True)
    every.add_argument("--valid_hours", type=float, default=10)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run one of the commands."""
    args = get_parser().parse_args(argv)
    if args.command == "find":
        partial, count, lost = args.output.with_suffix(".partial"), 0, []
        with partial.open("w", encoding="utf-8") as f:
            found = find_recordings(args.root, args.sizes, lost)
            for count, stem in enumerate(found, 1):
                f.write(f"{stem}\n")
        args.output.with_suffix(".lost").write_text("".join(f"{x}\n" for x in lost))
        partial.replace(args.output)
        for line in lost:
            print(f"warning: {line}", file=sys.stderr)
        print(
            f"{count} recordings in {args.root}: {' '.join(args.sizes)}; {len(lost)} "
            "links to nothing"
        )
    elif args.command == "cut":
        if not 0 < args.min_seconds + args.max_pause < args.max_seconds:
            raise ValueError(
                f"--min_seconds {args.min_seconds} and --max_pause {args.max_pause} "
                f"together must be below --max_seconds {args.max_seconds}"
            )
        speakers, books = read_exclusions(args.exclude)
        settings = Settings(
            round(args.min_seconds * TICKS),
            round(args.max_seconds * TICKS),
            round(args.max_pause * TICKS),
            args.check_audio,
            frozenset(speakers),
            frozenset(books),
        )
        cut_part(args.recordings, args.output_dir, settings)
    else:
        print(merge(args.parts, args.output_dir, args.valid_hours))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"{Path(__file__).name}: {e}")

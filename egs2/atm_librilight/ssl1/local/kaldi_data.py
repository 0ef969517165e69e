#!/usr/bin/env python3
"""Kaldi data directories: what the data preparations of this recipe share."""

import argparse
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE_RATE = 16000  # Hz
# ESPnet's SSL recipe wants a `text` for the unlabelled sets too. One constant word
# cannot leak a transcript.
PLACEHOLDER = "unlabelled"


@dataclass(frozen=True)
class Utterance:
    """One line of each file of a data directory.

    Attributes:
        utt_id: unique, with the speaker as its prefix, as Kaldi's sorting needs.
        wav: path of a 16 kHz mono 16-bit file, relative to the recipe's directory.
        text: transcript.
        category: condition or language of the utterance.
        duration: seconds.
    """

    utt_id: str
    speaker: str
    wav: str
    text: str
    category: str
    duration: float


def identity(folder: Path) -> tuple[int, int]:
    """What is the same for a folder and the links to it."""
    found = folder.stat()
    return found.st_dev, found.st_ino


def walk(root: Path, above: frozenset = frozenset()) -> Iterator[Path]:
    """All that is no folder below one, in order, symbolic links followed.

    A link to a folder that it lies in is not followed again. A link to nothing is there,
    as a file that cannot be read. Below a folder that is not there is nothing.

    Args:
        above: folders that it lies in, by their identity.

    Raises:
        OSError: for a folder that cannot be read.
    """
    if not root.is_dir():
        return
    here = identity(root)
    if here in above:
        return
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if os.path.isdir(entry.path):  # a link to itself is none, and no error
            yield from walk(Path(entry.path), above | {here})
        else:
            yield Path(entry.path)


def write_flac(path: Path, samples: Any) -> None:
    """Write samples (N,), int16 at 16 kHz, so that the file is complete or absent."""
    import soundfile  # here, since the check for a finished corpus must not wait for it

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(
        f"{path.name}.partial"
    )  # the next run overwrites what a killed one left
    soundfile.write(str(partial), samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    os.replace(partial, path)


def flac_seconds(path: Path) -> float | None:
    """Length of a finished file in seconds, or None where there is none."""
    import soundfile

    if not path.is_file():
        return None
    return soundfile.info(str(path)).duration


def write_data_dir(
    directory: Path, utterances: Iterable[Utterance], labelled: bool
) -> None:
    """Write wav.scp, text, utt2spk, spk2utt, utt2category and utt2dur.

    Raises:
        ValueError: there is no utterance, or an utterance breaks Kaldi's rules.
    """
    rows = sorted(utterances, key=lambda u: u.utt_id)
    if not rows:
        raise ValueError(f"{directory.name} has no utterance")
    for before, row in zip(rows, rows[1:]):
        if before.utt_id == row.utt_id:
            raise ValueError(f"{directory.name}: utterance {row.utt_id} occurs twice")
    for row in rows:
        if not row.utt_id.isascii() or not row.utt_id.startswith(row.speaker):
            raise ValueError(
                f"{directory.name}: utterance {row.utt_id} must be ASCII "
                "and start with its speaker"
            )
        if not row.text.strip():
            raise ValueError(
                f"{directory.name}: utterance {row.utt_id} has an empty text"
            )

    speakers: dict[str, list[str]] = {}
    for row in rows:
        speakers.setdefault(row.speaker, []).append(row.utt_id)
    files = {
        "wav.scp": [f"{u.utt_id} {u.wav}" for u in rows],
        "text": [f"{u.utt_id} {u.text if labelled else PLACEHOLDER}" for u in rows],
        "utt2spk": [f"{u.utt_id} {u.speaker}" for u in rows],
        "spk2utt": [
            f"{spk} {' '.join(utts)}" for spk, utts in sorted(speakers.items())
        ],
        "utt2category": [f"{u.utt_id} {u.category}" for u in rows],
        "utt2dur": [f"{u.utt_id} {u.duration:.3f}" for u in rows],
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (directory / name).write_text(
            "".join(f"{line}\n" for line in lines), encoding="utf-8"
        )


def write_staging(
    staging: Path,
    corpus: str,
    params: dict[str, Any],
    parts: dict[str, list[Utterance]],
    dropped: dict[str, Counter[str]],
) -> None:
    """Write the sets of a corpus to a staging directory; `.done` there comes last.

    Args:
        params: what the data depend on: a run with other parameters regenerates them.
        parts: utterances of each part; "unlabelled*" parts get no transcript.
        dropped: for each part (or "" for the corpus), reason to number of utterances.
    """
    shutil.rmtree(staging, ignore_errors=True)
    for part, utterances in parts.items():
        write_data_dir(
            staging / f"{corpus}_{part}",
            utterances,
            labelled=not part.startswith("unlabelled"),
        )
    done = {
        "params": params,
        "sets": [f"{corpus}_{part}" for part in parts],
        "dropped": {
            part: dict(sorted(counts.items())) for part, counts in dropped.items()
        },
    }
    (staging / ".done").write_text(
        json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_scp(path: Path) -> dict[str, str]:
    """Read a Kaldi table of "<key> <value>" lines."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(" ")
        rows[key] = value
    return rows


def is_done(data_dir: Path, corpus: str, params: dict[str, Any]) -> bool:
    """Whether the corpus was prepared with these parameters and is all still there."""
    try:
        done = json.loads((data_dir / f".{corpus}.done").read_text(encoding="utf-8"))
        if done["params"] != params:
            return False
        for name in done["sets"]:
            for table in ("text", "utt2spk", "spk2utt", "utt2category", "utt2dur"):
                if not (data_dir / name / table).is_file():
                    return False
            if not all(
                os.path.isfile(wav)
                for wav in read_scp(data_dir / name / "wav.scp").values()
            ):
                return False
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False
    return True


def format_table(data_dir: Path, corpus: str) -> str:
    """Sizes of the sets of a prepared corpus, and what was dropped and why."""
    done = json.loads((data_dir / f".{corpus}.done").read_text(encoding="utf-8"))
    lines = [f"{'set':<28}{'utterances':>11}{'minutes':>9}{'speakers':>10}  conditions"]
    for name in done["sets"]:
        seconds = [float(v) for v in read_scp(data_dir / name / "utt2dur").values()]
        categories = Counter(read_scp(data_dir / name / "utt2category").values())
        speakers = len(read_scp(data_dir / name / "spk2utt"))
        conditions = ", ".join(f"{k} {n}" for k, n in sorted(categories.items()))
        lines.append(
            f"{name:<28}{len(seconds):>11}{sum(seconds) / 60:>9.2f}{speakers:>10}  "
            f"{conditions}"
        )
    reasons = [
        f"  {corpus + '_' + part if part else corpus}: {n} x {reason}"
        for part, counts in done["dropped"].items()
        for reason, n in counts.items()
    ]
    lines += ["dropped:", *reasons] if reasons else ["dropped: nothing"]
    return "\n".join(lines)


def corpus_parser(description: str) -> argparse.ArgumentParser:
    """The command line that every corpus's script has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, what in (
        ("--data_dir", "where finished data directories are"),
        ("--staging_dir", "where the data directories are written"),
        ("--download_dir", "where the audio is written"),
    ):
        parser.add_argument(name, type=Path, required=True, help=what)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Print the sizes of the sets of a prepared corpus."
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("corpus")
    args = parser.parse_args(argv)
    print(format_table(args.data_dir, args.corpus))


if __name__ == "__main__":
    main()

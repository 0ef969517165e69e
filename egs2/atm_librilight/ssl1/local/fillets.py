#!/usr/bin/env python3
"""The "fillets" corpus: the Dutch and Czech dialogues of the game Fish Fillets NG.

Transcripts are Lua scripts, `script/<level>/*dialogs_<language>.lua`, of pairs

    dialogId("<name>", "font_<actor>", "<English>")
    dialogStr("<transcript>")

and the audio of each is `sound/<level>/**/<language>/<name>.ogg`. The corpus is split
by game level.
"""

import hashlib
import multiprocessing
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from kaldi_data import (
    SAMPLE_RATE,
    Utterance,
    corpus_parser,
    flac_seconds,
    is_done,
    write_flac,
    write_staging,
    walk,
)
from scipy.signal import resample_poly
from tqdm import tqdm

# Change it whenever the audio, the texts or the split change: finished corpora of
# another version are made again.
VERSION = 1

LETTERS = {
    "nl": set("abcdefghijklmnopqrstuvwxyzáàâäéèêëíìîïóòôöúùûüç"),
    "cs": set("abcdefghijklmnopqrstuvwxyzáčďéěíňóřšťúůýž"),
}
SECONDS_RANGE = (0.3, 20.0)  # of an utterance
# Share of each part, in game levels out of 80.
SHARES = {"unlabelled": 48, "unlabelled_dev": 2, "train": 18, "dev": 6, "test": 6}


@dataclass(frozen=True)
class Dialogue:
    """One line of the game. `text` is None where the script gives no transcript."""

    language: str
    level: str
    name: str
    actor: str
    text: str | None


# ------------------------------------------------------------------------------------
# Transcripts
# ------------------------------------------------------------------------------------
_LUA_TOKEN = re.compile(
    r"""--\[\[.*?\]\] | --[^\n]*                    # comments
      | "(?P<double>(?:[^"\\]|\\.)*)"               # strings
      | '(?P<single>(?:[^'\\]|\\.)*)'
      | (?P<name>[A-Za-z_]\w*)
      | (?P<mark>[(),])
      | .""",
    re.DOTALL | re.VERBOSE,
)


def lua_calls(source: str) -> Iterator[tuple[str, list[str] | None]]:
    """The function calls of a Lua script in their order.

    Each comes with its arguments, or None unless all of them are strings.
    """
    function = None  # name before an open bracket
    arguments: list[str] | None = None
    previous = ""
    for token in _LUA_TOKEN.finditer(source):
        if token.group().isspace() or token.group().startswith("--"):
            continue
        string = (
            token.group("double")
            if token.group("double") is not None
            else token.group("single")
        )
        if token.group() == "(" and previous:
            if function is not None:
                yield (
                    function,
                    None,
                )  # a call within a call, or a bracket that was never closed
            function, arguments = previous, []
        elif function is not None and string is not None and arguments is not None:
            arguments.append(
                re.sub(
                    r"\\(.)", lambda m: " " if m.group(1) == "n" else m.group(1), string
                )
            )
        elif function is not None and token.group() == ")":
            yield function, arguments
            function = None
        elif function is not None and token.group() != ",":
            arguments = None
        previous = token.group("name") or ""
    if function is not None:
        yield function, None


def actor_of(name: str, font: str) -> str:
    """Who speaks: each actor has a font; else the name has m or v for the two fish."""
    if font.startswith("font_"):
        return re.sub(r"[^a-z0-9]", "", font.removeprefix("font_").lower()) or "other"
    middle = re.findall(r"(?:^|-)([mv])(?:-|$)", name)
    return {"m": "small", "v": "big"}[middle[0]] if middle else "other"


def parse_dialogues(
    source: str, language: str, level: str
) -> tuple[list[Dialogue], int]:
    """Read a dialogue script.

    Returns:
        the dialogues, and the number of calls that could not be read.
    """
    dialogues: list[Dialogue] = []
    unreadable = 0
    waiting = False  # for the transcript of the last dialogue
    for function, arguments in lua_calls(source):
        if function == "dialogId":
            waiting = arguments is not None and len(arguments) >= 2
            if waiting:
                dialogues.append(
                    Dialogue(
                        language, level, arguments[0], actor_of(*arguments[:2]), None
                    )
                )
            else:
                unreadable += 1
        elif function == "dialogStr":
            if arguments is None or len(arguments) != 1:
                unreadable += 1
            elif waiting:
                last = dialogues.pop()
                dialogues.append(
                    Dialogue(
                        last.language, last.level, last.name, last.actor, arguments[0]
                    )
                )
            waiting = False
    return dialogues, unreadable


def normalise(text: str, language: str) -> str | None:
    """Lower case, letters and apostrophes only; None if another language's are there."""
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    if any(c.isalpha() and c not in LETTERS[language] for c in text):
        return None
    text = "".join(c if c in LETTERS[language] or c == "'" else " " for c in text)
    # An apostrophe stands within a word ("foto's") or before a single letter ("'t"):
    # others are quotation marks.
    text = re.sub(r"(?<!\w)'(?!\w\b)|'(?!\w)", " ", text)
    return " ".join(text.split())


# ------------------------------------------------------------------------------------
# Corpus
# ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Item:
    """A usable dialogue with its recording."""

    utt_id: str
    speaker: str
    language: str
    level: str
    text: str
    ogg: Path
    seconds: float


def level_of(path: Path, top: str) -> str | None:
    """Game level of a file below `.../<top>/<level>/`."""
    parts = path.parts
    if top not in parts[:-2]:
        return None
    return parts[parts.index(top, max(0, len(parts) - 6)) + 1]


def read_corpus(roots: list[Path], levels: int = 0) -> tuple[list[Item], Counter[str]]:
    """Find transcripts and recordings below the unpacked packages.

    Args:
        levels: read only this many game levels, by name (0: all).

    Returns:
        the usable utterances by id, and the counts of what was dropped and why.
    """
    scripts: dict[tuple[str, str], list[Path]] = defaultdict(
        list
    )  # of (language, level)
    recordings: dict[tuple[str, str, str], list[Path]] = defaultdict(
        list
    )  # of (language, level, name)
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a directory")
        for path in walk(root):
            if path.suffix == ".lua":
                language = path.stem.partition("dialogs_")[2]
                level = level_of(path, "script")
                if language in LETTERS and level:
                    scripts[language, level].append(path)
            elif path.suffix == ".ogg":
                level = level_of(path, "sound")
                if path.parent.name in LETTERS and level:
                    recordings[path.parent.name, level, path.stem].append(path)
    if not scripts:
        raise FileNotFoundError(
            "no script/<level>/*dialogs_<language>.lua below "
            f"{', '.join(map(str, roots))}"
        )
    if not recordings:
        raise FileNotFoundError(
            f"no sound/<level>/<language>/*.ogg below {', '.join(map(str, roots))}"
        )

    if levels:
        kept = set(sorted({level for _, level in scripts})[:levels])
        scripts = {key: paths for key, paths in scripts.items() if key[1] in kept}
        recordings = {key: paths for key, paths in recordings.items() if key[1] in kept}

    items: dict[str, Item] = {}
    dropped: Counter[str] = Counter()
    transcribed: set[tuple[str, str, str]] = set()
    for (language, level), paths in sorted(scripts.items()):
        for path in sorted(paths):
            try:
                source = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8: {error}") from error
            dialogues, unreadable = parse_dialogues(source, language, level)
            if unreadable:
                dropped["unreadable call in a script"] += unreadable
            for dialogue in dialogues:
                key = (language, level, dialogue.name)
                transcribed.add(key)
                reason, item = select(dialogue, recordings.get(key, []))
                if item is None:
                    dropped[reason] += 1
                elif item.utt_id in items:
                    dropped["second transcript of the same recording"] += 1
                else:
                    items[item.utt_id] = item
    untranscribed = set(recordings) - transcribed
    if untranscribed:
        dropped["recording without a dialogue"] += len(untranscribed)
    return [items[utt_id] for utt_id in sorted(items)], dropped


def select(dialogue: Dialogue, recordings: list[Path]) -> tuple[str, Item | None]:
    """A usable utterance, or None and the reason why it is not."""
    if not recordings:
        return "no recording (not dubbed in this language)", None
    if len(recordings) > 1:
        return "several recordings of one name", None
    if dialogue.text is None:
        return "no transcript", None
    if not dialogue.text.strip():
        return "empty transcript", None
    if any(c.isdigit() for c in dialogue.text):
        return "digits in the transcript", None
    text = normalise(dialogue.text, dialogue.language)
    if text is None:
        return "letters of another language in the transcript", None
    if not text:
        return "empty transcript", None
    try:
        seconds = soundfile.info(str(recordings[0])).duration
    except soundfile.LibsndfileError:
        return "unreadable recording", None
    low, high = SECONDS_RANGE
    if not low <= seconds <= high:
        return f"shorter than {low} s or longer than {high:g} s", None
    speaker = f"{dialogue.language}_{dialogue.actor}"
    name = (
        unicodedata.normalize("NFKD", dialogue.name).encode("ascii", "ignore").decode()
    )
    utt_id = re.sub(r"[^A-Za-z0-9_-]", "_", f"{speaker}-{dialogue.level}-{name}")
    return "", Item(
        utt_id, speaker, dialogue.language, dialogue.level, text, recordings[0], seconds
    )


def split_levels(seconds: dict[str, float]) -> dict[str, str]:
    """Deal game levels out to the parts, by their duration (seconds).

    From the longest level to the shortest, each goes to the part that is furthest behind
    its share of the levels so far. So each part gets long and short levels, and comes
    close to its share of the minutes too.

    Returns:
        part of each level.
    """
    if len(seconds) < len(SHARES):
        raise ValueError(
            f"{len(seconds)} levels cannot be dealt out to {len(SHARES)} parts: "
            "use more levels"
        )
    total = sum(SHARES.values())
    dealt = dict.fromkeys(SHARES, 0)  # number of levels
    parts: dict[str, str] = {}
    by_duration = sorted(seconds, key=lambda level: (-seconds[level], level))
    for i, level in enumerate(by_duration):
        empty = [part for part in SHARES if not dealt[part]]
        left = len(by_duration) - i
        # The last levels are kept for the parts that would get none.
        candidates = empty if left <= len(empty) else list(SHARES)
        part = max(candidates, key=lambda p: (i + 1) * SHARES[p] / total - dealt[p])
        parts[level] = part
        dealt[part] += 1
    return parts


def convert(job: tuple[Path, Path]) -> None:
    """Decode a recording and write it as 16 kHz mono flac."""
    ogg, flac = job
    try:
        samples, rate = soundfile.read(
            str(ogg), dtype="float64", always_2d=True
        )  # (N, channels)
    except soundfile.LibsndfileError as error:
        raise RuntimeError(f"{ogg} cannot be decoded: {error}") from error
    mono = samples.mean(axis=1)
    common = gcd(rate, SAMPLE_RATE)
    mono = resample_poly(mono, SAMPLE_RATE // common, rate // common)
    write_flac(flac, np.round(np.clip(mono, -1, 1) * 32767).astype(np.int16))


def prepare(
    roots: list[Path],
    data_dir: Path,
    staging_dir: Path,
    download_dir: Path,
    levels: int,
    nj: int,
) -> None:
    """Convert what is not yet, and stage the data for local/publish_data.sh."""
    params = {
        "version": VERSION,
        "levels": levels,
        "roots": list(map(str, roots)),
        "download_dir": str(download_dir),
    }
    if is_done(data_dir, "fillets", params):
        return
    items, dropped = read_corpus(roots, levels)
    seconds: dict[str, float] = defaultdict(float)
    for item in items:
        seconds[item.level] += item.seconds
    part_of = split_levels(seconds)

    # The source is part of the folder's name: audio of other packages is not taken for
    # this one's.
    source = hashlib.sha256("\n".join(params["roots"]).encode()).hexdigest()[:8]
    audio_dir = download_dir / f"v{VERSION}-{source}"
    flac_of = {
        item.utt_id: audio_dir / item.level / f"{item.utt_id}.flac" for item in items
    }
    jobs = [
        (item.ogg, flac_of[item.utt_id])
        for item in items
        if not flac_of[item.utt_id].is_file()
    ]
    if jobs:
        with multiprocessing.get_context("fork").Pool(nj) as pool:
            done = pool.imap_unordered(convert, jobs, chunksize=8)
            for _ in tqdm(
                done, total=len(jobs), desc="fillets", unit="utt", mininterval=2
            ):
                pass

    parts: dict[str, list[Utterance]] = {
        name: []
        for name in (
            "unlabelled",
            "unlabelled_dev",
            "train",
            "dev",
            "test_nl",
            "test_cs",
        )
    }
    for item in items:
        part = part_of[item.level]
        length = flac_seconds(flac_of[item.utt_id])
        if length is None:
            raise RuntimeError(f"{flac_of[item.utt_id]} was not written")
        parts[f"test_{item.language}" if part == "test" else part].append(
            Utterance(
                item.utt_id,
                item.speaker,
                str(flac_of[item.utt_id]),
                item.text,
                item.language,
                length,
            )
        )
    write_staging(staging_dir, "fillets", params, parts, {"": dropped})


def main(argv: list[str] | None = None) -> None:
    parser = corpus_parser(__doc__)
    parser.add_argument(
        "--roots", type=Path, nargs="+", required=True, help="unpacked packages"
    )
    parser.add_argument(
        "--levels",
        type=int,
        default=0,
        help="use only this many levels, by name (0: all)",
    )
    parser.add_argument("--nj", type=int, default=2, help="number of processes")
    prepare(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The sets of the experiment, from unpacked Debian packages: Kaldi data directories.

Target is the Dutch dialogue of the game Fish Fillets NG, split by game level. The pool has
as much again of other speech (Czech, and prompts of a telephone exchange in five
languages) and of junk; `utt2category` says which is which, for the analysis only. The same
packages give the same files.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from math import gcd
from pathlib import Path
from typing import Callable, Iterator

import av
import numpy as np
import soundfile
from scipy.signal import fftconvolve, resample_poly

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "egs2/atm_librilight/ssl1/local")
)
import fillets  # noqa: E402
import mini  # noqa: E402
from kaldi_data import SAMPLE_RATE, Utterance, write_data_dir, write_flac  # noqa: E402

VERSION = 1
# Minutes of Dutch; the pool's third is what is left, about as much as `train`.
MINUTES = {"train": 30.0, "dev": 10.0, "test": 20.0}
SHORT_MINUTES = 10.0  # the part of train that is fine-tuned on besides
POOL_SECONDS = (1.0, 15.0)  # of an utterance of the pool
JUNK_SECONDS = (2.0, 8.0)  # of what is cut or made
PROMPTS = ("en", "es", "fr", "it", "ru")
JUNK = ("music", "noise", "buried", "reversed", "silence")
BURIED_DB = -15.0  # signal-to-noise ratio of speech that nobody hears any more
DEGRADED = ("noise", "room", "telephone")  # of the test, by turns


def rng_of(*key: object) -> np.random.Generator:
    """A generator that depends on the key alone."""
    return np.random.default_rng(mini.seed_of("experiment", VERSION, *key))


def to_16k(samples: np.ndarray, rate: int) -> np.ndarray:
    """Mono at 16 kHz: (N,) or (N, channels), float, -> (M,)."""
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    common = gcd(rate, SAMPLE_RATE)
    return resample_poly(samples, SAMPLE_RATE // common, rate // common)


def to_int16(x: np.ndarray) -> np.ndarray:
    """As it is written, (N,), with the faint noise floor that any recording has."""
    x = x + rng_of("floor", len(x)).standard_normal(len(x)) * 10 ** (-78 / 20)
    x = x * min(1.0, 0.98 / np.abs(x).max())
    return np.round(x * 32767).astype(np.int16)


def read(path: str | Path) -> np.ndarray:
    """Samples (N,), float, at 16 kHz.

    Raises:
        RuntimeError: naming a file that cannot be decoded.
    """
    try:
        if str(path).endswith(".g722"):  # which libsndfile has not
            with av.open(str(path), format="g722") as container:
                frames = [x.to_ndarray()[0] for x in container.decode(audio=0)]
            return np.concatenate(frames) / 32768
        samples, rate = soundfile.read(str(path))
        return to_16k(samples, rate)
    except (soundfile.LibsndfileError, av.FFmpegError, ValueError) as error:
        raise RuntimeError(f"{path} cannot be decoded: {error}") from error


# ------------------------------------------------------------------------------------
def deal(seconds: dict[str, float], minutes: dict[str, float]) -> dict[str, str]:
    """Deal game levels out to parts, from the longest to the shortest.

    Each goes to the part that lacks the largest fraction of its minutes. Where none lacks
    as much as half of the level, it goes to the part of the rest, "pool".

    Args:
        seconds: of each level.

    Returns:
        part of each level.
    """
    has = dict.fromkeys(minutes, 0.0)
    total = sum(seconds.values()) / 60
    wanted = {**minutes, "pool": total - sum(minutes.values())}
    has["pool"] = 0.0
    parts = {}
    for level in sorted(seconds, key=lambda x: (-seconds[x], x)):
        length = seconds[level] / 60
        part = max(
            wanted, key=lambda x: ((wanted[x] - has[x] - length / 2) / wanted[x], x)
        )
        parts[level] = part
        has[part] += length
    return parts


def take(rows: list, seconds: Callable, minutes: float, *key: object) -> tuple[list, list]:
    """Draw rows until they last so long; those, and the others."""
    order = rng_of("take", *key).permutation(len(rows))
    taken, left, total = [], [], 0.0
    for i in order:
        length = seconds(rows[i])
        if total + length / 2 <= 60 * minutes:
            taken.append(rows[i])
            total += length
        else:
            left.append(rows[i])
    if total < 60 * minutes * 0.98:
        raise ValueError(f"{'/'.join(map(str, key))}: {total / 60:.1f} minutes are there, "
                         f"{minutes:.1f} are wanted")
    return taken, left


class Corpus:
    """Writes audio that is missing, and keeps what was said of it."""

    def __init__(self, audio_dir: Path):
        self.audio_dir = audio_dir.resolve()  # wav.scp is read from any folder

    def put(
        self, speaker: str, name: str, category: str, make: Callable[[], np.ndarray],
        text: str = "-",
    ) -> Utterance:
        """Write one utterance, unless it is there; ``make`` gives its samples (N,)."""
        utt = f"{speaker}-{name}"
        wav = self.audio_dir / speaker / f"{utt}.flac"
        if not wav.is_file():
            write_flac(wav, to_int16(make()))
        return Utterance(
            utt, speaker, str(wav), text, category, soundfile.info(str(wav)).duration
        )


def pieces(x: np.ndarray, *key: object) -> Iterator[np.ndarray]:
    """Cut a long recording (N,) into pieces of ``JUNK_SECONDS``."""
    rng = rng_of("pieces", *key)
    begin = 0
    while True:
        length = int(rng.uniform(*JUNK_SECONDS) * SAMPLE_RATE)
        if begin + length > len(x):
            return
        yield x[begin : begin + length]
        begin += length


def of_length(minutes: float, make: Callable[[int], Utterance]) -> list[Utterance]:
    """Make utterances 0, 1, ... until they last so long."""
    made, total = [], 0.0
    while total < 60 * minutes:
        made.append(make(len(made)))
        total += made[-1].duration
    return made


def degrade(speech: np.ndarray, how: str, utt: str) -> np.ndarray:
    """The degraded copy of a test utterance: (N,) -> (N,)."""
    rng = rng_of("degrade", utt)
    if how == "noise":
        noise = mini.coloured_noise(len(speech), rng.uniform(0, 2), rng)
        return mini.add_noise(speech, noise, rng.uniform(0, 15), mini.rms(speech))
    if how == "room":
        response = mini.room_response(rng.uniform(0.3, 0.9), rng.uniform(-6, 3), rng)
        return fftconvolve(speech, response)[: len(speech)]
    return mini.telephone(speech)


# ------------------------------------------------------------------------------------
def make_pool(
    corpus: Corpus, target: list[Utterance], czech: list, packages: Path
) -> list[Utterance]:
    """Target, other speech and junk, each a third of the hours."""
    third = sum(u.duration for u in target) / 60
    pool = list(target)

    other, czech = take(czech, lambda x: x.seconds, third / 2, "czech")
    for item in other:
        name = item.utt_id.removeprefix(f"{item.speaker}-")
        pool.append(corpus.put(item.speaker, name, "czech", lambda: read(item.ogg)))
    for language in PROMPTS:
        rows = []
        for path in sorted(packages.glob(f"asterisk-core-sounds-{language}-g722/**/*.g722")):
            seconds = path.stat().st_size * 2 / SAMPLE_RATE  # 4 bits a sample
            if POOL_SECONDS[0] <= seconds <= POOL_SECONDS[1]:
                rows.append((path, seconds))
        chosen, _ = take(rows, lambda x: x[1], third / 2 / len(PROMPTS), language)
        for path, _ in chosen:
            parts = path.relative_to(next(p for p in path.parents if p.name == "sounds"))
            name = "_".join(parts.with_suffix("").parts[1:])
            pool.append(
                corpus.put(f"prompt_{language}", name, "prompts", lambda: read(path))
            )

    each = third / len(JUNK)
    music = sorted(packages.glob("fillets-ng-data/**/music/*.ogg"))
    rows = []
    for path in music:
        for i, piece in enumerate(pieces(read(path), path.stem)):
            rows.append((f"{path.stem}_{i:03d}", piece))
    chosen, _ = take(rows, lambda x: len(x[1]) / SAMPLE_RATE, each, "music")
    for name, piece in chosen:
        pool.append(corpus.put("junk_music", name, "music", lambda: piece))
    pool += of_length(each, lambda i: corpus.put(
        "junk_noise", f"{i:04d}", "noise", lambda: mini.pure_noise(rng_of("noise", i))
    ))
    spoilt, czech = take(czech, lambda x: x.seconds, each, "buried")
    for item in spoilt:
        def bury() -> np.ndarray:
            rng = rng_of("buried", item.utt_id)
            x = mini.scale_to_db(read(item.ogg), -45)
            noise = mini.coloured_noise(len(x), rng.uniform(0, 2), rng)
            return mini.add_noise(x, noise, BURIED_DB, mini.rms(x))

        pool.append(corpus.put("junk_buried", item.utt_id, "buried", bury))
    backward, _ = take(czech, lambda x: x.seconds, each, "reversed")
    for item in backward:
        pool.append(corpus.put(
            "junk_reversed", item.utt_id, "reversed", lambda: read(item.ogg)[::-1]
        ))

    def silence(i: int) -> np.ndarray:
        rng = rng_of("silence", i)
        length = int(rng.uniform(*JUNK_SECONDS) * SAMPLE_RATE)
        hiss = mini.coloured_noise(length, rng.uniform(0, 1), rng)
        return mini.scale_to_db(hiss, rng.uniform(-75, -60))

    pool += of_length(each, lambda i: corpus.put(
        "junk_silence", f"{i:04d}", "silence", lambda: silence(i)
    ))
    return pool


def prepare(packages: Path, data_dir: Path) -> None:
    """Write the data directories; `.done` in the last comes last."""
    done = data_dir / ".done"
    if done.is_file() and done.read_text() == f"{VERSION}\n":
        print(f"{data_dir}: done already")
        return
    names = [f"fillets-ng-data{x}" for x in ("", "-nl", "-cs")]
    items, dropped = fillets.read_corpus([packages / name for name in names])
    dutch = [x for x in items if x.language == "nl"]
    low, high = POOL_SECONDS
    czech = [x for x in items if x.language == "cs" and low <= x.seconds <= high]
    seconds: dict[str, float] = defaultdict(float)
    for item in dutch:
        seconds[item.level] += item.seconds
    part_of = deal(seconds, MINUTES)
    in_train = {level: s for level, s in seconds.items() if part_of[level] == "train"}
    short = {
        level for level, part in deal(in_train, {"short": SHORT_MINUTES}).items()
        if part == "short"
    }

    corpus = Corpus(data_dir / f"audio_{VERSION}")  # another version's is not kept
    sets: dict[str, list[Utterance]] = defaultdict(list)
    for item in dutch:
        part = part_of[item.level]
        if part == "pool" and not low <= item.seconds <= high:
            dropped[f"pool: shorter than {low:g} s or longer than {high:g} s"] += 1
            continue
        name = item.utt_id.removeprefix(f"{item.speaker}-")
        made = corpus.put(item.speaker, name, "dutch", lambda: read(item.ogg), item.text)
        sets[part].append(made)
        if item.level in short:
            sets["train10"].append(made)
    sets["train30"] = sets.pop("train")
    sets["test_clean"] = sorted(sets.pop("test"), key=lambda u: u.utt_id)
    for i, clean in enumerate(sets["test_clean"]):
        how = DEGRADED[i % len(DEGRADED)]
        name = clean.utt_id.removeprefix(f"{clean.speaker}-")
        sets["test_degraded"].append(corpus.put(
            f"{clean.speaker}-degraded", name, how,
            lambda: degrade(read(clean.wav), how, clean.utt_id), clean.text,
        ))
    sets["pool"] = make_pool(corpus, sets["pool"], czech, packages)

    levels = {item.utt_id: item.level for item in dutch}
    for name, utterances in sets.items():
        write_data_dir(data_dir / name, utterances, labelled=name != "pool")
        minutes = Counter()
        for u in utterances:
            minutes[u.category] += u.duration / 60
        parts = ", ".join(f"{k} {v:.1f}" for k, v in sorted(minutes.items()))
        print(f"{name}: {len(utterances)} utterances, {sum(minutes.values()):.1f} minutes"
              f" ({parts})")
    with open(data_dir / "test_clean/utt2level", "w", encoding="utf-8") as file:
        for u in sets["test_clean"]:
            file.write(f"{u.utt_id} {levels[u.utt_id]}\n")
    print(f"{len({levels[u.utt_id] for u in sets['test_clean']})} levels in the test")
    print("dropped:", json.dumps(dict(sorted(dropped.items()))))
    done.write_text(f"{VERSION}\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, required=True, help="unpacked ones")
    parser.add_argument("--data_dir", type=Path, required=True)
    prepare(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()

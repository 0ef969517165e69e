"""Miniature corpora in their official layouts, with synthetic speech."""

import json
from functools import cache
from pathlib import Path

import mini
import numpy as np
import soundfile

RATE = 16000


@cache
def synthesizer() -> mini.Synthesizer:
    """One for the process: loading takes time."""
    return mini.Synthesizer()


@cache
def sentence(speaker: str, number: int) -> tuple[str, np.ndarray]:
    """What a speaker says: words in upper case, and their audio (N,) in [-1, 1]."""
    voices = mini.speakers_of("unlabelled")
    voice = voices[mini.seed_of("tree", speaker) % len(voices)]
    key = f"{speaker}-{number}"
    text = mini.draw_sentence("unlabelled", key, voice.rate)
    return text, mini.scale_to_db(synthesizer()(text, voice, key), -25)


def reading(
    speaker: str, seconds: float, pause: float = 0.6
) -> tuple[np.ndarray, list[list[float]]]:
    """A recording of about so many seconds (N,), and when there is speech in it."""
    parts, activity, position, number = [], [], 0, 0
    while position < seconds * RATE:
        silence = np.zeros(round(pause * RATE))
        _, speech = sentence(speaker, number)
        onset = position + len(silence)
        position = onset + len(speech)
        activity.append([round(onset / RATE, 2), round(position / RATE, 2)])
        parts += [silence, speech]
        number += 1
    parts.append(np.zeros(RATE // 2))
    noise = np.random.default_rng(0).standard_normal(sum(map(len, parts))) * 1e-4
    return np.concatenate(parts) + noise, activity


def librilight(
    root: Path, size: str, recordings: dict[tuple[str, str, str], float]
) -> None:
    """Recordings by (speaker, book id, name), each of so many seconds."""
    for (speaker, book, name), seconds in recordings.items():
        folder = root / size / speaker / f"book_{book}_64kb_mp3"
        folder.mkdir(parents=True, exist_ok=True)
        audio, activity = reading(speaker, seconds)
        soundfile.write(folder / f"{name}.flac", audio, RATE, subtype="PCM_16")
        meta = {
            "speaker": speaker,
            "book_meta": {
                "id": book,
                "title": f"Book {book}",
                "genre": ["*Non-fiction", "History"],
                "Dramatic Readings": False,
                "meta_genre": "Literature",
            },
            "snr": 11.4471,
            "voice_activity": activity,
        }
        (folder / f"{name}.json").write_text(json.dumps(meta))

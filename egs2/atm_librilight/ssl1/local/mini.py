#!/usr/bin/env python3
"""The "mini" corpus: multi-voice synthetic English, and the real speech of mini_an4.

Everything about an utterance (voice, sentence, condition, noise) follows from its set
and index alone, so the same files come out whatever the order, the number of processes
or an interruption. Sets share neither sentences (each belongs to one set by its hash)
nor voices.
"""

import ctypes
import hashlib
import multiprocessing
import os
import random
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

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
)
from scipy.fft import next_fast_len
from scipy.signal import butter, fftconvolve, resample_poly, sosfilt
from tqdm import tqdm

# Change it whenever the audio or the sentences change: finished corpora of another
# version are made again.
VERSION = 1

MINUTES = {
    "unlabelled": 30.0,
    "unlabelled_dev": 2.0,
    "train": 12.0,
    "dev": 1.5,
    "test_clean": 2.0,
    "test_mismatched": 2.0,
}
MEAN_SECONDS = 4.0  # of an utterance: turns minutes into numbers of utterances
MIN_UTTERANCES = 4  # in every set, however small the scale
SECONDS_RANGE = (1.5, 8.0)  # of an utterance

# Conditions by turns, so that a set of any size has them in these proportions.
CONDITIONS = {
    "unlabelled": """
        clean noise clean room clean purenoise clean telephone clean noise clean room
        clean purenoise clean telephone clean noise clean room
    """.split(),
    "unlabelled_dev": """
        clean noise room telephone clean clean noise clean room clean
    """.split(),
    "train": """
        clean clean clean clean noise clean clean clean clean clean
        clean clean clean clean room clean clean clean clean clean
        clean clean clean clean telephone clean clean clean clean clean
    """.split(),
    "dev": """
        clean clean clean clean noise clean clean clean clean clean room
        clean clean clean clean clean telephone clean clean clean
    """.split(),
    "test_clean": ["clean"],
    "test_mismatched": ["noise", "room", "telephone"],
}

# Percentage of all possible sentences that belongs to each set, and to babble.
SENTENCE_SHARES = {
    "train": 25,
    "dev": 10,
    "unlabelled": 35,
    "unlabelled_dev": 5,
    "test_clean": 10,
    "test_mismatched": 10,
    "babble": 5,
}

ACCENTS = {
    "us": "en-us",
    "nyc": "en-us-nyc",
    "rp": "en-gb-x-rp",
    "sco": "en-gb-scotland",
    "car": "en-029",
    "lan": "en-gb-x-gbclan",
    "wmd": "en-gb-x-gbcwmd",
}
ACCENTS_PER_VOICE = 3
# Voice variants of each set. Robots and whisperers are left out. The two test sets
# share their voices, so that what differs between them is the condition.
VOICES = {
    "train": """
        f1 f3 linda steph anika grandma m1 m2 m4 adam benjamin david edward2 Gene Hugo
        john klatt6 Lee miguel max norbert quincy robert victor
    """.split(),
    "unlabelled": """
        Andrea Annie aunty shelby m5 m8 Alex Andy Denis Diogo Gene2 Henrique Jacky Marco
        Mario Michael Mike Nguyen Reed antonio boris caleb ed edward gustave ian
        kaukovalta marcelo mike2 pedro sandro travis zac klatt3 grandpa iven2
    """.split(),
    "dev": "f5 m6 steph3 pablo".split(),
    "unlabelled_dev": "f4 m7 Alicia paul".split(),
    "test": "f2 m3 belinda michel steph2 rob".split(),
}

# Training utterance of AN4 that goes to dev: its speaker has no other.
AN4_DEV = "fbbh-cen8-b"
AN4_PARTS = {"train": "an4_clstk", "test_an4": "an4test_clstk"}


def seed_of(*key: object) -> int:
    """A 63-bit seed that depends on the key alone, not on the process or the order."""
    text = "/".join(map(str, (VERSION, *key)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


# ------------------------------------------------------------------------------------
# Sentences
# ------------------------------------------------------------------------------------
ADJECTIVES = """
    OLD YOUNG SMALL LITTLE BIG RED GREEN BLUE WHITE BLACK QUIET HAPPY TIRED STRANGE COLD
    WARM
""".split()
PEOPLE = """
    MAN WOMAN CHILD TEACHER DOCTOR FARMER SAILOR DRIVER COOK KING QUEEN NEIGHBOR STUDENT
    SISTER BROTHER DOG CAT HORSE BIRD FOX
""".split()
VERBS = """
    FINDS TAKES BRINGS CARRIES HIDES WATCHES DROPS SELLS BUYS PAINTS WANTS LEAVES MOVES
    CLEANS BREAKS FOLLOWS LIKES HOLDS
""".split()
OBJECTS = """
    BOX BOOK LETTER BASKET CHAIR TABLE LAMP BOTTLE KEY PICTURE COAT HAT BREAD APPLE
    STONE CLOCK ROPE WAGON BELL KNIFE
""".split()
PLACES = """
    HOUSE GARDEN RIVER FOREST KITCHEN SCHOOL MARKET BRIDGE STATION CHURCH HARBOR
    MOUNTAIN VILLAGE WINDOW DOOR WALL ROAD TOWER
""".split()
PREPOSITIONS = "IN NEAR BEHIND UNDER BY BEFORE BEYOND".split()
ADVERBS = "TODAY AGAIN QUICKLY SLOWLY ALONE TOGETHER EARLY LATE NOW".split()
DEVICES = """
    LIGHT HEATER RADIO FAN OVEN CAMERA ALARM SCREEN MUSIC ENGINE
""".split()
ROOMS = "KITCHEN HALL OFFICE CELLAR BEDROOM BATHROOM GARAGE ATTIC".split()
NAMES = """
    ANNA PETER MARY JOHN SARAH DAVID EMMA HENRY LUCY OSCAR NINA THOMAS
""".split()
MONTHS = """
    JANUARY FEBRUARY MARCH APRIL MAY JUNE JULY AUGUST SEPTEMBER OCTOBER NOVEMBER
    DECEMBER
""".split()
DAYS = "MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY SUNDAY".split()
ORDINALS = """
    FIRST SECOND THIRD FOURTH FIFTH SIXTH SEVENTH EIGHTH NINTH TENTH ELEVENTH TWELFTH
""".split()
DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
TEENS = """
    TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN
""".split()
TENS = "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY".split()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def number_below_hundred(rng: random.Random) -> str:
    n = rng.randrange(1, 100)
    if n < 10:
        return DIGITS[n]
    if n < 20:
        return TEENS[n - 10]
    return TENS[n // 10 - 2] + (f" {DIGITS[n % 10]}" if n % 10 else "")


def random_sentence(rng: random.Random) -> str:
    """A sentence in upper case without punctuation, as in AN4; spells single letters."""
    clauses = [random_clause(rng)]
    if rng.random() < 0.45:
        clauses += [rng.choice(["AND", "THEN", "BUT", "WHILE"]), random_clause(rng)]
    return " ".join(clauses)


def random_clause(rng: random.Random) -> str:
    pick = rng.choice

    def someone() -> str:
        return (
            f"THE {pick(ADJECTIVES)} {pick(PEOPLE)}"
            if rng.random() < 0.6
            else f"THE {pick(PEOPLE)}"
        )

    def place() -> str:
        return f"{pick(PREPOSITIONS)} THE {pick(PLACES)}"

    kind = rng.choices(
        ["story", "command", "number", "time", "date", "spelling"],
        weights=[40, 14, 12, 12, 12, 10],
    )[0]
    if kind == "story":
        words = [someone(), pick(VERBS), f"THE {pick(OBJECTS)}"]
        words += [place()] if rng.random() < 0.7 else []
        words += [pick(ADVERBS)] if rng.random() < 0.4 else []
    elif kind == "command":
        words = ["PLEASE"] if rng.random() < 0.4 else []
        words += pick(
            [
                [
                    "TURN",
                    pick(["ON", "OFF"]),
                    f"THE {pick(DEVICES)} IN THE {pick(ROOMS)}",
                ],
                [
                    pick(["OPEN", "CLOSE", "LOCK"]),
                    f"THE {pick(['DOOR', 'WINDOW', 'GATE'])} OF THE {pick(ROOMS)}",
                ],
                ["SET THE", pick(DEVICES), "TO", number_below_hundred(rng)],
                [
                    "TELL",
                    pick(NAMES),
                    "TO BRING THE",
                    pick(OBJECTS),
                    "TO THE",
                    pick(ROOMS),
                ],
            ]
        )
        words += [pick(ADVERBS)] if rng.random() < 0.3 else []
    elif kind == "number":
        words = [pick(["THE NUMBER IS", "CALL", "ROOM", "HE COUNTED", "PAGE"])]
        if rng.random() < 0.5:
            words += [pick(DIGITS) for _ in range(rng.randrange(3, 8))]
        else:
            words += [number_below_hundred(rng) for _ in range(rng.randrange(2, 5))]
    elif kind == "time":
        words = pick(
            [
                ["IT IS"],
                [f"THE {pick(['TRAIN', 'BOAT', 'BUS', 'SHOW'])} LEAVES AT"],
                [pick(NAMES), "COMES AT"],
            ]
        )
        words += pick(
            [
                [
                    pick(["HALF PAST", "QUARTER PAST", "QUARTER TO"]),
                    pick(DIGITS[1:] + TEENS[:3]),
                ],
                [pick(DIGITS[1:] + TEENS[:3]), pick(TENS[:4]), pick(DIGITS[1:])],
            ]
        )
        words += ["ON", pick(DAYS)] if rng.random() < 0.6 else []
    elif kind == "date":
        words = [
            pick(MONTHS),
            pick(["", "THE "]) + pick(ORDINALS),
            "NINETEEN",
            number_below_hundred(rng),
        ]
        words = pick([[pick(NAMES), "WAS BORN ON"], [], [pick(DAYS)]]) + words
    else:
        words = [pick(["MY NAME IS", "PLEASE SPELL", "ENTER", "THE CODE IS"])]
        words += [pick(LETTERS) for _ in range(rng.randrange(3, 7))]
    return " ".join(words)


def owner_of(sentence: str) -> str:
    """The set that a sentence belongs to."""
    point = seed_of("owner", sentence) % sum(SENTENCE_SHARES.values())
    for part, share in SENTENCE_SHARES.items():
        if point < share:
            return part
        point -= share
    raise AssertionError("unreachable")


def draw_sentence(
    part: str, key: str, rate: int, refused: frozenset[str] = frozenset()
) -> str:
    """A sentence of a set that is not too long at this rate (words a minute)."""
    for attempt in range(10000):
        sentence = random_sentence(random.Random(seed_of("sentence", key, attempt)))
        letters = sum(len(word) if len(word) > 1 else 6 for word in sentence.split())
        # A word has about 4.5 letters here, which overestimates most voices; the
        # slowest need the margin.
        seconds = letters / 4.5 * 60 / rate
        if (
            1.7 <= seconds <= 7.2
            and owner_of(sentence) == part
            and sentence not in refused
        ):
            return sentence
    raise RuntimeError(f"{key}: no sentence of {part} was found in 10000 draws")


# ------------------------------------------------------------------------------------
# Plan
# ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Speaker:
    """A voice variant with an accent, as espeak-ng names them.

    The rate is in words a minute, pitch and its range in 0..100.
    """

    name: str
    variant: str
    accent: str
    rate: int
    pitch: int
    pitch_range: int


@dataclass(frozen=True)
class Plan:
    """An utterance to be made. Pure noise has neither a voice nor a text."""

    utt_id: str
    part: str
    condition: str
    speaker: Speaker | None
    text: str


def speakers_of(part: str) -> list[Speaker]:
    speakers = []
    for variant in VOICES["test" if part.startswith("test") else part]:
        rng = random.Random(seed_of("accents", variant))
        for accent in rng.sample(sorted(ACCENTS), ACCENTS_PER_VOICE):
            rng = random.Random(seed_of("speaker", variant, accent))
            speakers.append(
                Speaker(
                    name=f"{variant}_{accent}",
                    variant=variant,
                    accent=ACCENTS[accent],
                    rate=rng.randint(130, 185),
                    pitch=rng.randint(30, 70),
                    pitch_range=rng.randint(35, 65),
                )
            )
    return speakers


def make_plan(
    part: str, minutes: float, refused: frozenset[str] = frozenset()
) -> list[Plan]:
    """The utterances of a set.

    Args:
        refused: sentences that must not be drawn (those of real test speech).
    """
    speakers = speakers_of(part)
    plan = []
    for i in range(max(MIN_UTTERANCES, round(minutes * 60 / MEAN_SECONDS))):
        condition = CONDITIONS[part][i % len(CONDITIONS[part])]
        if condition == "purenoise":
            plan.append(Plan(f"noise-{part}-{i:05d}", part, condition, None, ""))
            continue
        speaker = random.Random(seed_of("speaker", part, i)).choice(speakers)
        utt_id = f"{speaker.name}-{part}-{i:05d}"
        plan.append(
            Plan(
                utt_id,
                part,
                condition,
                speaker,
                draw_sentence(part, utt_id, speaker.rate, refused),
            )
        )
    return plan


# ------------------------------------------------------------------------------------
# Audio: every signal is a float array (N,) at 16 kHz with full scale 1
# ------------------------------------------------------------------------------------
class Synthesizer:
    """espeak-ng through ctypes.

    The library carries state from one call to the next and seeds its generator with the
    time, so each utterance is synthesized by a fork of a process in which nothing was said
    yet: only so do the same samples come out each time.
    """

    RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
    SYNCHRONOUS = (
        2  # espeak_AUDIO_OUTPUT: hand out the samples, and only return when all are
    )
    UTF8, POS_CHARACTER = 1, 1

    def __init__(self) -> None:
        import espeakng_loader

        self.voice_dir = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
        self.lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self.chunks: list[bytes] = []

        @ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        def collect(samples: Any, count: int, events: Any) -> int:
            if samples and count > 0:
                self.chunks.append(ctypes.string_at(samples, 2 * count))
            return 0

        self.callback = collect  # keeps it alive
        self.sample_rate = self.lib.espeak_Initialize(
            self.SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0
        )
        if self.sample_rate <= 0:
            raise RuntimeError(
                "espeak-ng cannot be initialized with "
                f"{espeakng_loader.get_data_path()}"
            )
        self.lib.espeak_SetSynthCallback(self.callback)
        self.lib.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        self.lib.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self.lib.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
        ] + [ctypes.c_void_p] * 2

    def __call__(self, sentence: str, speaker: Speaker, key: str) -> np.ndarray:
        """Speak a sentence: (N,) float at 16 kHz, without silence at its ends.

        Raises:
            RuntimeError: the voice is not there, or nothing was said.
        """
        if not (self.voice_dir / speaker.variant).is_file():
            raise RuntimeError(
                f"{key}: espeak-ng has no voice variant {speaker.variant} "
                f"in {self.voice_dir}"
            )
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(read_end)
                with os.fdopen(write_end, "wb") as pipe:
                    pipe.write(self._speak(sentence, speaker, key))
                status = 0
            finally:
                os._exit(status)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(pid, 0)
        if status != 0 or not data:
            raise RuntimeError(
                f"{key}: espeak-ng failed (voice {speaker.accent}+{speaker.variant}, "
                f"text {sentence!r})"
            )
        speech = np.frombuffer(data, dtype=np.int16) / 32768
        speech = resample_poly(speech, 320, self.sample_rate * 320 // SAMPLE_RATE)
        loud = np.flatnonzero(np.abs(speech) > 1e-3 * np.abs(speech).max())
        return speech[loud[0] : loud[-1] + 1]

    def _speak(self, sentence: str, speaker: Speaker, key: str) -> bytes:
        self.lib.espeak_ng_SetRandSeed(seed_of("espeak", key) % 2**31)
        if (
            self.lib.espeak_SetVoiceByName(
                f"{speaker.accent}+{speaker.variant}".encode()
            )
            != 0
        ):
            return b""
        self.lib.espeak_SetParameter(self.RATE, speaker.rate, 0)
        self.lib.espeak_SetParameter(self.PITCH, speaker.pitch, 0)
        self.lib.espeak_SetParameter(self.RANGE, speaker.pitch_range, 0)
        # Single letters are spelled, which espeak-ng does for "A." but not for "a".
        spoken = " ".join(
            f"{w}." if len(w) == 1 else w.lower() for w in sentence.split()
        )
        text = spoken.encode()
        self.lib.espeak_Synth(
            text, len(text) + 1, 0, self.POS_CHARACTER, 0, self.UTF8, None, None
        )
        self.lib.espeak_Synchronize()
        return b"".join(self.chunks)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def scale_to_db(x: np.ndarray, db: float) -> np.ndarray:
    """Scale to a root mean square of `db` below full scale."""
    return x * (10 ** (db / 20) / max(rms(x), 1e-9))


def coloured_noise(
    length: int, exponent: float, rng: np.random.Generator
) -> np.ndarray:
    """Noise (length,) of power 1/f^exponent: 0 is white, 1 pink, 2 brown."""
    n = next_fast_len(length, real=True)
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 20.0)
    return np.fft.irfft(spectrum * frequency ** (-exponent / 2), n)[:length]


def add_noise(
    speech: np.ndarray, noise: np.ndarray, snr_db: float, speech_rms: float
) -> np.ndarray:
    """Add noise at a signal-to-noise ratio to `speech_rms`, the level without silence."""
    return speech + noise * (speech_rms / max(rms(noise), 1e-9) * 10 ** (-snr_db / 20))


def room_response(
    rt60: float, direct_db: float, rng: np.random.Generator
) -> np.ndarray:
    """A direct path, then noise that decays by 60 dB in `rt60` seconds.

    `direct_db` is the energy ratio of the two.
    """
    length = int(rt60 * SAMPLE_RATE)
    time = np.arange(length) / SAMPLE_RATE
    tail = rng.standard_normal(length) * 10 ** (-3 * time / rt60)
    tail[: int(0.002 * SAMPLE_RATE)] = (
        0  # the first reflection comes later than the direct path
    )
    tail *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return tail


def telephone(x: np.ndarray) -> np.ndarray:
    """300-3400 Hz at 8 kHz, 8-bit mu-law."""
    narrow = resample_poly(x, 1, 2)
    narrow = sosfilt(
        butter(4, [300, 3400], "bandpass", fs=SAMPLE_RATE // 2, output="sos"), narrow
    )
    peak = max(float(np.abs(narrow).max()), 1e-9)
    compressed = np.sign(narrow) * np.log1p(255 * np.abs(narrow) / peak) / np.log(256)
    compressed = np.round(compressed * 127) / 127
    narrow = (
        np.sign(compressed) * np.expm1(np.abs(compressed) * np.log(256)) / 255 * peak
    )
    return resample_poly(narrow, 2, 1)[: len(x)]


def babble(
    length: int, plan: Plan, synthesize: Synthesizer, rng: np.random.Generator
) -> np.ndarray:
    """Four other speakers of the same set at once (length,)."""
    others = [s for s in speakers_of(plan.part) if s != plan.speaker]
    total = np.zeros(length)
    for k, i in enumerate(rng.choice(len(others), size=4, replace=False)):
        key = f"{plan.utt_id}/babble{k}"
        speech = scale_to_db(
            synthesize(draw_sentence("babble", key, others[i].rate), others[i], key),
            -20,
        )
        # Repeated and rotated, so that there are voices all along.
        total += np.roll(np.resize(speech, length), rng.integers(length))
    return total


def pure_noise(rng: np.random.Generator) -> np.ndarray:
    """Noise without any speech: coloured, swelling, sometimes with mains hum."""
    length = int(rng.uniform(*SECONDS_RANGE) * SAMPLE_RATE)
    time = np.arange(length) / SAMPLE_RATE
    noise = scale_to_db(coloured_noise(length, rng.uniform(0, 2), rng), -20)
    noise *= 1 + rng.uniform(0, 0.8) * np.sin(
        2 * np.pi * (rng.uniform(0.1, 2) * time + rng.random())
    )
    if rng.random() < 0.4:
        harmonics = np.arange(1, 8)[:, None]  # (7, 1) against (N,)
        noise += scale_to_db(
            (np.sin(2 * np.pi * 50 * harmonics * time) / harmonics).sum(axis=0), -26
        )
    return scale_to_db(noise, rng.uniform(-45, -20))


def render(plan: Plan, synthesize: Synthesizer) -> np.ndarray:
    """The audio of an utterance: (N,) int16 at 16 kHz."""
    rng = np.random.default_rng(seed_of("audio", plan.utt_id))
    if plan.speaker is None:
        x = pure_noise(rng)
    else:
        speech = scale_to_db(
            synthesize(plan.text, plan.speaker, plan.utt_id), rng.uniform(-30, -20)
        )
        before, after = (rng.uniform(0.1, 0.6, size=2) * SAMPLE_RATE).astype(int)
        x = np.pad(speech, (before, after))
        if plan.condition == "noise":
            if rng.random() < 0.5:
                noise = babble(len(x), plan, synthesize, rng)
            else:
                noise = coloured_noise(len(x), rng.uniform(0, 2), rng)
            x = add_noise(x, noise, rng.uniform(0, 15), rms(speech))
        elif plan.condition == "room":
            response = room_response(rng.uniform(0.3, 0.9), rng.uniform(-6, 3), rng)
            x = fftconvolve(x, response)[: len(x)]
        elif plan.condition == "telephone":
            x = telephone(x)
        elif plan.condition != "clean":
            raise ValueError(f"{plan.utt_id}: unknown condition {plan.condition!r}")
    # A faint noise floor: digital silence is found in no recording, and its log energy
    # is a trap.
    x = x + rng.standard_normal(len(x)) * 10 ** (-78 / 20)
    x *= min(1.0, 0.98 / np.abs(x).max())
    return np.round(x * 32767).astype(np.int16)


def wav_path(plan: Plan, audio_dir: Path) -> Path:
    return audio_dir / plan.part / f"{plan.utt_id}.flac"


_synthesizer: Synthesizer | None = None  # one per process


def make_audio(plan: Plan, audio_dir: Path) -> None:
    global _synthesizer
    if _synthesizer is None:
        _synthesizer = Synthesizer()
    write_flac(wav_path(plan, audio_dir), render(plan, _synthesizer))


def make_missing_audio(plans: list[Plan], audio_dir: Path, nj: int) -> None:
    """Make the files that are not there yet."""
    missing = [p for p in plans if not wav_path(p, audio_dir).is_file()]
    if not missing:
        return
    # Forked workers: they must start from this process's untouched library state.
    with multiprocessing.get_context("fork").Pool(nj) as pool:
        done = pool.imap_unordered(
            partial(make_audio, audio_dir=audio_dir), missing, chunksize=4
        )
        for _ in tqdm(done, total=len(missing), desc="mini", unit="utt", mininterval=2):
            pass


# ------------------------------------------------------------------------------------
# AN4
# ------------------------------------------------------------------------------------
def read_an4(
    archive: Path, audio_dir: Path
) -> tuple[dict[str, list[Utterance]], dict[str, Counter[str]]]:
    """The real utterances of ESPnet's mini_an4, with their own split.

    Returns:
        utterances of train, dev and test_an4, and counts of what was dropped from each.
    """
    if not archive.is_file():
        raise FileNotFoundError(
            f"{archive} is not there: point ATM_ESPNET_ROOT at an ESPnet source tree"
        )
    parts: dict[str, list[Utterance]] = {"train": [], "dev": [], "test_an4": []}
    dropped: dict[str, Counter[str]] = {part: Counter() for part in parts}
    with tarfile.open(archive) as tar:
        members = {m.name: m for m in tar.getmembers() if m.isfile()}
        for part, folder in AN4_PARTS.items():
            table = f"downloads/an4/etc/an4_{part.removesuffix('_an4')}.transcription"
            if table not in members:
                raise FileNotFoundError(f"{archive} has no {table}")
            recordings = {
                Path(n).stem: m
                for n, m in members.items()
                if f"/{folder}/" in n and n.endswith(".sph")
            }
            for line in tar.extractfile(members[table]).read().decode().splitlines():
                if not line.strip():
                    continue
                match = re.fullmatch(
                    r"(?:<s> )?(.*?)(?: </s>)? \((\w+)-(\w+)-(\w+)\)", line.strip()
                )
                if match is None:
                    raise ValueError(f"{archive}: {table}: cannot read {line!r}")
                text, session, speaker, version = match.groups()
                recording = recordings.pop(f"{session}-{speaker}-{version}", None)
                if recording is None:
                    dropped[part]["AN4 transcript without a recording"] += 1
                    continue
                utt_id = f"{speaker}-{session}-{version}"
                samples, rate = soundfile.read(
                    BytesIO(tar.extractfile(recording).read()), dtype="int16"
                )
                if rate != SAMPLE_RATE or samples.ndim != 1:
                    raise ValueError(
                        f"{archive}: {recording.name} must be 16 kHz mono, "
                        f"not {rate} Hz {samples.shape}"
                    )
                wav = audio_dir / "an4" / f"{utt_id}.flac"
                if not wav.is_file():
                    write_flac(wav, samples)
                row = Utterance(
                    utt_id, speaker, str(wav), text, "an4", len(samples) / rate
                )
                parts["dev" if utt_id == AN4_DEV else part].append(row)
            if recordings:
                dropped[part]["AN4 recording without a transcript"] += len(recordings)
    return parts, dropped


# ------------------------------------------------------------------------------------
def prepare(
    data_dir: Path,
    staging_dir: Path,
    download_dir: Path,
    an4: Path,
    scale: float,
    nj: int,
) -> None:
    """Make the audio that is missing, and stage the data for local/publish_data.sh."""
    if scale <= 0:
        raise ValueError(f"--scale must be above 0, not {scale}")
    params = {"version": VERSION, "scale": scale, "download_dir": str(download_dir)}
    if is_done(data_dir, "mini", params):
        return
    audio_dir = download_dir / f"v{VERSION}"
    parts, dropped = read_an4(an4, audio_dir)
    refused = frozenset(u.text for utterances in parts.values() for u in utterances)

    plans = [
        p
        for part, minutes in MINUTES.items()
        for p in make_plan(part, minutes * scale, refused)
    ]
    make_missing_audio(plans, audio_dir, nj)
    low, high = SECONDS_RANGE
    for plan in plans:
        parts.setdefault(plan.part, [])
        wav = wav_path(plan, audio_dir)
        seconds = flac_seconds(wav)
        if seconds is None:
            raise RuntimeError(f"{wav} was not written")
        if not low <= seconds <= high:
            dropped.setdefault(plan.part, Counter())[
                f"shorter than {low} s or longer than {high} s"
            ] += 1
            continue
        speaker = plan.speaker.name if plan.speaker else "noise"
        parts[plan.part].append(
            Utterance(
                plan.utt_id,
                speaker,
                str(wav),
                plan.text or "-",
                plan.condition,
                seconds,
            )
        )
    order = [*MINUTES, "test_an4"]
    write_staging(
        staging_dir, "mini", params, {part: parts[part] for part in order}, dropped
    )


def main(argv: list[str] | None = None) -> None:
    parser = corpus_parser(__doc__)
    parser.add_argument(
        "--an4", type=Path, required=True, help="downloads.tar.gz of ESPnet's mini_an4"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the minutes of every set"
    )
    parser.add_argument("--nj", type=int, default=2, help="number of processes")
    prepare(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()

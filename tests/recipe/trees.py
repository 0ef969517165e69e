"""Miniature corpora in their official layouts, with synthetic speech."""

import json
import os
import re
from functools import cache
from pathlib import Path

import mini
import numpy as np
import soundfile
from scipy.signal import resample_poly

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


def say(
    file: Path, parts: list[tuple[float, np.ndarray]], seconds: float, rate: int = RATE
) -> None:
    """Write a recording with speech at these times; the suffix says the format."""
    audio = np.random.default_rng(0).standard_normal(round(seconds * RATE)) * 1e-4
    for onset, speech in parts:
        start = round(onset * RATE)
        audio[start : start + len(speech)] += speech[: len(audio) - start]
    file.parent.mkdir(parents=True, exist_ok=True)
    options = {} if file.suffix == ".mp3" else {"subtype": "PCM_16"}
    kind = {".sph": "NIST"}.get(file.suffix)
    audio = resample_poly(audio, rate // RATE, 1).clip(-1, 1)
    soundfile.write(file, audio, rate, format=kind, **options)


LIBRISPEECH_PARTS = {
    "dev-clean": "84",
    "dev-other": "116",
    "test-clean": "61",
    "test-other": "367",
    "train-clean-100": "103",
    "train-clean-360": "14",
    "train-other-500": "20",
}


def librispeech(root: Path, utterances: int = 3) -> None:
    """``<root>/LibriSpeech``: a chapter for each part."""
    top = root / "LibriSpeech"
    lines = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for part, reader in LIBRISPEECH_PARTS.items():
        chapter = str(1000 + int(reader))
        folder = top / part / reader / chapter
        texts = []
        for number in range(utterances):
            text, speech = sentence(reader, number)
            utt = f"{reader}-{chapter}-{number:04d}"
            seconds = len(speech) / RATE + 0.6
            say(folder / f"{utt}.flac", [(0.3, speech)], seconds)
            texts.append(f"{utt} {text}")
        (folder / f"{reader}-{chapter}.trans.txt").write_text("\n".join(texts) + "\n")
        lines.append(f"{reader:<5}| F | {part:<17}| 8.02  | Reader {reader}")
    (top / "SPEAKERS.TXT").write_text("\n".join(lines) + "\n")
    (top / "LICENSE.TXT").write_text("CC BY 4.0\n")


AMI_MEETINGS = {"EN2001a": "train", "ES2011a": "dev", "EN2002a": "eval"}
NXT = 'xmlns:nite="http://nite.sourceforge.net/"'


def nxt_words(name: str, text: str, begin: float, end: float, first: int) -> list[str]:
    """A turn's words; the first turn has a comma and a laugh, each a full stop."""
    tokens = text.capitalize().split()
    step = (end - begin) / len(tokens)
    found = []
    for i, token in enumerate(tokens):
        span = f'starttime="{begin + i * step:.2f}" endtime="{begin + i * step + step:.2f}"'
        point = f'starttime="{begin + i * step + step:.2f}"'
        point += point.replace("start", " end")
        found.append(f"<w ID {span}>{token}</w>")
        if i == 1 and first == 0:
            found.append(f'<w ID {point} punc="true">,</w>')
            found.append(f'<vocalsound ID {point} type="laugh"/>')
    found.append(f'<w ID {point} punc="true">.</w>')
    return [
        x.replace("ID", f'nite:id="{name}.words{first + i}"', 1)
        for i, x in enumerate(found)
    ]


def ami(root: Path, turns: int = 3) -> None:
    """``<root>/amicorpus/<meeting>/audio`` and ``<root>/annotations`` in NXT XML.

    Two speakers by turns.
    """
    notes = root / "annotations"
    for name in ("words", "segments", "corpusResources"):
        (notes / name).mkdir(parents=True, exist_ok=True)

    def write(folder: str, name: str, lines: list[str]) -> None:
        (notes / folder / f"{name}.{folder}.xml").write_text(
            "\n".join([f"<nite:root {NXT}>", *lines, "</nite:root>"]) + "\n"
        )

    described = []
    for place, meeting in enumerate(AMI_MEETINGS):
        now = 0.5
        heard, words, segments = ({"A": [], "B": []} for _ in range(3))
        for turn in range(turns):
            for agent in "AB":
                text, speech = sentence(f"{meeting}{agent}", turn)
                heard[agent].append((now, speech))
                end = now + len(speech) / RATE
                name, first = f"{meeting}.{agent}", len(words[agent])
                words[agent] += nxt_words(name, text, now, end, first)
                segments[agent].append(
                    f'<segment nite:id="{name}.sync.{turn}" transcriber_start="{now:.3f}" '
                    f'transcriber_end="{end:.3f}"><nite:child href="{name}.words.xml#'
                    f'id({name}.words{first})..id({name}.words{len(words[agent]) - 1})"/>'
                    "</segment>"
                )
                now = end + 0.5
        audio = root / f"amicorpus/{meeting}/audio/{meeting}"
        speakers = ""
        for channel, agent in enumerate("AB"):
            write("words", f"{meeting}.{agent}", words[agent])
            write("segments", f"{meeting}.{agent}", segments[agent])
            speakers += (
                f'<speaker nite:id="{meeting}_{agent}" nxt_agent="{agent}" '
                f'channel="{channel}" global_name="FEE{place * 2 + channel + 5:03d}"/>'
            )
            say(Path(f"{audio}.Headset-{channel}.wav"), heard[agent], now)
        say(Path(f"{audio}.Array1-01.wav"), heard["A"] + heard["B"], now)
        described.append(f'<meeting observation="{meeting}">{speakers}</meeting>')
    (notes / "corpusResources/meetings.xml").write_text(
        f"<nite:root {NXT}>{''.join(described)}</nite:root>\n"
    )


TEDLIUM2_TALKS = {
    "dev": "AlGore_2009",
    "test": "BillGates_2010",
    "train": "911Mothers_2010W",
}


def tedlium2(root: Path) -> None:
    """``<root>/TEDLIUM_release2/{dev,test,train}/{sph,stm}``."""
    for part, talk in TEDLIUM2_TALKS.items():
        folder = root / "TEDLIUM_release2" / part
        (folder / "stm").mkdir(parents=True)
        now, heard, lines = 1.0, [], []
        for number in range(4):
            text, speech = sentence(talk, number)
            heard.append((now, speech))
            end = now + len(speech) / RATE
            words = text.lower().replace(" ", " <sil> ", 1)
            if part == "train":  # variants of a word, and each line ends with a name
                words = words.replace(" <sil>", "(2) <sil>", 1)
                words += f" ({talk}-{now:.2f}-{end:.2f}-F0_F-S{number})"
            lines.append(f"{talk} 1 {talk} {now:.2f} {end:.2f} <o,f0,male> {words}")
            if number == 0:
                lines.append(
                    f"{talk} 1 inter_segment_gap {end:.2f} {end + 0.5:.2f} <o,,unknown> "
                    "ignore_time_segment_in_scoring"
                )
            now = end + 0.5
        (folder / f"stm/{talk}.stm").write_text("\n".join(lines) + "\n")
        say(folder / f"sph/{talk}.sph", heard, now)


# The columns of the lists, by release.
COMMONVOICE_5 = (
    "client_id path sentence up_votes down_votes age gender accent locale segment"
)
COMMONVOICE_17 = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age "
    "gender accents variant locale segment"
)
# The speakers c0ffee<n> of the clips, by list. All are validated, and two more clips: one
# of a test speaker, and one of a dev speaker.
COMMONVOICE_LISTS = {"test": (0, 1, 2, 3), "dev": (4, 5), "train": (6, 7, 8)}
COMMONVOICE_MORE = (0, 5)


def commonvoice(root: Path, columns: str = COMMONVOICE_5) -> None:
    """``<root>/cv-corpus-5.1-2020-06-22/en``: lists, and clips at 48 kHz."""
    folder = root / "cv-corpus-5.1-2020-06-22" / "en"
    lists = {x: [] for x in (*COMMONVOICE_LISTS, "validated")}
    speakers = {x: part for part, found in COMMONVOICE_LISTS.items() for x in found}
    for number, speaker in enumerate((*speakers, *COMMONVOICE_MORE)):
        text, speech = sentence("cv", number)
        clip = f"common_voice_en_{number + 100}.mp3"
        seconds = len(speech) / RATE + 0.5
        say(folder / "clips" / clip, [(0.2, speech)], seconds, rate=48000)
        row = {
            "client_id": f"c0ffee{speaker}",
            "path": clip,
            "sentence_id": f"{number:064x}",
            "sentence": text.capitalize() + ".",
            "up_votes": "2",
            "down_votes": "0",
            "gender": "female",
            "locale": "en",
        }
        line = "\t".join(row.get(x, "") for x in columns.split())
        lists["validated"].append(line)
        if number < len(speakers):
            lists[speakers[speaker]].append(line)
    for name, lines in lists.items():
        header = "\t".join(columns.split())
        (folder / f"{name}.tsv").write_text("\n".join([header, *lines]) + "\n")


def chime6(root: Path) -> None:
    """``<root>/audio/{dev,eval}`` and ``<root>/transcriptions/{dev,eval}``."""
    for part, session, names in (
        ("dev", "S02", ("P05", "P06")),
        ("eval", "S01", ("P01", "P02")),
    ):
        now, heard, turns = 1.0, [], []
        for number in range(2):
            for name in names:
                text, speech = sentence(name, number)
                heard.append((now, speech))
                end = now + len(speech) / RATE
                turns.append(
                    {
                        "end_time": f"0:00:{end:05.2f}",
                        "start_time": f"0:00:{now:05.2f}",
                        "words": text.capitalize() + ", [laughs] yeah.",
                        "speaker": name,
                        "ref": "U01",
                        "location": "kitchen",
                        "session_id": session,
                    }
                )
                now = end + 0.5
        turns.append({**turns[0], "words": "[redacted]"})
        folder = root / "transcriptions" / part
        folder.mkdir(parents=True)
        (folder / f"{session}.json").write_text(json.dumps(turns, indent=1))
        for channel in (1, 2, 3, 4):
            say(root / "audio" / part / f"{session}_U01.CH{channel}.wav", heard, now)


def nist_header(samples: int, rate: int, channels: int, coding: str, width: int) -> bytes:
    """The 1024 bytes at the beginning of a SPHERE file."""
    fields = (
        *("NIST_1A", "   1024", f"channel_count -i {channels}"),
        *(f"sample_count -i {samples}", f"sample_rate -i {rate}"),
        *(f"sample_n_bytes -i {width}", f"sample_byte_format -s{width} {'10'[:width]}"),
        *(f"sample_coding -s{len(coding)} {coding}", "end_head"),
    )
    return "\n".join([*fields, ""]).encode().ljust(1024)


def shortened(audio: np.ndarray) -> bytes:
    """16-bit samples (N,) as Shorten 2 packs them: differences in a Rice code."""

    def unsigned(value: int, low: int) -> str:
        bits = f"{value & (1 << low) - 1:0{low}b}" if low else ""
        return "0" * (value >> low) + "1" + bits

    def number(value: int) -> str:
        return unsigned(value.bit_length(), 2) + unsigned(value, value.bit_length())

    size, low = 256, 8
    # Big-endian samples, channels, block, no linear prediction, no mean, nothing skipped.
    bits = [number(x) for x in (3, 1, size, 0, 0, 0)]
    steps = np.diff(audio.astype(int), prepend=0)
    for begin in range(0, len(steps), size):
        block = steps[begin : begin + size]
        if len(block) < size:
            bits += [unsigned(5, 2), number(len(block))]
        bits += [unsigned(1, 2), unsigned(low - 1, 3)]
        bits += [unsigned(int(x) << 1 if x >= 0 else ~int(x) << 1 | 1, low) for x in block]
    stream = "".join([*bits, unsigned(4, 2)])
    stream = stream.ljust(-(-len(stream) // 32) * 32, "0")
    return b"ajkg\2" + int(stream, 2).to_bytes(len(stream) // 8, "big")


# Sets of WSJ: the index that lists one, the disc and folder of its audio, those of its
# transcripts, and the speakers.
WSJ_SETS = (
    ("11-13.1/wsj0/doc/indices/train/tr_s_wv1.ndx", "11-2.1/wsj0/si_tr_s")
    + ("11-4.1/wsj0/transcrp/dots/si_tr_s", ("01t", "01u")),
    ("13-34.1/wsj1/doc/indices/si_tr_s.ndx", "13-1.1/wsj1/si_tr_s")
    + ("13-34.1/wsj1/trans/wsj1/si_tr_s", ("460",)),
    ("13-34.1/wsj1/doc/indices/h1_p0.ndx", "13-16.1/wsj1/si_dt_20")
    + ("13-34.1/wsj1/trans/wsj1/si_dt_20", ("4k0",)),
    ("11-13.1/wsj0/doc/indices/test/nvp/si_et_20.ndx", "11-14.1/wsj0/si_et_20")
    + ("11-14.1/wsj0/transcrp/dots/si_et_20", ("440",)),
    ("13-32.1/wsj1/doc/indices/wsj1/eval/h1_p0.ndx", "13-33.1/wsj1/si_et_h1")
    + ("13-32.1/wsj1/trans/wsj1/si_et_h1", ("4oa",)),
)
# Words in a transcript that stand for what is heard, and for what is not.
WSJ_MARKS = (
    ("", ""),
    (" ,COMMA", " COMMA"),
    (" {LEFT-BRACE [loud_breath] <again> }RIGHT-BRACE ~", " LEFT BRACE AGAIN RIGHT BRACE"),
    (" I\\. B\\. M\\. pre(sident)- .", " I B M PRE"),
)


def wsj(root: Path) -> None:
    """``<root>/{wsj0,wsj1}/<disk>``: indices, packed audio, and transcripts."""
    for index, audio, dots, speakers in WSJ_SETS:
        lines = [";; File: of WSJ"]
        for speaker in speakers:
            texts = []
            for number, (mark, _) in enumerate(WSJ_MARKS):
                text, speech = sentence(speaker, number)
                name = f"{speaker}c020{number + 1}"
                file = root / f"wsj{audio[1] != '1':d}" / audio / speaker / f"{name}.wv1"
                file.parent.mkdir(parents=True, exist_ok=True)
                speech = (speech * 32767).astype(np.int16)
                coding = "pcm,embedded-shorten-v2.00"
                header = nist_header(len(speech), RATE, 1, coding, 2)
                file.write_bytes(header + shortened(speech))
                texts.append(f"{text.capitalize()}{mark} ({name})")
                disk, _, path = audio.partition("/")
                if "si_et_h1" in path:
                    disk = "13-32.1"  # as published; it is on another
                name += "" if "si_et_20" in path else ".wv1"
                colon = ": " if "tr_s" in path else ":"
                disk = disk.replace("-", "_").replace(".", "_")
                lines.append(f"{disk}{colon}{path}/{speaker}/{name}")
            folder = root / f"wsj{dots[1] != '1':d}" / dots / speaker
            folder.mkdir(parents=True)
            (folder / f"{speaker}c0200.dot").write_text("\n".join(texts) + "\n")
        file = root / f"wsj{index[1] != '1':d}" / index
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")


def telephone(file: Path, sides: list[list[tuple[float, np.ndarray]]], end: float) -> None:
    """A call, in mu-law at 8 kHz: what is said at which times on each side."""
    audio = np.zeros((round(end * 8000) + 1, len(sides)))
    for side, parts in enumerate(sides):
        for onset, speech in parts:
            speech = resample_poly(speech, 1, 2)
            start = round(onset * 8000)
            audio[start : start + len(speech), side] += speech[: len(audio) - start]
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, audio, 8000, format="NIST", subtype="ULAW")


def swbd_dictionary(patch: Path) -> str:
    """A dictionary of as many lines as Switchboard's, which ESPnet's patch fits."""
    lines = ["# filler"] * 38910
    lines[100:102] = ["i ay", "I ay"]
    for line in patch.read_text().splitlines():
        if line[:1].isdigit():
            at = int(re.split(r"[,acd]", line)[0]) - 1
        elif line.startswith("< "):
            lines[at] = line[2:]
            at += 1
    return "\n".join(lines) + "\n"


def swbd(root: Path) -> None:
    """``<root>/{LDC97S62,LDC2002S09,LDC2002T43}``: three calls, and the 40 of eval2000."""
    notes = root / "LDC97S62/transcriptions/swb_ms98_transcriptions"
    for call in ("2001", "2005", "2006"):
        heard, now = [[], []], 1.0
        texts = {"A": [], "B": []}
        for number in range(2):
            for side, name in enumerate("AB"):
                text, speech = sentence(f"sw{call}{name}", number)
                end = now + len(speech) / RATE
                heard[side].append((now, speech))
                words = text.lower() + " [laughter-yeah] th[at]- [noise]" * number
                utt = f"sw{call}{name}-ms98-a-{2 * number + 1:04d}"
                texts[name].append(f"{utt} {now:.6f} {end:.6f} {words}")
                utt = f"sw{call}{name}-ms98-a-{2 * number + 2:04d}"
                texts[name].append(f"{utt} {end:.6f} {end + 0.5:.6f} [silence]")
                now = end + 0.5
        telephone(root / f"LDC97S62/swb1_d1/data/sw0{call}.sph", heard, now)
        folder = notes / call[:2] / call
        folder.mkdir(parents=True)
        for name, lines in texts.items():
            file = folder / f"sw{call}{name}-ms98-a-trans.text"
            file.write_text("\n".join(lines) + "\n")
    recipes = Path(__file__).resolve().parents[2] / "egs2/TEMPLATE"
    patch = recipes.resolve().parent / "swbd/asr1/local/dict.patch"
    (notes / "sw-ms98-dict.text").write_text(swbd_dictionary(patch))

    english = root / "LDC2002S09/hub5e_00/english"
    said = [sentence(f"en_4156{name}", 0) for name in "AB"]
    times = [(1.0, 1.0 + len(said[0][1]) / RATE)]
    times.append((times[0][1] + 0.5, times[0][1] + 0.5 + len(said[1][1]) / RATE))
    heard = [[(begin, speech)] for (begin, _), (_, speech) in zip(times, said)]
    first = english / "en_4156.sph"
    telephone(first, heard, times[1][1] + 0.5)
    pem, stm = [";; of eval2000"], [";; of eval2000"]
    for number in range(40):
        call = "en_4156" if not number else f"sw_{4380 + number}"
        if number:
            os.link(first, english / f"{call}.sph")
        for name, (begin, end), (text, _) in zip("AB", times, said):
            pem.append(f"{call} {name} unknown_speaker {begin:.2f} {end:.2f}")
            stm.append(
                f"{call} {name} {call}_{name} {begin:.2f} {end:.2f} <O,en,F,en-F> "
                f"(%HESITATION) {text} (YEAH) <B_ASIDE>"
            )
    (english / "hub5e_00.pem").write_text("\n".join(pem) + "\n")
    notes = root / "LDC2002T43/reference"
    notes.mkdir(parents=True)
    (notes / "hub5e00.english.000405.stm").write_text("\n".join(stm) + "\n")
    (notes / "en20000405_hub5.glm").write_text(";;\n")


FISHER_CALLS = 11699  # as many as ESPnet's recipe asks for


def fisher(root: Path) -> None:
    """``<root>/LDC200{4,5}{T19,S13}``: two calls with words, and those without."""
    sph = [root / f"LDC2004S13/fisher_eng_tr_sp_d{x}" for x in range(1, 8)]
    sph += [root / f"LDC2005S13/fe_03_p2_sph{x}" for x in range(1, 8)]
    for folder in sph:
        folder.mkdir(parents=True)
    said = [sentence(f"fe_03{name}", 0) for name in "AB"]
    middle = 1.5 + len(said[0][1]) / RATE
    end = middle + 0.5 + len(said[1][1]) / RATE
    first = sph[0] / "fe_03_00001.sph"
    telephone(first, [[(1.0, said[0][1])], [(middle, said[1][1])]], end)
    words = (
        f"1.00 {middle - 0.5:.2f} A: {said[0][0].lower()} [laugh]\n\n"
        f"{middle:.2f} {end - 0.5:.2f} B: {said[1][0].lower()}\n\n"
        f"{middle:.2f} {end - 0.5:.2f} B: (( what was that ))\n"
    )
    for number in range(1, FISHER_CALLS + 1):
        call, part = f"fe_03_{number:05d}", 1 if number <= 5850 else 2
        if number > 1:
            os.link(first, sph[number % 7 + 7 * (part - 1)] / f"{call}.sph")
        folder = root / f"LDC200{3 + part}T19/fe_03_p{part}_tran/data"
        folder.mkdir(parents=True, exist_ok=True)
        heard = words if number in (1, FISHER_CALLS) else ""
        (folder / f"{call}.txt").write_text(f"# {call}.sph\n# Transcribed\n\n{heard}")

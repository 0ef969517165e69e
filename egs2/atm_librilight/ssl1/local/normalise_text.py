#!/usr/bin/env python3
"""Bring a corpus's transcripts to LibriSpeech's: upper case, letters and apostrophes.

Reads a Kaldi text and prints it. What stands in [], <> or {} is a mark of the corpus and
no word; what stands in () is read aloud (TED-LIUM has marks there too, but ESPnet's script
takes them out). Utterances without words are left out, and counted on stderr.
"""

import re
import sys
import unicodedata


def normalise(text: str) -> str:
    """The words.

    >>> normalise("Mm-Hmm , [laughs] it's <unk> FIFTY-one caf\\u00e9s .")
    "MM HMM IT'S FIFTY ONE CAFES"
    """
    text = re.sub(r"\[[^\]]*\]|<[^>]*>|\{[^}]*\}", " ", text)
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'")).upper()
    text = "".join(x for x in text if not unicodedata.combining(x))
    text = re.sub(r"[^A-Z0-9']", " ", text)
    words = (x.strip("'") if x.strip("'") else "" for x in text.split())
    return " ".join(x for x in words if x)


def main() -> None:
    """Filter stdin to stdout."""
    empty = 0
    for line in sys.stdin:
        utt, _, text = line.rstrip("\n").partition(" ")
        words = normalise(text)
        if words:
            print(utt, words)
        else:
            empty += 1
    if empty:
        print(f"{empty} utterances have no words and are left out", file=sys.stderr)


if __name__ == "__main__":
    main()

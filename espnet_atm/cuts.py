"""Cuts into audio files: ``FILE:first:last``, in samples of the file."""

import re
from typing import Optional, Tuple

import soundfile

CUT = r"(.+):([0-9]{1,18}):([0-9]{1,18})"
ARCHIVED = r"(.+):([0-9]{1,18})"  # ``archive.ark:offset``
# Formats in which libsndfile's seek is exact to the sample.
SEEKABLE = {"FLAC", "WAV", "WAVEX", "W64", "RF64", "AIFF", "CAF"}


def split_cut(source: str) -> Tuple[str, Optional[Tuple[int, int]]]:
    """Take ``FILE:first:last`` apart.

    Returns:
        The file, and its first sample and the one after its last; None where the source
        is no cut.
    """
    found = re.fullmatch(CUT, source)
    if found is None:
        return source, None
    return found[1], (int(found[2]), int(found[3]))


def cut_from(source: str, first: int, last: int) -> str:
    """The source of a part of a file or cut, in samples of it."""
    file, cut = split_cut(source)
    begin = cut[0] if cut else 0
    return f"{file}:{begin + first}:{begin + last}"


def samples_to_seek(source: str) -> Optional[int]:
    """How many samples a source has, where any part of it can be read by itself.

    None of pipes, archives, formats that cannot be sought in exactly, and of what cannot
    be read: who reads it says why.
    """
    file, cut = split_cut(source)
    if cut is not None:
        return max(cut[1] - cut[0], 0)
    if source.endswith("|") or re.fullmatch(ARCHIVED, source):
        return None
    try:
        found = soundfile.info(file)
    except (soundfile.SoundFileError, OSError):
        return None
    return found.frames if found.format in SEEKABLE else None

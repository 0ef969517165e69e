#!/usr/bin/env python3
"""Read SPHERE files in place of sph2pipe.

``direct`` takes sph2pipe out of the pipes of a wav.scp: of one channel that libsndfile
reads, the file is left; of others, a pipe through ``wav``, which prints a channel, or the
whole, as WAV. Files packed by Shorten are read by FFmpeg's decoder (in PyAV, which ESPnet
brings); it knows linear samples. Packed mu-law needs sph2pipe itself.
"""

import argparse
import io
import os
import re
import shutil
import sys
from pathlib import Path

from espnet_atm.errors import UserError, one_line_errors

PIPE = re.compile(r"\S*sph2pipe -f wav(?: -p)?(?: -c (\d))? (\S+) \|")
PLAIN = ("pcm", "ulaw", "mu-law", "alaw")
PACKED = "embedded-shorten"


def read_header(file: str) -> dict[str, str]:
    """The fields of a SPHERE header; ``bytes`` is its length.

    Raises:
        UserError: where it is none, or the file ends before its last sample.
    """
    try:
        with open(file, "rb") as f:
            magic, size = f.readline(), f.readline().strip()
            if magic != b"NIST_1A\n" or not size.isdigit():
                raise UserError(f"{file}: is no SPHERE file, or is empty")
            lines = f.read(int(size) - f.tell()).split(b"end_head")[0]
    except OSError as e:
        raise UserError(f"{file}: {e.strerror}") from None
    found = {"bytes": size.decode(), "sample_coding": "pcm", "sample_n_bytes": "2"}
    for line in lines.decode("latin-1").splitlines():
        name, _, value = line.partition(" ")
        found[name] = value.partition(" ")[2].strip()
    for name in ("sample_count", "channel_count"):
        if not found.get(name, "").isdigit():
            raise UserError(f"{file}: its header has no {name}")
    samples = int(found["sample_count"]) * int(found["channel_count"])
    if PACKED not in found["sample_coding"]:
        whole = int(size) + samples * int(found["sample_n_bytes"])
        if os.path.getsize(file) < whole:
            raise UserError(f"{file}: is cut off: {os.path.getsize(file)} of {whole} bytes")
    return found


def direct(line: str) -> str:
    """A line of wav.scp, without sph2pipe."""
    key, _, source = line.rstrip("\n").partition(" ")
    found = PIPE.fullmatch(source.strip())
    if not found:
        return line
    channel, file = found.groups()
    header = read_header(file)
    coding = header["sample_coding"]
    if channel and int(channel) > int(header["channel_count"]):
        raise UserError(f"{file}: has no channel {channel}")
    if coding in PLAIN and header["channel_count"] == "1":
        return f"{key} {file}\n"
    if coding not in PLAIN and not coding.startswith(f"pcm,{PACKED}"):
        if shutil.which("sph2pipe") is None:
            raise UserError(
                f"{file}: is {coding}, which nothing here reads: put sph2pipe on the PATH"
            )
        return line
    return f"{key} python3 {os.path.abspath(__file__)} wav {channel or 0} {file} |\n"


def to_wav(file: str, channel: int) -> bytes:
    """A channel, from 1, as WAV; 0 is all of them."""
    import soundfile

    header = read_header(file)
    if PACKED in header["sample_coding"]:
        import av
        import numpy as np

        with av.open(file) as container:
            rate = container.streams.audio[0].sample_rate
            frames = [x.to_ndarray() for x in container.decode(audio=0)]  # (channels, n)
        audio = np.concatenate(frames, axis=1).T if frames else np.zeros((0, 1), "int16")
    else:
        audio, rate = soundfile.read(file, dtype="int16", always_2d=True)
    if len(audio) != int(header["sample_count"]):
        raise UserError(
            f"{file}: is cut off: {len(audio)} of {header['sample_count']} samples"
        )
    out = io.BytesIO()
    soundfile.write(out, audio[:, channel - 1] if channel else audio, rate, format="WAV")
    return out.getvalue()


def main(cmd=None) -> None:
    """Rewrite a wav.scp, or print a WAV."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("direct")
    sub.add_argument("wav_scp", type=Path)
    sub = commands.add_parser("wav")
    sub.add_argument("channel", type=int)
    sub.add_argument("file")
    args = parser.parse_args(cmd)
    if args.command == "wav":
        sys.stdout.buffer.write(to_wav(args.file, args.channel))
        return
    lines = [direct(x) for x in args.wav_scp.open(encoding="utf-8")]
    args.wav_scp.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors("sphere.py"):
        main()

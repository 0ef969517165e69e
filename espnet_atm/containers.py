"""What audio containers say of their length, against what is there.

libsndfile reads what is cut off without a word, or tells it in a log, each format in
its own way. Here the headers are read that it leaves out. What is written to a pipe
cannot know its length, and says so by a length of 0 or the largest one.
"""

import io
import re
import struct
import zlib
from typing import BinaryIO, Dict, Iterator, NamedTuple, Optional, Tuple

# From here on a 32-bit length means that it was not known.
UNKNOWN_LENGTH = 0x7F000000
HEAD = 1 << 16  # bytes in which a header ends
OGG_PAGE = 27  # bytes before the segment table
OGG_FIRST, OGG_LAST = 2, 4  # the flags of a stream's first page and its last
MP3_RATES = (44100, 48000, 32000)
MP3_BITRATES = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP3_LOW_BITRATES = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
FLAC_TAIL = 1 << 20  # bytes that hold a frame
FLAC_SYNC = re.compile(rb"\xff[\xf8\xf9]")


class Damaged(ValueError):
    """Why a file cannot hold all that its header promises."""


class Length(NamedTuple):
    """What a container says.

    Args:
        patch: bytes to put into a header that leaves the length open, by place: without
            them libsndfile takes some for no audio at all.
        samples: of MP3, where libsndfile only guesses: about how many there are.
        digest: of FLAC: the MD5 checksum of the samples, where it has one.
        bits: of FLAC: of one sample.
    """

    patch: Dict[int, bytes] = {}
    samples: Optional[int] = None
    digest: bytes = b""
    bits: int = 0


def check_length(file: BinaryIO) -> Length:
    """Refuse audio that is cut off; formats that tell no length pass.

    Args:
        file: audio from its first byte to its end.

    Raises:
        Damaged: when bytes are missing that the container promises.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(64)
    for magic, reader in READERS:
        if re.match(magic, head, re.DOTALL):
            try:
                return reader(file, size)
            except struct.error:
                raise Damaged(f"is cut off: its {size} bytes are no header") from None
    return Length()


def _refuse_cut_off(there: int, promised: int) -> None:
    if there < promised:
        raise Damaged(f"is cut off: {there} of {promised} bytes are there")


def _unpack(file: BinaryIO, at: int, layout: str) -> Tuple:
    file.seek(at)
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _chunks(
    file: BinaryIO, at: int, size: int, layout: str
) -> Iterator[Tuple[bytes, int, int]]:
    """Name, place and length of the contents of each chunk.

    Chunks begin at even places; one whose head is not whole ends the search.
    """
    step = struct.calcsize(layout)
    while at + step <= size:
        name, length = _unpack(file, at, layout)
        yield name, at + step, length
        at += step + max(length, 0) + (length & 1)


def _riff(file: BinaryIO, size: int) -> Length:
    """WAV, WAVEX and RF64, little or big endian."""
    magic, riff = _unpack(file, 0, "<4sI")
    layout = ">4sI" if magic == b"RIFX" else "<4sI"
    _, riff = _unpack(file, 0, layout)
    large = None
    for name, at, length in _chunks(file, 12, size, layout):
        if name == b"ds64":
            (large,) = _unpack(file, at + 8, "<Q")
        if name != b"data":
            continue
        there = size - at
        if large is not None and length == 0xFFFFFFFF:
            if there and (large == 0 or large >= 1 << 62):
                return Length(patch=_patch_rf64(file, there))
            _refuse_cut_off(there, large)
        elif length == 0 and there and riff + 8 != size:
            return Length(patch={at - 4: struct.pack(layout[0] + "I", there)})
        elif length < UNKNOWN_LENGTH:
            _refuse_cut_off(there, length)
        return Length()
    return Length()


def _patch_rf64(file: BinaryIO, there: int) -> Dict[int, bytes]:
    """The length in RF64's own chunk, which is the first."""
    for name, at, _ in _chunks(file, 12, HEAD, "<4sI"):
        if name == b"ds64":
            return {at + 8: struct.pack("<Q", there)}
    return {}


def _aiff(file: BinaryIO, size: int) -> Length:
    for name, at, length in _chunks(file, 12, size, ">4sI"):
        if name == b"SSND":
            if 0 < length < UNKNOWN_LENGTH:
                _refuse_cut_off(size - at, length)
            break
    return Length()


def _svx(file: BinaryIO, size: int) -> Length:
    for name, at, length in _chunks(file, 12, size, ">4sI"):
        if name == b"BODY":
            _refuse_cut_off(size - at, length)
            break
    return Length()


def _au(file: BinaryIO, size: int) -> Length:
    """NeXT and Sun, in either byte order."""
    file.seek(0)
    layout = "<II" if file.read(4) == b"dns." else ">II"
    begin, length = _unpack(file, 4, layout)
    there = size - begin
    if length == 0xFFFFFFFF:
        return Length()
    if length >= UNKNOWN_LENGTH or (length == 0 and there > 0):
        return Length(patch={8: b"\xff\xff\xff\xff"})
    _refuse_cut_off(there, length)
    return Length()


def _caf(file: BinaryIO, size: int) -> Length:
    for name, at, length in _chunks_caf(file, size):
        if name == b"data":
            there = size - at
            if length in (0, -1) or length >= 1 << 62:
                return Length(patch={at - 8: struct.pack(">q", there)})
            _refuse_cut_off(there, length)
            break
    return Length()


def _chunks_caf(file: BinaryIO, size: int) -> Iterator[Tuple[bytes, int, int]]:
    at = 8
    while at + 12 <= size:
        name, length = _unpack(file, at, ">4sq")
        yield name, at + 12, length
        at += 12 + max(length, 0)


def _w64(file: BinaryIO, size: int) -> Length:
    """Sony's: names of 16 bytes, lengths that count the chunk's head."""
    at = 40
    while at + 24 <= size:
        name, length = _unpack(file, at, "<16sq")
        if name[:4] == b"data":
            if 24 < length < 1 << 62:
                _refuse_cut_off(size - at, length)
            break
        at += max((length + 7) // 8 * 8, 24)
    return Length()


def _sphere(file: BinaryIO, size: int) -> Length:
    """NIST's: a header in words, and so many samples."""
    file.seek(0)
    head = file.read(1 << 14)
    begin = int((re.match(rb"NIST_1A\s+(\d{1,6})\s", head) or [0, 1024])[1])
    if size < begin:
        raise Damaged(f"is cut off: {size} of {begin} bytes of its header are there")
    words = {
        name: int(value)
        for name, value in re.findall(rb"^(\w+) -i (-?\d{1,12})\s", head, re.MULTILINE)
    }
    coding = re.search(rb"^sample_coding -s\d+ (\S+)", head, re.MULTILINE)
    if coding and b"embedded" in coding[1]:  # compressed, which libsndfile refuses
        return Length()
    promised = words.get(b"sample_count", 0)
    if promised > 0:
        # libsndfile itself writes that two bytes are one sample of these.
        law = coding and re.match(rb"u-?law|mu-?law|alaw", coding[1])
        wide = 1 if law else words.get(b"sample_n_bytes", 2)
        wide *= words.get(b"channel_count", 1)
        _refuse_cut_off(size - begin, promised * wide)
    return Length()


def _voc(file: BinaryIO, size: int) -> Length:
    """Creative's: blocks, and a zero after the last."""
    (at,) = _unpack(file, 20, "<H")
    while at + 4 <= size:
        kind, low, high = _unpack(file, at, "<BHB")
        if kind == 0:
            return Length()
        length = low + (high << 16)
        _refuse_cut_off(size - at - 4, length)
        at += 4 + length
    return Length()


def _avr(file: BinaryIO, size: int) -> Length:
    (stereo, bits) = _unpack(file, 12, ">hh")
    (samples,) = _unpack(file, 26, ">I")
    wide = (2 if stereo else 1) * (bits // 8 or 1)
    if samples < UNKNOWN_LENGTH:
        _refuse_cut_off(size - 128, samples * wide)
    return Length()


def _mpc2k(file: BinaryIO, size: int) -> Length:
    (stereo,) = _unpack(file, 21, "<?")
    (samples,) = _unpack(file, 30, "<I")
    if samples < UNKNOWN_LENGTH:
        _refuse_cut_off(size - 42, samples * 2 * (2 if stereo else 1))
    return Length()


def _ogg(file: BinaryIO, size: int) -> Length:
    """Vorbis, Opus, FLAC in pages, each with a number and a checksum."""
    at, numbers, last = 0, {}, {}
    while at < size:
        file.seek(at)
        head = file.read(OGG_PAGE + 255)
        if head[:4] != b"OggS":
            if last and all(last.values()):  # tags of others after the end
                return Length()
            raise Damaged(f"is damaged: no page of audio begins at byte {at} of {size}")
        if len(head) < OGG_PAGE or len(head) < OGG_PAGE + head[26]:
            raise Damaged(f"is cut off: in the page that begins at byte {at}")
        length = OGG_PAGE + head[26] + sum(head[OGG_PAGE : OGG_PAGE + head[26]])
        if at + length > size:
            raise Damaged(f"is cut off: {size} of {at + length} bytes are there")
        stream, number = head[14:18], struct.unpack_from("<I", head, 18)[0]
        begins = head[5] & OGG_FIRST
        if number != numbers.get(stream, number) and not begins:
            raise Damaged(f"is damaged: pages are missing before byte {at}")
        file.seek(at)
        page = bytearray(file.read(length))
        page[22:26] = bytes(4)
        if _ogg_checksum(bytes(page)) != struct.unpack_from("<I", head, 22)[0]:
            raise Damaged(f"is damaged: in the page that begins at byte {at}")
        numbers[stream], last[stream] = number + 1, bool(head[5] & OGG_LAST)
        at += length
    if not all(last.values()):
        raise Damaged(f"is cut off: after {size} bytes its last page has not come")
    return Length()


_MIRRORED = bytes(int(f"{x:08b}"[::-1], 2) for x in range(256))


def _ogg_checksum(page: bytes) -> int:
    """zlib's checksum of mirrored bits, from 0 on."""
    found = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2)


def _mp3(file: BinaryIO, size: int) -> Length:
    """Xing's or LAME's frame says how many follow; else they have to be counted."""
    file.seek(0)
    begin = 0
    head = file.read(10)
    if head[:3] == b"ID3":
        begin = 10 + sum((x & 0x7F) << 7 * (3 - i) for i, x in enumerate(head[6:10]))
    file.seek(begin)
    data = file.read()
    if any(x in data[:256] for x in (b"Xing", b"Info", b"VBRI")):
        return Length()
    at = samples = 0
    while found := _mp3_frame(data[at : at + 4]):
        at, samples = at + found[0], samples + found[1]
    if at > len(data):
        raise Damaged(f"is cut off: {size} of {begin + at} bytes are there")
    return Length(samples=samples)


def _mp3_frame(head: bytes) -> Optional[Tuple[int, int]]:
    """Bytes and samples of a frame of layer III; None where none begins."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, rate, bits = head[1] >> 3 & 3, head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or rate == 3 or bits in (0, 15):
        return None
    first = version == 3
    hertz = MP3_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 1152 if first else 576
    bitrate = 1000 * (MP3_BITRATES if first else MP3_LOW_BITRATES)[bits]
    return samples // 8 * bitrate // hertz + (head[2] >> 1 & 1), samples


def _flac(file: BinaryIO, size: int) -> Length:
    """FLAC: a stream that was written to a pipe does not say how long it is."""
    at, kept = 4, None
    last = False
    while not last:
        kind, *length = _unpack(file, at, "4B")
        last = kind >= 0x80
        length = int.from_bytes(bytes(length), "big")
        if kind & 0x7F == 0:
            kept = at + 4
        at += 4 + length
        if at > size:
            raise Damaged("is cut off: in its header")
    if kept is None:
        raise Damaged("is damaged: it has no stream info")
    file.seek(kept)
    info = file.read(34)
    length = Length(
        digest=info[18:] if any(info[18:]) else b"",
        bits=((info[12] & 1) << 4 | info[13] >> 4) + 1,
    )
    if (info[13] & 0x0F) or any(info[14:18]):
        return length
    samples = _last_flac_sample(file, at, size, int.from_bytes(info[0:2], "big"))
    patched = bytes([info[13] & 0xF0 | samples >> 32])
    patched += struct.pack(">I", samples & 0xFFFFFFFF)
    return length._replace(patch={kept + 13: patched} if samples else {})


def _last_flac_sample(file: BinaryIO, begin: int, size: int, least: int) -> int:
    """How many samples there are at the end of the last frame, if that is whole."""
    if size == begin:
        return 0
    start = max(begin, size - FLAC_TAIL)
    file.seek(start)
    tail = file.read()
    places = [x.start() for x in FLAC_SYNC.finditer(tail)]
    for at in reversed(places):
        found = _flac_frame(tail[at : at + 16], least)
        # A frame has a checksum of its own, over all of it.
        if found is not None and _crc(tail[at:], 0x8005, 16) == 0:
            return found
    raise Damaged(f"is cut off: its last frame is not whole, in {size} bytes")


def _flac_frame(head: bytes, least: int) -> Optional[int]:
    """The number of the sample after a frame; None where none begins."""
    if len(head) < 6:
        return None
    size_code, rate_code = head[2] >> 4, head[2] & 15
    lead = head[4]
    extra = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1
    if lead >= 0x80 and not 1 <= extra <= 6:
        return None
    number = lead if not extra else lead & (0x3F >> extra)
    at = 5
    for byte in head[at : at + extra]:
        if byte & 0xC0 != 0x80:
            return None
        number = number << 6 | byte & 0x3F
    at += extra
    if size_code == 0:
        return None
    if size_code == 1:
        samples = 192
    elif size_code <= 5:
        samples = 576 << (size_code - 2)
    elif size_code == 6:
        samples, at = head[at] + 1, at + 1
    elif size_code == 7:
        samples, at = int.from_bytes(head[at : at + 2], "big") + 1, at + 2
    else:
        samples = 256 << (size_code - 8)
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if len(head) <= at or _crc(head[: at + 1], 0x07, 8) != 0:
        return None
    # Frames are numbered where all but the last have the same size.
    return number + samples if head[1] & 1 else number * least + samples


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    table = _crc_table(polynomial, bits)
    found, top, mask = 0, bits - 8, (1 << bits) - 1
    for byte in data:
        found = (found << 8 & mask) ^ table[found >> top ^ byte]
    return found


def _crc_table(polynomial: int, bits: int) -> Tuple[int, ...]:
    if (polynomial, bits) not in _TABLES:
        table, mask = [], (1 << bits) - 1
        for found in range(256):
            found <<= bits - 8
            for _ in range(8):
                found = (found << 1) ^ (polynomial if found >> (bits - 1) else 0)
                found &= mask
            table.append(found)
        _TABLES[polynomial, bits] = tuple(table)
    return _TABLES[polynomial, bits]


_TABLES: Dict[Tuple[int, int], Tuple[int, ...]] = {}

READERS = (
    (rb"(RIFF|RIFX|RF64|BW64)....WAVE", _riff),
    (rb"FORM....AIF[FC]", _aiff),
    (rb"FORM....(8SVX|16SV)", _svx),
    (rb"\.snd|dns\.", _au),
    (rb"caff", _caf),
    (rb"riff.{20}wave", _w64),
    (rb"NIST_1A", _sphere),
    (rb"Creative Voice File\x1a", _voc),
    (rb"2BIT", _avr),
    (rb"\x01\x04", _mpc2k),
    (rb"OggS", _ogg),
    (rb"fLaC", _flac),
    (rb"ID3|\xff[\xe0-\xff]", _mp3),
)

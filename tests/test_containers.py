import io
import struct

import kaldiio
import numpy as np
import pytest
import soundfile

from espnet_atm.audio import AudioError, check_whole, read_audio
from espnet_atm.containers import Damaged, check_length

RATE = 16000
# Those whose header or container tells how long they are.
TELLING = [
    *(("WAV", x) for x in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "GSM610", "IMA_ADPCM")),
    *(("AIFF", x) for x in ("PCM_16", "PCM_24")),
    *(("AU", x) for x in ("PCM_16", "ULAW")),
    *(("CAF", x) for x in ("PCM_16", "ALAC_16")),
    *(("NIST", x) for x in ("PCM_16", "ULAW", "ALAW")),
    *(("OGG", x) for x in ("VORBIS", "OPUS")),
    *(("FLAC", x) for x in ("PCM_16", "PCM_24")),
    *((x, "PCM_16") for x in ("WAVEX", "RF64", "W64", "VOC", "AVR", "SVX", "MPC2K")),
    *(("MAT4", "PCM_16"), ("MP3", "MPEG_LAYER_III")),
]


@pytest.fixture
def speech():
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(3 * RATE)).astype(np.float32)


def encode(speech, form, subtype="PCM_16", endian="FILE") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speech, RATE, subtype, endian, form)
    return file.getvalue()


def store(folder, data, form="wav") -> str:
    file = folder / f"x.{form.lower()}"
    file.write_bytes(data)
    return str(file)


@pytest.mark.parametrize("form, subtype", TELLING)
def test_whole_files_are_read_and_cut_ones_refused(tmp_path, speech, form, subtype):
    data = encode(speech, form, subtype)
    source = store(tmp_path, data, form)
    check_whole(source)
    for _ in range(2):
        audio, rate = read_audio(source)
        # Codecs work in blocks.
        assert rate == RATE and 0 <= len(audio) - len(speech) < 2048
        source = f"cat {source} |"
    for left in (len(data) - 20, len(data) * 6 // 10, len(data) // 10):
        source = store(tmp_path, data[:left], form)
        for _ in range(2):
            with pytest.raises(Exception, match="cut off"):
                read_audio(source)
            source = f"cat {source} |"
    if form not in ("FLAC", "MP3", "MAT4"):  # those have to be decoded
        with pytest.raises(AudioError, match="is cut off: "):
            check_whole(store(tmp_path, data[: len(data) // 2], form))


@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU", "CAF", "RF64", "NIST"])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_other_byte_order_and_more_channels(speech, form, endian, channels):
    try:
        data = encode(np.stack([speech] * channels, 1), form, "PCM_24", endian)
    except (soundfile.LibsndfileError, ValueError):
        pytest.skip("libsndfile does not write that")
    check_length(io.BytesIO(data))
    with pytest.raises(Damaged, match="is cut off"):
        check_length(io.BytesIO(data[:-1000]))


def of_unknown_length(data, form, length) -> bytes:
    """What is written to a pipe: the length was not known when the header was."""
    data = bytearray(data)
    at = data.index(b"SSND" if form == "AIFF" else b"data" if form != "AU" else b".snd")
    if form == "WAV":
        data[4:8] = data[at + 4 : at + 8] = struct.pack("<I", length)
    elif form == "AIFF":
        data[4:8] = data[at + 4 : at + 8] = struct.pack(">I", length)
    elif form == "AU":
        data[8:12] = struct.pack(">I", length)
    else:
        large = {0xFFFFFFFF: -1, 0x7FFFFFFF: 2**63 - 1}.get(length, length)
        if form == "CAF":
            data[at + 4 : at + 12] = struct.pack(">q", large)
        elif form == "W64":
            data[at + 16 : at + 24] = struct.pack("<q", large)
        else:
            data[28:36] = struct.pack("<q", large)
    return bytes(data)


@pytest.mark.parametrize("length", [0, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU", "CAF", "RF64"])
def test_streams_of_unknown_length_are_read_whole(tmp_path, speech, form, length):
    endian = "BIG" if form == "AU" else "FILE"
    data = of_unknown_length(encode(speech, form, endian=endian), form, length)
    for source in (store(tmp_path, data, form), f"cat {store(tmp_path, data, form)} |"):
        audio, _ = read_audio(source)
        assert np.abs(audio - speech).max() <= 1 / 32768
        check_whole(store(tmp_path, data, form))
        part, _ = read_audio(source, 1.0, 1.5)
        np.testing.assert_array_equal(part, audio[RATE : RATE * 3 // 2])


def test_an_empty_file_is_no_stream(tmp_path, speech):
    for form in ("WAV", "AIFF", "AU", "RF64"):
        audio, _ = read_audio(store(tmp_path, encode(speech[:0], form), form))
        assert len(audio) == 0


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("samples", [100, 4096, 45000, 48000])
def test_a_flac_of_unknown_length_is_read_whole(tmp_path, speech, samples, digest):
    data = bytearray(encode(speech[:samples], "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    if not digest:
        data[26:42] = bytes(16)
    source = store(tmp_path, bytes(data), "flac")
    for name in (source, f"cat {source} |"):
        audio, _ = read_audio(name)
        assert len(audio) == samples
        assert np.abs(audio - speech[:samples]).max() <= 1 / 32768
    for left in (len(data) - 1, len(data) - 50):
        source = store(tmp_path, bytes(data[:left]), "flac")
        for name in (source, f"cat {source} |"):
            with pytest.raises(AudioError, match="is cut off: its last frame"):
                read_audio(name)


def test_damage_in_the_middle_of_a_flac(tmp_path, speech):
    data = encode(speech, "FLAC")
    whole, _ = read_audio(store(tmp_path, data, "flac"))
    rng = np.random.default_rng(0)
    for at in rng.integers(100, len(data) - 100, 40):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        source = store(tmp_path, bytes(damaged), "flac")
        with pytest.raises(Exception, match="damaged|cut off|cannot be read|rror open"):
            read_audio(source)
        # A part is what it was, or is refused.
        for start in (0, 1, 2):
            try:
                part, _ = read_audio(source, start, start + 1)
            except Exception:
                continue
            np.testing.assert_array_equal(part, whole[start * RATE : (start + 1) * RATE])


def test_a_segment_that_is_cut_off(tmp_path, speech):
    for form in ("WAV", "FLAC", "NIST", "AU"):
        data = encode(speech, form)
        source = store(tmp_path, data[: len(data) // 2], form)
        audio, _ = read_audio(source, 0.1, 0.5)
        assert np.abs(audio - speech[1600:8000]).max() <= 1 / 32768
        with pytest.raises(Exception, match="cut off|the recording has 1.[45]"):
            read_audio(source, 2.0, 2.5)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_damage_in_the_middle_of_an_ogg(speech, subtype):
    data = encode(speech, "OGG", subtype)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 40):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(Damaged, match="is damaged|is cut off"):
            check_length(io.BytesIO(damaged))
    # Whole pages are missing: in the middle, and at the end.
    pages = [b"OggS" + x for x in data.split(b"OggS")[1:]]
    assert len(pages) > 4
    with pytest.raises(Damaged, match="pages are missing"):
        check_length(io.BytesIO(b"".join(pages[:3] + pages[4:])))
    with pytest.raises(Damaged, match="its last page has not come"):
        check_length(io.BytesIO(b"".join(pages[:-1])))
    check_length(io.BytesIO(data + bytes(10)))
    check_length(io.BytesIO(data + data))


def test_mp3_without_its_first_frame(tmp_path):
    """Nobody says how long it is: one of constant bit rate is read, others are refused."""
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(3 * 44100) * np.repeat([0, 0.001, 0.3], 44100)

    def headless(mode) -> bytes:
        file = io.BytesIO()
        options = {"bitrate_mode": mode, "compression_level": 0.5}
        with soundfile.SoundFile(
            *(file, "w", 44100, 1, "MPEG_LAYER_III"), format="MP3", **options
        ) as f:
            f.write(speech)
        data = file.getvalue()
        return data[data.index(data[:2], 4) :]

    data = headless("CONSTANT")
    audio, _ = read_audio(store(tmp_path, data, "mp3"))
    assert abs(len(audio) - len(speech)) < 3 * 1152
    with pytest.raises(AudioError, match="is cut off"):
        read_audio(store(tmp_path, data[:-100], "mp3"))
    with pytest.raises(AudioError, match="does not say how long it is"):
        read_audio(store(tmp_path, headless("VARIABLE"), "mp3"))


@pytest.mark.parametrize(
    "form, subtype",
    [("WAV", "GSM610"), ("AIFF", "GSM610"), ("WAV", "G721_32")],
)
def test_what_cannot_be_sought_in(tmp_path, speech, form, subtype):
    source = store(tmp_path, encode(speech, form, subtype), form)
    with soundfile.SoundFile(source) as f:
        assert not f.seekable()
        expected = f.read(len(speech), dtype="float32")
    audio, _ = read_audio(source)
    np.testing.assert_array_equal(audio[: len(expected)], expected)
    part, _ = read_audio(source, 1.0, 2.0)
    np.testing.assert_array_equal(part, expected[RATE : 2 * RATE])


@pytest.mark.parametrize("write", [None, "soundfile"])
def test_archives_with_audio_that_is_cut_off(tmp_path, speech, write):
    pcm = (speech * 32768).astype(np.int16)
    ark, scp = tmp_path / "x.ark", tmp_path / "x.scp"
    audio = {"a": (RATE, pcm), "b": (RATE, pcm)}
    if write:
        audio = {utt: (x, rate) for utt, (rate, x) in audio.items()}
    options = {"write_kwargs": {"format": "flac"}} if write else {}
    kaldiio.save_ark(str(ark), audio, str(scp), write_function=write, **options)
    sources = [x.split()[1] for x in scp.read_text().splitlines()]
    for source in sources:
        found, rate = read_audio(source)
        assert rate == RATE and np.array_equal(found, pcm / np.float32(32768))
        check_whole(source)
    ark.write_bytes(ark.read_bytes()[:-100])
    read_audio(sources[0])
    for read in (read_audio, check_whole):
        with pytest.raises(AudioError, match="is cut off: .* bytes are there"):
            read(sources[1])


def test_an_archive_is_no_pickle(tmp_path):
    (tmp_path / "x.ark").write_bytes(b"u PKL\x80\x04.")
    with pytest.raises(AudioError, match="has a pickle"):
        read_audio(f"{tmp_path}/x.ark:2")
    with pytest.raises(AudioError, match="has no more"):
        read_audio(f"{tmp_path}/x.ark:200")

import os
import pickle
import re
import subprocess
import sys
import zlib

import kaldiio
import numpy as np
import pytest
import soundfile
from conftest import ROOT

import espnet_atm.audio
from espnet_atm.audio import AudioDataset, AudioError, Table, checksum, read_audio
from espnet_atm.errors import UserError

RATE = 16000
PYSCRIPTS = ROOT / "egs2" / "TEMPLATE" / "asr1" / "pyscripts"


@pytest.fixture
def speech():
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(RATE)).astype(np.float32)


@pytest.fixture
def wav(tmp_path, speech):
    file = tmp_path / "a b.wav"  # a path may hold spaces
    soundfile.write(file, speech, RATE, subtype="PCM_16")
    return file


def close(a, b) -> bool:
    return a.shape == b.shape and np.abs(a - b).max() <= 1 / 32768


@pytest.mark.parametrize("form", ["wav", "flac", "ogg"])
def test_files(tmp_path, speech, form):
    file = tmp_path / f"x.{form}"
    soundfile.write(file, speech, RATE)
    audio, rate = read_audio(str(file))
    assert rate == RATE and audio.dtype == np.float32
    assert len(audio) == RATE and (form == "ogg" or close(audio, speech))


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_pipes(tmp_path, speech, form):
    soundfile.write(tmp_path / f"x.{form}", speech, RATE)
    audio, rate = read_audio(f"cat {tmp_path}/x.{form} |")
    assert rate == RATE and close(audio, speech)


def test_a_pipe_that_fails_is_told(tmp_path):
    with pytest.raises(AudioError, match="its command ends with 1: .*No such file"):
        read_audio(f"cat {tmp_path}/nothing.wav |")


@pytest.mark.parametrize(
    "command, message",
    [
        ("false | cat {0}/x.wav", "its command ends with 1: "),
        ("cat {0}/nothing.wav | cat {0}/x.wav", "ends with 1: .*nothing.wav"),
        ("head -c 20000 {0}/x.wav", "is cut off: 199.. of 32000 bytes are there"),
        ("true", "its command writes nothing$"),
        ("cat", "its command writes nothing$"),  # nor does it wait for the keyboard
        ("true; echo no such recorder >&2", "writes nothing: no such recorder"),
        ("cat {0}/x.wav; exit 3", "its command ends with 3: "),
        ("no_such_command", "its command ends with 127: .*no_such_command"),
        ("echo hello", "cannot be read"),
    ],
)
def test_pipes_that_fail_in_any_part(tmp_path, speech, command, message):
    soundfile.write(tmp_path / "x.wav", speech, RATE, subtype="PCM_16")
    (tmp_path / "wav.scp").write_text(f"u {command.format(tmp_path)} |\n")
    found = AudioDataset(tmp_path / "wav.scp")[0]
    assert isinstance(found, str) and re.search(message, found, re.DOTALL)


def test_a_pipe_may_leave_the_rest(tmp_path, speech):
    """The part before the last ends by a signal then."""
    soundfile.write(tmp_path / "x.wav", speech, RATE, subtype="PCM_16")
    zeros = "head -c 10000000 /dev/zero"
    audio, _ = read_audio(f"(cat {tmp_path}/x.wav; {zeros}) | head -c 32044 |")
    assert close(audio, speech)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    lines = [f"{name} {tmp_path}/{name}\n" for name in ("fifo", "folder", "none")]
    (tmp_path / "folder").mkdir()
    (tmp_path / "wav.scp").write_text("".join(lines) + "ark x.ark:5\nnull /dev/null\n")
    dataset = AudioDataset(tmp_path / "wav.scp")
    for found, message in zip(
        (dataset[i] for i in range(5)),
        ("is a pipe", "is a folder", "no such file", "no such file: x.ark", "a device"),
    ):
        assert isinstance(found, str) and message in found
    for name, message in (("fifo", "is a pipe"), ("folder", "is a folder")):
        with pytest.raises(UserError, match=message):
            Table(tmp_path / name, 2)
    with pytest.raises(FileNotFoundError):
        Table(tmp_path / "none", 2)


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path):
    (tmp_path / "wav.scp").write_bytes(b"\xef\xbb\xbfa x\r\nb y\r\n")
    table = Table(tmp_path / "wav.scp", 2)
    assert list(table) == [["a", "x"], ["b", "y"]] and table.find("a") == 0
    assert list(pickle.loads(pickle.dumps(table))) == list(table)
    (tmp_path / "wav.scp").write_bytes(b"a x\n\xef\xbb\xbfb y\n")
    with pytest.raises(UserError, match="wav.scp:2: holds a byte-order mark"):
        Table(tmp_path / "wav.scp", 2)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"a x\nb \xff\n", ":2: is no text in UTF-8"),
        (b"a x\nb y\0\n", ":2: holds a null"),
        (b"\xff\xfea\0 \0x\0\n\0", ":1: "),
    ],
)
def test_what_is_no_text_is_named(tmp_path, data, message):
    (tmp_path / "wav.scp").write_bytes(data)
    with pytest.raises(UserError, match=f"wav.scp{message}"):
        Table(tmp_path / "wav.scp", 2)


def test_a_checksum_is_the_same_for_all_readers(tmp_path, speech):
    for subtype in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
        soundfile.write(tmp_path / "x.wav", speech, RATE, subtype=subtype)
        once, twice = (
            checksum(soundfile.read(tmp_path / "x.wav", dtype=x)[0])
            for x in ("float32", "float64")
        )
        assert once == twice == checksum(read_audio(f"{tmp_path}/x.wav")[0])
    assert checksum(speech) != checksum(speech[::-1])
    assert checksum(np.array([1e30, -1e30])) == checksum(np.array([1e20, -1e20]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [0.1, 1, 40000, 65535.99, 65536, 65537, 1e30])
def test_a_checksum_is_of_the_samples_in_32_bits(dtype, scale):
    # As it was computed when the tracks that are stored were made.
    rng = np.random.default_rng(0)
    edges = np.array([1, -1, 0.5 / 32768, 1.5 / 32768, -0.5 / 32768, 32767 / 32768])
    speech = scale * np.concatenate([edges, rng.uniform(-1, 1, 1000)])
    speech = speech.astype(dtype)
    scaled = np.rint(speech.astype(np.float32).astype(np.float64) * 32768)
    stored = scaled.clip(-(2**31), 2**31 - 1).astype("<i4").tobytes()
    before = speech.copy()
    assert checksum(speech) == f"{zlib.crc32(stored):08x}"
    assert np.array_equal(speech, before)


def test_what_tells_audio_from_other(tmp_path, speech):
    for name in ("x", "y"):
        soundfile.write(tmp_path / f"{name}.wav", speech, RATE, subtype="PCM_16")
    (tmp_path / "wav.scp").write_text("".join(f"{x} {tmp_path}/{x}.wav\n" for x in "xy"))
    (tmp_path / "segments").write_text("u x 0 0.5\nv x 0 0.6\n")

    def read(**options):
        dataset = AudioDataset(tmp_path / "wav.scp", **options)
        espnet_atm.audio._file_state.cache_clear()
        return [(dataset.load(i)[1], dataset.source_hash(i)) for i in range(2)]

    (first, there), (second, elsewhere) = read()
    assert first == second == f"{RATE} {RATE} {checksum(read_audio(f'{tmp_path}/x.wav')[0])}"
    assert there != elsewhere
    assert read(sampling_rate=8000)[0] == (first, there)
    (half, one), (more, other) = read(segments=tmp_path / "segments")
    assert half.startswith("8000 16000 ") and more.startswith("9600 16000 ")
    assert one != other
    os.utime(tmp_path / "x.wav", ns=(1, 1))
    assert read()[0][0] == first and read()[0][1] != there


@pytest.mark.parametrize("form", ["wav.ark", "flac.ark"])
def test_archives_as_format_wav_scp_writes_them(tmp_path, speech, form):
    soundfile.write(tmp_path / "x.wav", speech, RATE)
    (tmp_path / "wav.scp").write_text(f"utt {tmp_path}/x.wav\n")
    subprocess.run(
        [
            *(sys.executable, f"{PYSCRIPTS}/audio/format_wav_scp.py"),
            *(str(tmp_path / "wav.scp"), str(tmp_path / "out")),
            *("--audio-format", form, "--fs", "16k"),
        ],
        check=True,
        capture_output=True,
    )
    ((_, source),) = Table(tmp_path / "out" / "wav.scp", 2)
    assert ".ark:" in source
    audio, rate = read_audio(source)
    assert rate == RATE and audio.dtype == np.float32 and close(audio, speech)


def test_segments(tmp_path, wav, speech):
    pcm = (speech * 32768).round().astype(np.int16)
    kaldiio.save_ark(
        str(tmp_path / "x.ark"), {"x": (RATE, pcm)}, scp=str(tmp_path / "x.scp")
    )
    ark = (tmp_path / "x.scp").read_text().split()[1]
    (tmp_path / "wav.scp").write_text(f"rec {wav}\npipe cat '{wav}' |\nark {ark}\n")
    (tmp_path / "segments").write_text(
        "u1 rec 0.25 0.5\nu2 pipe 0.5 1.0\nu3 rec 0.75 1.5\n"
        "u4 ark 0.25 0.5\nu5 ark 0.75 1.5\n"
    )
    dataset = AudioDataset(tmp_path / "wav.scp", RATE, tmp_path / "segments")
    assert [row[0] for row in dataset.utterances] == ["u1", "u2", "u3", "u4", "u5"]
    assert close(dataset[0], speech[4000:8000])
    assert close(dataset[1], speech[8000:])
    assert close(dataset[3], speech[4000:8000])
    for over in (2, 4):
        assert "ends at 1.5 s and the recording has 1.000 s" in dataset[over]


@pytest.mark.parametrize(
    "line, message",
    [
        ("u x 0 1", "segments:1: u: recording x is not in .*wav.scp"),
        ("u rec 1 1", "from 1.0 s to 1.0 s is no segment"),
        ("u rec 0 end", "are not two times"),
        ("u rec 0 inf", "from 0.0 s to inf s is no segment"),
        ("u rec nan 1", "from nan s to 1.0 s is no segment"),
        ("u rec 0", "segments:1: no 4 columns in 'u rec 0'"),
    ],
)
def test_bad_segments_are_named(tmp_path, wav, line, message):
    (tmp_path / "wav.scp").write_text(f"rec {wav}\n")
    (tmp_path / "segments").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        AudioDataset(tmp_path / "wav.scp", RATE, tmp_path / "segments")


@pytest.mark.parametrize(
    "text, message",
    [
        ("a x.wav\nb\n", "wav.scp:2: no path in 'b'"),
        ("a x\nb y\na z\n", ":3: a is in line 1"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    (tmp_path / "wav.scp").write_text(text)
    with pytest.raises(ValueError, match=message):
        Table(tmp_path / "wav.scp", 2)


def test_rows_are_read_from_the_file(tmp_path):
    lines = [f"utt-{n} a path {n}\n" for n in range(100)]
    (tmp_path / "wav.scp").write_text("".join(lines))
    table = Table(tmp_path / "wav.scp", 2)
    assert len(table) == 100 and table[-1] == ["utt-99", "a path 99"]
    assert [table.find(row[0]) for row in table] == list(range(100))
    assert table.find("utt-100") is None
    with pytest.raises(IndexError):
        table[100]


def test_a_truncated_flac_is_told(tmp_path, speech):
    file = tmp_path / "x.flac"
    soundfile.write(file, speech, RATE)
    file.write_bytes(file.read_bytes()[:20000])
    (tmp_path / "wav.scp").write_text(f"u {file}\n")
    found = AudioDataset(tmp_path / "wav.scp", RATE)[0]
    assert isinstance(found, str)
    assert "is cut off" in found or "cannot be read" in found


@pytest.mark.parametrize("form", ["wav", "aiff", "au"])
def test_truncated_files_are_told(tmp_path, speech, form):
    file = tmp_path / f"x.{form}"
    soundfile.write(file, speech, RATE, subtype="PCM_16")
    file.write_bytes(file.read_bytes()[:20000])
    with pytest.raises(AudioError, match="is cut off: 199.. of 3200.? bytes are there"):
        read_audio(str(file))
    with pytest.raises(AudioError, match="is cut off"):
        read_audio(f"cat {file} |")
    part, _ = read_audio(str(file), 0.1, 0.5)
    assert close(part, speech[1600:8000])


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\xdb\xff\xff\x7f"])
def test_a_pipe_need_not_know_the_length_beforehand(tmp_path, wav, speech, size):
    """What ffmpeg and sox write there."""
    data = wav.read_bytes()
    assert data[36:40] == b"data"
    (tmp_path / "x.wav").write_bytes(data[:40] + size + data[44:])
    assert close(read_audio(f"cat {tmp_path}/x.wav |")[0], speech)


def test_resampled_audio_lasts_as_long(tmp_path, speech):
    file = tmp_path / "x.wav"
    soundfile.write(file, speech, 22050)
    (tmp_path / "wav.scp").write_text(f"u {file}\n")
    audio = AudioDataset(tmp_path / "wav.scp", RATE)[0]
    assert abs(len(audio) - RATE * len(speech) / 22050) <= 1
    assert audio.dtype == np.float32


def test_cuts_are_samples_of_the_recording(tmp_path, wav, speech):
    audio, rate = read_audio(f"{wav}:4000:8000")
    assert rate == RATE and close(audio, speech[4000:8000])
    audio, _ = read_audio(f"{wav}:4000:8000", 0.1, 0.2)
    assert close(audio, speech[5600:7200])
    assert close(read_audio(f"{wav}:0:{len(speech)}")[0], speech)
    (tmp_path / "wav.scp").write_text(f"a {wav}:4000:8000\nb {wav}:0:4000\n")
    dataset = AudioDataset(tmp_path / "wav.scp", RATE)
    assert close(dataset[0], speech[4000:8000]) and close(dataset[1], speech[:4000])
    assert dataset.load(0)[1] == f"4000 16000 {checksum(dataset[0])}"
    before = [dataset.source_hash(i) for i in range(2)]
    assert len(set(before)) == 2
    os.utime(wav, (1, 1))
    again = AudioDataset(tmp_path / "wav.scp", RATE)
    assert not set(before) & {again.source_hash(i) for i in range(2)}


@pytest.mark.parametrize(
    "cut, message",
    [
        ("0:16001", "is a cut of the samples 0 to 16001, and the recording has 16000"),
        ("5:5", "is a cut of the samples 5 to 5"),
        ("9:5", "is a cut of the samples 9 to 5"),
    ],
)
def test_cuts_that_are_not_there(wav, cut, message):
    with pytest.raises(AudioError, match=message):
        read_audio(f"{wav}:{cut}")
    with pytest.raises(AudioError, match="no such file: /no/such.flac"):
        read_audio("/no/such.flac:0:5")


@pytest.mark.parametrize("damage", ["flipped", "zeros", "lost"])
def test_damage_in_the_middle_costs_the_cuts_over_it(tmp_path, damage):
    """Of a FLAC; what is before and after is what it was."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000 * 30)
    file = tmp_path / "x.flac"
    soundfile.write(file, noise, RATE)
    cuts = [(x * 48000, (x + 1) * 48000) for x in range(10)]
    whole = [read_audio(f"{file}:{a}:{b}")[0] for a, b in cuts]
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    if damage == "flipped":
        data[middle] ^= 0x40
    elif damage == "zeros":
        data[middle : middle + 20000] = bytes(20000)
    else:
        del data[middle : middle + 5000]
    file.write_bytes(data)
    lost = 0
    for (first, last), expected in zip(cuts, whole):
        try:
            assert np.array_equal(read_audio(f"{file}:{first}:{last}")[0], expected)
        except AudioError as e:
            assert "is cut off or damaged" in str(e)
            lost += 1
    assert 1 <= lost <= 2


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_rows_are_found_in_any_order(tmp_path, ordered, mark):
    """By their order where there is one, with less in memory, and otherwise by hashes."""
    names = sorted(f"{x}-ü{x % 7}" for x in range(500))
    lines = [f"{name} {number} b c\n" for number, name in enumerate(names)]
    if not ordered:
        lines = [*lines[250:], *lines[:250]]
    (tmp_path / "x").write_text(mark + "".join(lines), encoding="utf-8")
    table = Table(tmp_path / "x", 2)
    assert table.sorted == ordered and len(table) == 500
    for name, number in zip(names, range(500)):
        assert table[table.find(name)] == [name, f"{number} b c"]
    for other in ("", "0", "1", "zzz", "ü", names[3][:-1], names[3] + "x"):
        assert table.find(other) is None
    again = pickle.loads(pickle.dumps(table))
    assert again.find(names[7]) == table.find(names[7])


@pytest.mark.parametrize("searched", [64, 4096])
@pytest.mark.parametrize("long", [False, True])
def test_rows_are_found_before_all_is_read(tmp_path, monkeypatch, searched, long):
    monkeypatch.setattr(espnet_atm.audio, "SEARCHED", searched)
    monkeypatch.setattr(espnet_atm.audio, "SCANNED", 1000)
    rows = [
        [f"{x:04}" + "é" * (x % 3), " ".join(["17"] * (1 + x % 5 * 400 * long))]
        for x in range(1, 700, 2)
    ]
    (tmp_path / "x").write_text("\n".join(map(" ".join, rows)), encoding="utf-8")
    table = Table(tmp_path / "x", 2, checked=False)
    assert [table.get(row[0]) for row in rows] == rows and len(table) == len(rows)
    assert table.scan is None
    assert pickle.loads(pickle.dumps(table)).scan is None
    for other in ("", "0000", "0002", "0003é", rows[7][0] + "x", "9"):
        assert table.get(other) is None
    # What is not there may be elsewhere in what is not sorted: now all was read.
    assert table.scan is not None and table.sorted
    assert list(table) == rows == [table[x] for x in range(len(rows))]
    assert [table.find(row[0]) for row in rows] == list(range(len(rows)))


def test_a_bad_line_is_named_when_it_is_met(tmp_path):
    lines = [f"{x:04} a\n" for x in range(5000)]
    lines[4321] = "4321\n"
    (tmp_path / "x").write_text("".join(lines))
    table = Table(tmp_path / "x", 2, checked=False)
    assert table.get("0007") == ["0007", "a"]
    for use in (lambda: table.get("4321"), lambda: table.get("none"), lambda: table[7]):
        with pytest.raises(UserError, match="x:4322: no path in '4321'"):
            use()


def test_tables_with_the_ids_of_another(tmp_path):
    def table(*ids, columns=2):
        file = tmp_path / "".join(ids)
        file.write_text("".join(f"{x} {len(x)}\n" for x in ids))
        return Table(file, columns)

    wanted = table("a", "c", "d", columns=1)
    assert list(wanted) == [["a"], ["c"], ["d"]]
    for ids, has in (("acd", True), ("abcde", True), ("ac", False), ("cd", False)):
        assert table(*ids).has_ids_of(wanted) == has
    assert not table(*"dca").has_ids_of(wanted)  # not told

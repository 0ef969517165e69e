"""local/check_data.py: what ESPnet would misread, or die of hours later."""

import check_data
import numpy as np
import pytest
import soundfile

from espnet_atm.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A labelled set of three utterances, two of them of one recording."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, noise, 16000, subtype="PCM_16")
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    for name, lines in {
        "wav.scp": [f"a {tmp_path}/a.wav", f"b {tmp_path}/b.flac"],
        "segments": ["a-1 a 0 0.5", "a-2 a 0.5 1", "b-1 b 0 1"],
        "text": ["a-1 one", "a-2 two caf\u00e9s", "b-1 three"],
        "utt2spk": ["a-1 a", "a-2 a", "b-1 b"],
    }.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def check(folder, how="--labelled"):
    check_data.main([how, str(folder)])


def test_what_is_whole_is_taken(folder):
    check(folder)
    for name in ("text", "wav.scp"):  # no line end at the end
        (folder / name).write_text((folder / name).read_text().rstrip("\n"))
    with (folder / "wav.scp").open("a") as f:
        f.write("\nc cat nothing.wav |\nd nothing.ark:5\n")
    check(folder)


@pytest.mark.parametrize("name", ["wav.scp", "segments", "text", "utt2spk"])
@pytest.mark.parametrize("how", ["--labelled", "--pool", "--tables"])
def test_a_byte_order_mark_and_crlf_are_named_by_line(folder, name, how):
    if name == "text" and how != "--labelled":
        pytest.skip("a pool's transcripts are not looked at")
    file = folder / name
    lines = file.read_bytes().splitlines(keepends=True)
    for content, message in (
        (b"\xef\xbb\xbf" + b"".join(lines), f"{file}:1: begins with a byte-order mark"),
        (
            lines[0] + lines[1][:-1] + b"\r\n" + b"".join(lines[2:]),
            f"{file}:2: has the line ends of Windows",
        ),
        (b"".join(lines).replace(b"\n", b"\r\n"), f"{file}:1: has the line ends"),
        (lines[0] + b"\xff\xfe" + lines[1], f"{file}:2: .* is no text in UTF-8"),
        (lines[0] + b"\n" + lines[1], f"{file}:2: the line has no id"),
        (lines[0] + lines[0], f"{file}:2: .* is there twice"),
        (b"", f"{file}:1: the line has no id"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            check(folder, how)


def test_a_last_line_without_end_is_looked_at(folder):
    (folder / "text").write_bytes(b"a-1 one\r")
    with pytest.raises(UserError, match="text:1: has the line ends of Windows"):
        check(folder)


@pytest.mark.parametrize("name", ["a.wav", "b.flac"])
@pytest.mark.parametrize("how", ["--labelled", "--pool"])
def test_audio_that_is_not_there_is_named_and_counted(folder, tmp_path, name, how):
    file = tmp_path / name
    whole = file.read_bytes()
    for content, message in (
        (whole[:-1000], "(is cut off|cannot be read)"),
        (whole[: len(whole) // 2], "(is cut off|cannot be read)"),
        (b"", "is empty"),
        (b"noise" * 100, "cannot be read"),
        (None, "no such file"),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=rf"1 of 2 recordings .*{name} {message}"):
            check(folder, how)
    file.mkdir()
    with pytest.raises(UserError, match="1 of 2 recordings"):
        check(folder, how)
    file.rmdir()
    soundfile.write(file, np.zeros(0), 16000)
    with pytest.raises(UserError, match="has no samples|is empty"):
        check(folder, how)
    check(folder, "--tables")


def test_what_stage_3_could_not_read_is_named(folder, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(tmp_path / "a.wav", noise, 8000, subtype="GSM610")
    check(folder)  # soundfile reads it, and cannot seek in it
    flac = bytearray((tmp_path / "b.flac").read_bytes())
    flac[21] &= 0xF0  # the number of samples, as of what was written to a pipe
    flac[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(flac)
    with pytest.raises(UserError, match="1 of 2 .*b.flac does not say its length"):
        check(folder)


def test_every_bad_recording_counts(folder, tmp_path, capsys):
    for file in ("a.wav", "b.flac"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match="2 of 2 recordings are bad"):
        check(folder)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_recordings_of_one_and_of_two_channels_are_no_labelled_set(folder, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal((16000, 2))
    soundfile.write(tmp_path / "b.flac", noise, 16000)
    with pytest.raises(UserError, match=r"a .*a\.wav has 1 channels and b .*b\.flac has 2"):
        check(folder)
    check(folder, "--pool")
    soundfile.write(tmp_path / "a.wav", noise, 16000)
    check(folder)

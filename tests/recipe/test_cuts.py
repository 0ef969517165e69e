"""local/cuts.py: a pool without a second copy of its audio."""

import subprocess

import cuts
import kaldiio
import numpy as np
import pytest
import soundfile
from conftest import RECIPE

from espnet_atm.audio import read_audio
from espnet_atm.errors import UserError

RATE = 16000


@pytest.fixture
def data(tmp_path):
    """Two recordings of two speakers, and 200 segments with odd times."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("1-x", "2-y"):
        noise = (3000 * rng.standard_normal(40 * RATE)).astype(np.int16)
        soundfile.write(tmp_path / f"{name}.flac", noise, RATE)
    segments, speakers = [], []
    for number in range(200):
        name = ("1-x", "2-y")[number // 100]
        start = round(float(rng.uniform(0, 37)), int(rng.integers(0, 7)))
        end = round(start + float(rng.uniform(0.1, 2.5)), int(rng.integers(1, 7)))
        utt = f"{name}-{number:04}"
        segments.append(f"{utt} {name} {start} {end}\n")
        speakers.append(f"{utt} {name[0]}\n")
    # To the end, and beyond it.
    segments[0] = "1-x-0000 1-x 39.5 -1\n"
    segments[1] = "1-x-0001 1-x 39.75 40.5\n"
    (folder / "segments").write_text("".join(segments))
    (folder / "utt2spk").write_text("".join(speakers))
    lines = [f"{name} {tmp_path}/{name}.flac\n" for name in ("1-x", "2-y")]
    (folder / "wav.scp").write_text("".join(lines))
    return folder


def rows(file) -> dict:
    return dict(line.split(maxsplit=1) for line in file.read_text().splitlines())


def test_the_samples_that_espnet_writes(data, tmp_path):
    cuts.main(["make", "--fs", str(RATE), "--nj", "2", str(data), str(tmp_path / "cuts")])
    command = ["scripts/audio/format_wav_scp.sh", "--nj", "2", "--audio-format", "flac"]
    command += ["--fs", "16k", "--segments", data / "segments", data / "wav.scp"]
    env = ". ./path.sh; . ./cmd.sh; exec " + " ".join(map(str, [*command, tmp_path / "stock"]))
    done = subprocess.run(["bash", "-c", env], cwd=RECIPE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stock, found = rows(tmp_path / "stock/wav.scp"), rows(tmp_path / "cuts/wav.scp")
    assert list(found) == list(stock) and len(found) == 200
    for utt, source in found.items():
        expected, _ = soundfile.read(stock[utt], dtype="float32")
        assert np.array_equal(read_audio(source)[0], expected), source
    there = (tmp_path / "cuts/utt2num_samples").read_bytes()
    assert there == (tmp_path / "stock/utt2num_samples").read_bytes()
    assert rows(tmp_path / "cuts/utt2spk") == rows(data / "utt2spk")
    spk2utt = rows(tmp_path / "cuts/spk2utt")
    assert {x: len(y.split()) for x, y in spk2utt.items()} == {"1": 100, "2": 100}
    assert not list((tmp_path / "cuts").rglob("*.flac"))


def test_what_is_long_enough(data, tmp_path, capsys):
    cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "all")])
    command = ["select", "--least", "16000", "--most", "32000"]
    cuts.main([*command, str(tmp_path / "all"), str(tmp_path / "some")])
    samples = {k: int(v) for k, v in rows(tmp_path / "all/utt2num_samples").items()}
    kept = {k: v for k, v in samples.items() if 16000 < v < 32000}
    assert capsys.readouterr().out.splitlines()[-1] == f"200 {len(kept)}"
    assert 0 < len(kept) < 200
    for name in ("wav.scp", "utt2num_samples", "utt2spk", "text"):
        assert list(rows(tmp_path / "some" / name)) == list(kept), name
    assert sum(len(x.split()) for x in rows(tmp_path / "some/spk2utt").values()) == len(kept)
    assert (tmp_path / "some/feats_type").read_text() == "raw\n"


def test_speakers_that_are_not_together(data, tmp_path):
    lines = (data / "utt2spk").read_text().splitlines()
    lines = [f"{x.split()[0]} {'ab'[n % 2]}\n" for n, x in enumerate(lines)]
    (data / "utt2spk").write_text("".join(lines))
    cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "cuts")])
    found = rows(tmp_path / "cuts/spk2utt")
    assert list(found) == ["a", "b"] and len(found["b"].split()) == 100


@pytest.mark.parametrize(
    "what, message",
    [
        ("rate", "2-y has 8000 Hz, not 16000"),
        ("channels", "2-y has 2 channels"),
        ("pipe", "2-y is a pipe or in an archive"),
        ("ark", "2-y is a pipe or in an archive"),
        ("ogg", "2-y is OGG, where no cut is exact"),
        ("no segments", "has whole recordings"),
    ],
)
def test_recordings_that_are_written_anew(data, tmp_path, capsys, what, message):
    file, noise = tmp_path / "2-y.flac", np.zeros((80000, 1))
    lines = (data / "wav.scp").read_text().splitlines()
    if what == "rate":
        soundfile.write(file, noise, 8000)
    elif what == "channels":
        soundfile.write(file, np.zeros((80000, 2)), RATE)
    elif what == "ogg":
        soundfile.write(file, noise, RATE, format="OGG")
    elif what == "pipe":
        lines[1] = f"2-y cat {file} |"
    elif what == "ark":
        kaldiio.save_ark(str(tmp_path / "x.ark"), {"2-y": (RATE, np.zeros(9, np.int16))})
        lines[1] = f"2-y {tmp_path}/x.ark:4"
    else:
        (data / "segments").unlink()
    (data / "wav.scp").write_text("\n".join(lines) + "\n")
    with pytest.raises(SystemExit) as e:
        cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "cuts")])
    assert e.value.code == 3
    out = capsys.readouterr().out
    assert message in out and out.endswith(": audio is written\n")
    assert not (tmp_path / "cuts").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        ("u 1-x 0", "segments:1: u 1-x 0: is no recording and two times"),
        ("u 3-z 0 1", "segments:1: u 3-z 0 1: is no recording"),
        ("u 1-x 0 x", "segments:1: u 1-x 0 x: is no recording"),
        ("u 1-x 41 42", "nothing of .*1-x.flac, which has 640000 samples at 16000 Hz"),
        ("u 1-x 2 1", "segments:1: .* is there"),
        ("u 1-x -2 1", "segments:1: .* is there"),
        ("other 1-x 0 1", "utt2spk: has 1-x-0000 where segments has other"),
    ],
)
def test_bad_segments(data, tmp_path, line, message):
    lines = (data / "segments").read_text().splitlines()
    (data / "segments").write_text("\n".join([line, *lines[1:]]) + "\n")
    with pytest.raises(UserError, match=message):
        cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "cuts")])
    assert not (tmp_path / "cuts/wav.scp").exists()


def test_a_recording_that_cannot_be_read(data, tmp_path):
    (tmp_path / "2-y.flac").write_bytes(b"nothing")
    with pytest.raises(UserError, match="2-y.flac: cannot be read"):
        cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "cuts")])


def test_written_for_who_cannot_read_cuts(data, tmp_path):
    """Of a recording that is damaged in the middle, what is not over the damage."""
    cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "cuts")])
    expected = {
        utt: read_audio(source)[0]
        for utt, source in rows(tmp_path / "cuts/wav.scp").items()
    }
    file = tmp_path / "2-y.flac"
    whole = bytearray(file.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 2000] = bytes(2000)
    file.write_bytes(whole)
    command = ["write", "--nj", "2", str(tmp_path / "cuts"), str(tmp_path / "written")]
    with pytest.raises(UserError, match="2-y-01..: .*2-y.flac:.* cut off or damaged"):
        cuts.main(command)
    assert not (tmp_path / "written/wav.scp").exists()
    before = {x: x.stat().st_mtime_ns for x in (tmp_path / "written").rglob("*.flac")}
    assert before
    lines = []
    for line in (tmp_path / "cuts/wav.scp").read_text().splitlines():
        try:
            read_audio(line.split()[1])
            lines.append(line)
        except ValueError:
            pass
    assert 180 < len(lines) < 200
    (tmp_path / "cuts/wav.scp").write_text("\n".join(lines) + "\n")
    cuts.main(command)
    written = rows(tmp_path / "written/wav.scp")
    assert len(written) == len(lines)
    for utt, name in written.items():
        assert np.array_equal(soundfile.read(name, dtype="float32")[0], expected[utt])
    there = {x: x.stat().st_mtime_ns for x in before}
    assert there == before

"""local/cuts.py: a pool without a second copy of its audio."""

import os
import subprocess
import sys
import time

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


def espnet(data, tmp_path):
    """What ESPnet's script makes of the data."""
    command = ["scripts/audio/format_wav_scp.sh", "--nj", "2", "--audio-format", "flac"]
    command += ["--fs", "16k", "--segments", data / "segments", data / "wav.scp"]
    env = ". ./path.sh; . ./cmd.sh; exec " + " ".join(map(str, [*command, tmp_path / "stock"]))
    done = subprocess.run(["bash", "-c", env], cwd=RECIPE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tmp_path / "stock"


def test_the_samples_that_espnet_writes(data, tmp_path):
    cuts.main(["make", "--fs", str(RATE), "--nj", "2", str(data), str(tmp_path / "cuts")])
    stock = rows(espnet(data, tmp_path) / "wav.scp")
    found = rows(tmp_path / "cuts/wav.scp")
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


def damage(file, percent=0.1) -> None:
    """Overwrite some bytes in the middle."""
    whole = bytearray(file.read_bytes())
    size = int(len(whole) * percent / 100)
    middle = (len(whole) - size) // 2
    whole[middle : middle + size] = bytes(size)
    file.write_bytes(whole)


def write(folder, jobs=2, start=subprocess.run) -> list:
    """Write the audio of folder/cuts to folder/written, a process for each part."""
    return [
        start(
            [sys.executable, RECIPE / "local/cuts.py", "write", "--job", str(job)]
            + ["--jobs", str(jobs), folder / "cuts", folder / "written"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for job in range(1, jobs + 1)
    ]


def join(folder, jobs=2) -> None:
    folders = str(folder / "cuts"), str(folder / "written")
    cuts.main(["join", "--jobs", str(jobs), *folders])


def times(folder) -> dict:
    return {x: x.stat().st_mtime_ns for x in folder.rglob("*.flac")}


def test_the_audio_that_espnet_writes(data, tmp_path):
    """Also of samples that 32 bits do not hold."""
    noise = 0.1 * np.random.default_rng(1).standard_normal(40 * RATE)
    soundfile.write(tmp_path / "2-y.flac", noise, RATE, "DOUBLE", format="WAV")
    cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "cuts")])
    assert all(x.returncode == 0 for x in write(tmp_path, jobs=3))
    join(tmp_path, jobs=3)
    stock, found = rows(espnet(data, tmp_path) / "wav.scp"), tmp_path / "written"
    written = rows(found / "wav.scp")
    assert list(written) == list(stock) and len(written) == 200
    for utt, name in written.items():
        expected, _ = soundfile.read(stock[utt], dtype="int16")
        assert np.array_equal(soundfile.read(name, dtype="int16")[0], expected), utt
    for name in ("utt2num_samples", "utt2spk", "spk2utt", "text", "feats_type"):
        assert (found / name).read_bytes() == (tmp_path / "cuts" / name).read_bytes()
    assert (found / "utt2num_samples").read_bytes() == (
        tmp_path / "stock/utt2num_samples"
    ).read_bytes()
    assert (found / "lost").read_text() == ""
    command = ["select", "--least", "1", "--most", "9" * 9]
    cuts.main([*command, str(found), str(tmp_path / "x")])
    assert rows(tmp_path / "x/wav.scp") == written


def test_files_are_in_subfolders(data, tmp_path, monkeypatch):
    cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "cuts")])
    monkeypatch.setattr(cuts, "FOLDER_BYTES", 1000)
    table = tmp_path / "cuts/wav.scp"
    whole = list(cuts.cuts_with_files(table, tmp_path / "audio", "flac"))
    assert [(utt, source) for utt, source, _ in whole] == list(rows(table).items())
    folders = [file.parent for *_, file in whole]
    assert max(map(folders.count, folders)) < 30
    assert len({file for *_, file in whole}) == len(whole)
    for jobs in (2, 7, 500):
        parts = [
            list(cuts.cuts_with_files(table, tmp_path / "audio", "flac", (job, jobs)))
            for job in range(1, jobs + 1)
        ]
        assert [x for part in parts for x in part] == whole


def test_a_killed_writer_is_gone_on_from(data, tmp_path):
    cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "cuts")])
    expected = {
        utt: read_audio(source)[0]
        for utt, source in rows(tmp_path / "cuts/wav.scp").items()
    }
    recording = tmp_path / "2-y.flac"
    audio = recording.read_bytes()
    recording.unlink()
    os.mkfifo(recording)  # where writers wait
    writers = write(tmp_path, start=subprocess.Popen)
    while len(times(tmp_path / "written")) < 20:
        time.sleep(0.001)
    for writer in writers:
        writer.kill()
        writer.communicate()
    recording.unlink()
    recording.write_bytes(audio)
    there = times(tmp_path / "written")
    assert 20 <= len(there) <= 100
    done = write(tmp_path, jobs=3)  # other parts
    assert sum(int(x.stderr.split()[-5]) for x in done) == len(there)
    join(tmp_path, jobs=3)
    assert there.items() <= times(tmp_path / "written").items()
    written = rows(tmp_path / "written/wav.scp")
    assert written.keys() == expected.keys()
    for utt, name in written.items():
        assert np.array_equal(soundfile.read(name, dtype="float32")[0], expected[utt])
    assert not list(tmp_path.rglob("*.partial"))


def test_damage_costs_the_segments_over_it(data, tmp_path):
    cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "cuts")])
    sources = rows(tmp_path / "cuts/wav.scp")
    expected = {utt: read_audio(source)[0] for utt, source in sources.items()}
    damage(tmp_path / "2-y.flac")
    bad = []
    for utt, source in sources.items():
        try:
            read_audio(source)
        except ValueError:
            bad.append(utt)
    assert 0 < len(bad) < 20
    done = write(tmp_path)
    assert [x.returncode for x in done] == [0, 0]
    assert all(f"{utt} {sources[utt]}: is damaged" in done[1].stderr for utt in bad)
    join(tmp_path)
    lost = rows(tmp_path / "written/lost")
    assert list(lost) == bad and all("2-y.flac" in x for x in lost.values())
    for name in ("wav.scp", "utt2num_samples", "utt2spk", "text"):
        found = rows(tmp_path / "written" / name)
        assert list(found) == [x for x in sources if x not in bad], name
    spk2utt = rows(tmp_path / "written/spk2utt")
    assert not set(bad) & {x for line in spk2utt.values() for x in line.split()}
    for utt, name in rows(tmp_path / "written/wav.scp").items():
        assert np.array_equal(soundfile.read(name, dtype="float32")[0], expected[utt])


def test_what_is_not_there_is_no_damage(data, tmp_path):
    cuts.main(["make", "--fs", str(RATE), str(data), str(tmp_path / "cuts")])
    for file in tmp_path.glob("*.flac"):
        damage(file, 80)
    assert [x.returncode for x in write(tmp_path)] == [0, 0]
    with pytest.raises(UserError, match=r"1\d\d of 200 cuts cannot be read, .* is damaged"):
        join(tmp_path)
    assert not (tmp_path / "written/wav.scp").exists()
    (tmp_path / "2-y.flac").unlink()
    one, two = write(tmp_path)
    assert one.returncode == 0 and two.returncode == 1
    assert "2-y.flac: cannot be opened any more" in two.stderr

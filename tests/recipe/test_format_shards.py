"""local/format_shards.sh: what ESPnet's script makes, in shards, each done once."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
import soundfile
from conftest import RECIPE

RATE = 16000
HOURS = ("--hours", str(4.5 / 3600))


def rows(file) -> dict:
    return dict(line.split(maxsplit=1) for line in file.read_text().splitlines())


def run(data, output, *options, start=subprocess.run, script="local/format_shards.sh"):
    """Format data with one job."""
    words = [script, "--nj", "1", "--fs", "16k", *options]
    if (data / "segments").exists():
        words += ["--segments", str(data / "segments")]
    return start(
        ["bash", "-c", '. ./path.sh; . ./cmd.sh; exec "$@"', "bash"]
        + [*words, str(data / "wav.scp"), str(output)],
        cwd=RECIPE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(params=["recordings", "segments"])
def data(request, tmp_path):
    """Four recordings of a second, one a pipe; or segments of them, one of 8 kHz."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    lines, segments = [], []
    for number in range(4):
        rate = 8000 if number == 3 and request.param == "segments" else RATE
        noise = (3000 * rng.standard_normal(rate + number)).astype(np.int16)
        file = tmp_path / f"r{number}.flac"
        soundfile.write(file, noise, rate)
        lines.append(f"r{number} " + (f"cat {file} |" if number == 0 else str(file)))
        segments += [f"r{number}-{x} r{number} 0.{x} 0.9" for x in range(3)]
    (folder / "wav.scp").write_text("\n".join(lines))  # the last has no end
    if request.param == "segments":
        (folder / "segments").write_text("\n".join(segments) + "\n")
    return folder


def test_a_kill_loses_the_shard_at_work(data, tmp_path):
    """And what is there in the end is what there is without shards."""
    stock, found = tmp_path / "stock", tmp_path / "found"
    done = run(
        data, stock, "--audio-format", "flac", script="scripts/audio/format_wav_scp.sh"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = tmp_path / "r3.flac"
    audio = last.read_bytes()
    last.unlink()
    os.mkfifo(last)  # where the last shard waits
    process = run(data, found, *HOURS, start=subprocess.Popen)
    end = time.time() + 60
    while not (found / "shards/1.done").exists() and time.time() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    last.unlink()
    last.write_bytes(audio)
    before = {x: x.stat().st_mtime_ns for x in (found / "shards/1").rglob("*.flac")}
    assert before and not (found / "wav.scp").exists()
    done = run(data, found, *HOURS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (found / "shards/2.done").exists()
    assert {x: x.stat().st_mtime_ns for x in before} == before
    samples = (stock / "utt2num_samples").read_bytes()
    assert (found / "utt2num_samples").read_bytes() == samples
    ours, theirs = rows(found / "wav.scp"), rows(stock / "wav.scp")
    assert list(ours) == list(theirs)
    for utt, file in ours.items():
        expected, _ = soundfile.read(theirs[utt], dtype="int16")
        assert np.array_equal(soundfile.read(file, dtype="int16")[0], expected), utt
    assert (found / "lost").read_text() == ""


def test_what_cannot_be_read(data, tmp_path):
    """Is named, and left out only where one may."""
    file, found = tmp_path / "r2.flac", tmp_path / "found"
    whole = bytearray(file.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 2000] = bytes(2000)
    file.write_bytes(whole)
    if not (data / "segments").exists():
        done = run(data, found)
        assert done.returncode == 1
        assert f"1 of 4 utterances of {data}/wav.scp cannot be read" in done.stderr
        assert f"the first: r2 {file}: is cut off or damaged" in done.stderr
        assert not (found / "wav.scp").exists()
        options = ("--without_bad", "true", "--hours", "0.0001")
        done = run(data, tmp_path / "shards", *options)  # nothing of the third is left
        assert done.returncode == 0, done.stdout + done.stderr
        assert list(rows(tmp_path / "shards/wav.scp")) == ["r0", "r1", "r3"]
        assert list(rows(tmp_path / "shards/lost")) == ["r2"]
        return
    done = run(data, found, "--without_bad", "true")
    assert done.returncode == 0, done.stdout + done.stderr
    lost = rows(found / "lost")
    assert list(lost) == ["r2-0", "r2-1", "r2-2"]
    assert all(x.startswith(f"{file}: is cut off or damaged") for x in lost.values())
    kept = [f"r{n}-{x}" for n in (0, 1, 3) for x in range(3)]
    assert list(rows(found / "utt2num_samples")) == kept
    # All in one shard, and where it is without shards.
    expected = {utt: f"{found}/data/format.1/{utt}.flac" for utt in kept}
    assert rows(found / "wav.scp") == expected
    assert all(len(soundfile.read(x)[0]) > 6000 for x in expected.values())

"""Stages 3 and 4 of a pool whose audio is written: damaged, changed, mended."""

import subprocess

import numpy as np
import pytest
import soundfile
from conftest import copy_recipe

RATE = 16000
# Cut from two recordings; whole recordings; and what has a text.
SETS = {"pool": 20, "pool_dev": 4, "labelled": 2}


def rows(file) -> dict:
    return dict(line.split(maxsplit=1) for line in file.read_text().splitlines())


def write_table(file, lines) -> None:
    file.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def recipe(tmp_path):
    """A copy of the recipe with data, the audio beside it."""
    recipe = copy_recipe(tmp_path / "tree")
    rng = np.random.default_rng(0)
    for dset, count in SETS.items():
        data = recipe / "data" / dset
        data.mkdir(parents=True)
        utts, recordings = [f"{dset}-{n:02}" for n in range(count)], []
        for name in utts if dset != "pool" else ("pool-0", "pool-1"):
            noise = 3000 * rng.standard_normal(RATE * (10 if dset == "pool" else 3))
            soundfile.write(tmp_path / f"{name}.flac", noise.astype(np.int16), RATE)
            recordings.append(f"{name} {tmp_path}/{name}.flac")
        if dset == "pool":
            write_table(
                data / "segments",
                (f"{utt} {utt[:6]} {n % 10}.01 {n % 10}.99" for n, utt in enumerate(utts)),
            )
        write_table(data / "wav.scp", recordings)
        write_table(data / "text", (f"{utt} A B" for utt in utts))
        for name in ("utt2spk", "spk2utt"):
            write_table(data / name, (f"{utt} {utt}" for utt in utts))
    return recipe


def stages(recipe, *options) -> str:
    """What stages 3 and 4 say."""
    done = subprocess.run(
        ["./atm.sh", "--corpus", "x", "--skip_data_prep", "true", "--objective", "best_rq"]
        + ["--train_set", "pool", "--valid_set", "pool_dev", "--asr_train_set", "labelled"]
        + ["--asr_valid_set", "labelled", "--test_sets", "labelled", "--nj", "2"]
        + ["--write_segments", "true", "--stage", "3", "--stop_stage", "4", *options],
        cwd=recipe,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def tables(recipe, dset) -> dict[str, int]:
    """Samples by utterance, which all tables of a set have."""
    dump = recipe / "dump/x/raw" / dset
    samples = {k: int(v) for k, v in rows(dump / "utt2num_samples").items()}
    for name in ("wav.scp", "utt2spk", "text"):
        assert list(rows(dump / name)) == list(samples), name
    assert {x for line in rows(dump / "spk2utt").values() for x in line.split()} == set(samples)
    for utt, file in rows(dump / "wav.scp").items():
        found = soundfile.info(recipe / file)
        assert (found.frames, found.samplerate, found.format) == (samples[utt], RATE, "FLAC")
    return samples


def damage(file) -> bytes:
    """Overwrite bytes in the middle; what was there."""
    audio = file.read_bytes()
    middle = len(audio) // 2
    file.write_bytes(audio[:middle] + bytes(500) + audio[middle + 500 :])
    return audio


def test_written_segments(recipe, tmp_path):
    long, short = tmp_path / "pool-1.flac", tmp_path / "pool_dev-02.flac"
    mended = {file: damage(file) for file in (long, short)}
    log = stages(recipe)
    pool = tables(recipe, "pool")
    lost = rows(recipe / "dump/x/raw/org/pool/lost")
    assert lost and len(lost) <= 2 and all(x.startswith("pool-1") for x in lost)
    assert set(pool) == {f"pool-{n:02}" for n in range(20)} - set(lost)
    assert set(tables(recipe, "pool_dev")) == {f"pool_dev-{n:02}" for n in (0, 1, 3)}
    assert f"Warning: {len(lost)} utterances of pool cannot be read and are left out" in log
    assert "Warning: 1 utterances of pool_dev cannot be read and are left out" in log
    for utt in (*lost, "pool_dev-02"):
        assert f"{utt} {tmp_path}/pool" in log
    assert not (recipe / "dump/x/raw/org/pool/cuts").exists()
    for utt, file in rows(recipe / "dump/x/raw/pool/wav.scp").items():
        first = int((int(utt[-2:]) % 10 + 0.01) * RATE)
        audio, _ = soundfile.read(recipe / file, dtype="int16")
        if utt[:6] == "pool-0":
            whole, _ = soundfile.read(tmp_path / "pool-0.flac", dtype="int16")
            assert np.array_equal(audio, whole[first : first + len(audio)])

    # Once they are mended, nothing else is written again.
    for file, audio in mended.items():
        file.write_bytes(audio)
    times = {x: x.stat().st_mtime_ns for x in recipe.glob("dump/x/raw/org/pool/audio/*/*")}
    for file in recipe.glob("dump/x/.steps/*_pool*.done"):
        file.unlink()
    assert "Warning" not in stages(recipe)
    assert len(tables(recipe, "pool")) == 20 and len(tables(recipe, "pool_dev")) == 4
    assert {x: x.stat().st_mtime_ns for x in times} == times

    # Of other data nothing is taken.
    segments = recipe / "data/pool/segments"
    segments.write_text(segments.read_text().replace("pool-0 3.01 3.99", "pool-0 3.01 3.55"))
    stages(recipe)
    found = tables(recipe, "pool")
    assert found["pool-03"] < 9000 < found["pool-02"] and len(found) == 20
    assert not any(x.exists() and x.stat().st_mtime_ns == t for x, t in times.items())

"""local/shards.py: which lines a shard has, and which cannot be read."""

import numpy as np
import pytest
import shards
import soundfile

from espnet_atm.errors import UserError


@pytest.fixture
def wav_scp(tmp_path):
    """Six recordings of 10 s, of which the last is a pipe."""
    lines = []
    for number in range(6):
        file = tmp_path / f"{number}.wav"
        soundfile.write(file, np.zeros(80000), 8000)
        lines.append(f"r{number} {file}\n")
    lines[5] = f"r5 cat {tmp_path}/5.wav |"  # the line has no end
    (tmp_path / "wav.scp").write_text("".join(lines))
    return tmp_path / "wav.scp"


def all_shards(table, recordings, seconds) -> list[list[str]]:
    """How many seconds may be in a shard, until no line is left."""
    found, taken = [], 0
    while lines := shards.next_lines(table, recordings, taken, seconds):
        found.append(lines)
        taken += len(lines)
    lines = table.read_text().splitlines()
    assert [x for shard in found for x in shard] == [f"{x}\n" for x in lines]
    return found


def test_whole_recordings(wav_scp):
    assert [len(x) for x in all_shards(wav_scp, None, 21)] == [2, 2, 1, 1]
    assert [len(x) for x in all_shards(wav_scp, None, 1)] == [1] * 6
    assert [len(x) for x in all_shards(wav_scp, None, 50 + shards.UNKNOWN)] == [6]


def test_segments(wav_scp, tmp_path):
    """A recording counts as what is read, beside what is written of it."""
    table = tmp_path / "segments"
    lines = [f"r{n}-{x} r{n} {x}.5 {x + 2}.5\n" for n in (0, 1) for x in (1, 4, 7)]
    table.write_text("".join(lines))
    assert [len(x) for x in all_shards(table, wav_scp, 16.5)] == [3, 3]
    assert [len(x) for x in all_shards(table, wav_scp, 14.5)] == [2, 1, 2, 1]
    table.write_text("r0-0 r0 1\n")
    with pytest.raises(UserError, match="segments:1: r0-0 r0 1: is no recording and two"):
        shards.next_lines(table, wav_scp, 0, 10)


def test_what_cannot_be_read(wav_scp, tmp_path):
    assert shards.check(wav_scp, None) == {}
    (tmp_path / "1.wav").write_bytes(b"noise" * 100)
    (tmp_path / "5.wav").unlink()
    found = shards.check(wav_scp, None)
    assert list(found) == ["r1", "r5"]
    assert "1.wav: " in found["r1"] and "its command ends with 1" in found["r5"]
    table = tmp_path / "segments"
    table.write_text("a r0 0 1\nb r1 0 1\nc r1 1 2\nd r2 0 1\n")
    assert list(shards.check(table, wav_scp)) == ["b", "c"]


@pytest.mark.parametrize(
    "source, message",
    [
        ("{}/6.wav", "6.wav: no such file"),
        ("{}/0.ark:12", "0.ark:12: no such file, or in an archive, which ESPnet's"),
        ("no_such_program {}/0.wav |", "ends with 127: .*no_such_program"),
    ],
)
def test_what_is_not_there_is_no_damage(wav_scp, tmp_path, source, message):
    (tmp_path / "0.ark").write_bytes(b"")
    wav_scp.write_text(wav_scp.read_text() + f"\nr6 {source.format(tmp_path)}\n")
    with pytest.raises(UserError, match=f"wav.scp: r6: .*{message}"):
        shards.check(wav_scp, None)

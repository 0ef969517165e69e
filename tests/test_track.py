import json
import os
import pickle
import zlib

import kaldiio
import numpy as np
import pytest

from espnet_atm.audio import checksum
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid
from espnet_atm.track import TrackReader, read_track_grid

RATE = 16000
ENCODER = FrameGrid(640, 479.5)


def store(folder, tracks, by_score=True, audio=None) -> None:
    """Tracks as ``espnet_atm.bin.score`` leaves them."""
    kaldiio.save_ark(
        str(folder / "confidence.ark"),
        {utt: x[:, None] for utt, x in tracks.items()},
        scp=str(folder / "confidence.scp"),
        compression_method=7,
    )
    (folder / "frame_shift").write_text("640\n")
    if not by_score:
        return
    (folder / "scorer").write_text(json.dumps({"model": "1", "config": "2"}) + "\n")
    means, records = [], []
    ark = (folder / "confidence.ark").read_bytes()
    for line in (folder / "confidence.scp").read_text().splitlines():
        utt, source = line.split()
        at = int(source.rpartition(":")[2])
        track = tracks[utt]
        record = ark[at : at + 22 + len(track)]
        stored = np.frombuffer(record[22:], np.uint8)
        means.append(f"{utt} {stored.mean() / 255:.6f}\n")
        speech = audio[utt] if audio else np.zeros(640 * len(track), np.float32)
        records.append(
            f"{utt} {len(speech)} {RATE} {checksum(speech)} 0 {zlib.crc32(record):08x}\n"
        )
    (folder / "utt2confidence").write_text("".join(means))
    (folder / "utt2audio").write_text("".join(records))


@pytest.fixture
def tracks():
    rng = np.random.default_rng(0)
    return {f"utt{i}": rng.random(1500).astype(np.float32) for i in range(4)}


@pytest.fixture
def audio(tracks):
    rng = np.random.default_rng(1)
    return {
        utt: rng.uniform(-1, 1, 1500 * 640).astype(np.float32) for utt in list(tracks)
    }


@pytest.fixture
def folder(tmp_path, tracks, audio):
    store(tmp_path, tracks, audio=audio)
    return tmp_path


def test_tracks_are_what_kaldiio_reads(folder, tracks):
    reader = TrackReader(folder / "confidence.scp")
    assert list(reader) == list(tracks) and len(reader) == 4
    assert "utt0" in reader and "utt9" not in reader
    for utt, expected in kaldiio.load_scp(str(folder / "confidence.scp")).items():
        track = reader[utt]
        assert track.dtype == np.float32
        np.testing.assert_array_equal(track, expected[:, 0])
    with pytest.raises(UserError, match="confidence.scp: has no track of utt9"):
        reader["utt9"]
    copy = pickle.loads(pickle.dumps(reader))  # for processes that are not forked
    np.testing.assert_array_equal(copy["utt3"], reader["utt3"])


@pytest.mark.parametrize("kind", ["float", "double", "vector", "text", "two bytes"])
def test_tracks_made_by_hand(tmp_path, tracks, kind):
    """Whatever Kaldi stores; nothing is beside them but the shift."""
    rows = {utt: x if kind == "vector" else x[:, None] for utt, x in tracks.items()}
    if kind == "double":
        rows = {utt: x.astype(np.float64) for utt, x in rows.items()}
    kaldiio.save_ark(
        *(str(tmp_path / "x.ark"), rows, str(tmp_path / "confidence.scp")),
        text=kind == "text",
        compression_method=3 if kind == "two bytes" else None,
    )
    (tmp_path / "utt2confidence").write_text("utt0 0.1\n")  # of something else
    reader = TrackReader(tmp_path / "confidence.scp")
    for utt, track in tracks.items():
        np.testing.assert_allclose(reader[utt], track, atol=1e-4)


def test_a_mean_is_that_of_what_is_stored(folder, tracks):
    """To the last digit; of an earlier version, without utt2audio, to a step or so."""
    lines = (folder / "utt2confidence").read_text().splitlines()
    mean = float(lines[0].split()[1])
    for means in (f"{mean + 1e-5:.6f}", f"{mean:.7f}", f"{mean:.6f}0"):
        text = "\n".join([f"utt0 {means}", *lines[1:]]) + "\n"
        (folder / "utt2confidence").write_text(text)
        with pytest.raises(UserError, match="utt0: .* is not the mean of its track"):
            TrackReader(folder / "confidence.scp")["utt0"]
    (folder / "utt2audio").unlink()
    TrackReader(folder / "confidence.scp")["utt0"]


def test_a_source_without_a_place_has_no_id(tmp_path, tracks):
    kaldiio.save_mat(str(tmp_path / "x.mat"), tracks["utt0"])
    (tmp_path / "confidence.scp").write_text(
        f"a {tmp_path}/x.mat\nb cat {tmp_path}/x.mat |\n"
    )
    reader = TrackReader(tmp_path / "confidence.scp")
    for utt in reader:
        np.testing.assert_array_equal(reader[utt], tracks["utt0"])


@pytest.mark.parametrize("by_score", [True, False])
def test_exchanged_lines_are_refused(tmp_path, tracks, by_score):
    store(tmp_path, tracks, by_score)
    scp = tmp_path / "confidence.scp"
    text = scp.read_text().replace("utt1 ", "x ").replace("utt2 ", "utt1 ")
    scp.write_text(text.replace("x ", "utt2 "))
    reader = TrackReader(scp)
    reader["utt0"]
    with pytest.raises(UserError, match="utt1: .* is not its track"):
        reader["utt1"]


def test_an_id_that_ends_like_another(tmp_path):
    """Before the one track stands ``11 ``, which ends with ``1 ``."""
    rng = np.random.default_rng(0)
    tracks = {utt: rng.random(50).astype(np.float32) for utt in ("1", "11")}
    store(tmp_path, tracks, by_score=False)
    scp = tmp_path / "confidence.scp"
    (_, one), (_, eleven) = (x.split() for x in scp.read_text().splitlines())
    scp.write_text(f"1 {eleven}\n11 {one}\n")
    with pytest.raises(UserError, match="11: .* is not its track"):
        TrackReader(scp)["11"]
    scp.write_text(f"1 {one}\n11 {eleven}\n")
    np.testing.assert_allclose(TrackReader(scp)["11"], tracks["11"], atol=1 / 255)


@pytest.mark.parametrize("name", ["confidence.scp", "utt2confidence", "utt2audio"])
def test_lists_may_be_of_another_order(folder, tracks, name):
    file = folder / name
    file.write_text("".join(file.read_text().splitlines(True)[::-1]))
    reader = TrackReader(folder / "confidence.scp")
    for utt in reader:
        assert np.abs(reader[utt] - tracks[utt]).max() < 0.01


@pytest.mark.parametrize("name", ["utt2audio", "utt2confidence"])
def test_exchanged_lines_beside_the_tracks_are_refused(folder, name):
    file = folder / name
    text = file.read_text().replace("utt1 ", "x ").replace("utt2 ", "utt1 ")
    file.write_text(text.replace("x ", "utt2 "))
    with pytest.raises(UserError, match=f"{name}.*utt1|utt1.*{name}"):
        TrackReader(folder / "confidence.scp")["utt1"]


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("name", ["utt2audio", None])
def test_a_flipped_bit_is_found(folder, name, bit):
    """By the checksum, or by the mean where it says enough."""
    if name is None:
        (folder / "utt2audio").unlink()
    file = folder / "confidence.ark"
    data = bytearray(file.read_bytes())
    data[-700] ^= 1 << bit
    file.write_bytes(data)
    reader = TrackReader(folder / "confidence.scp")
    reader["utt2"]
    if name is None and bit < 6:
        return
    with pytest.raises(UserError, match="utt3: .*(checksum|mean)"):
        reader["utt3"]


def test_any_bit_of_a_header_and_id(tmp_path, tracks):
    short = {utt: x[:5] for utt, x in tracks.items()}
    store(tmp_path, short)
    file = tmp_path / "confidence.ark"
    data = file.read_bytes()
    begin, end = data.index(b"utt1 "), data.index(b"utt2 ")
    for bit in range(8 * begin, 8 * end):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        reader = TrackReader(tmp_path / "confidence.scp")
        with pytest.raises(UserError, match="confidence.*utt1"):
            reader["utt1"]
        reader["utt2"]


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "-0.5", "٣", "0.9"])
def test_damaged_means_are_refused(folder, text):
    lines = (folder / "utt2confidence").read_text().splitlines()
    (folder / "utt2confidence").write_text("\n".join([f"utt0 {text}", *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="utt2confidence:.*utt0|utt2confidence:1"):
        TrackReader(folder / "confidence.scp")["utt0"]


def test_a_mean_that_is_not_there(folder):
    (folder / "utt2confidence").write_text("")
    with pytest.raises(UserError, match="utt2confidence: has no line of utt0"):
        TrackReader(folder / "confidence.scp")["utt0"]


def test_rounding_is_no_damage(tmp_path):
    """kaldiio stores 76.5005 steps as 76, and score counts it as 77."""
    track = np.full(10, 76.5005 / 255, np.float32)
    store(tmp_path, {"utt0": track})
    found = TrackReader(tmp_path / "confidence.scp")["utt0"]
    assert (np.rint(found * 255) != np.rint(track * 255)).all()


@pytest.mark.parametrize(
    "source",
    [
        *("nothing.ark:5", "{}", "{}:5", "false |", "{}/confidence.ark:99999999"),
        *("{}/confidence.ark:x", "{}/fifo:5", "{}/fifo", "{}/pickle", "{}/empty"),
        *("{}/frame_shift", "{}/confidence.ark:-3", "{}/confidence.ark:0"),
    ],
)
def test_sources_that_are_no_track(folder, source):
    os.mkfifo(folder / "fifo")
    (folder / "empty").write_text("")
    (folder / "pickle").write_bytes(b"PKL" + pickle.dumps([1]))
    (folder / "confidence.scp").write_text(f"utt0 {source.format(folder)}\n")
    with pytest.raises(UserError, match="confidence.scp: utt0: "):
        TrackReader(folder / "confidence.scp")["utt0"]


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5, np.inf])
def test_no_confidence_is_refused(tmp_path, bad):
    kaldiio.save_ark(
        str(tmp_path / "x.ark"),
        {"utt0": np.array([[0.5], [bad]], np.float32)},
        scp=str(tmp_path / "confidence.scp"),
    )
    with pytest.raises(UserError, match="confidence.scp: utt0: .* in frame 1"):
        TrackReader(tmp_path / "confidence.scp")["utt0"]


def test_other_audio_is_refused(folder, audio):
    reader = TrackReader(folder / "confidence.scp")
    speech = audio["utt0"]
    reader.check_audio("utt0", speech, RATE)
    reader.check_audio("utt0", speech.astype(np.float64), RATE)
    reader.check_audio("utt0", speech[:-1000], RATE)  # of about the same duration
    reader.check_audio("utt0", speech[::2], RATE // 2)
    with pytest.raises(UserError, match="utt0: its audio is not what was scored"):
        reader.check_audio("utt0", audio["utt1"], RATE)
    changed = speech.copy()
    changed[500] += 2 / 32768
    with pytest.raises(UserError, match="utt0: its audio is not what was scored"):
        reader.check_audio("utt0", changed, RATE)
    with pytest.raises(UserError, match="utt0: .* 958000 samples at 16000 Hz"):
        reader.check_audio("utt0", speech[2000:], RATE)
    with pytest.raises(UserError, match="utt0: .* 960000 samples at 8000 Hz"):
        reader.check_audio("utt0", speech, RATE // 2)
    (folder / "utt2audio").unlink()
    TrackReader(folder / "confidence.scp").check_audio("utt0", speech[::7], RATE)


def test_a_damaged_record_of_audio(folder, audio):
    (folder / "utt2audio").write_text("utt0 1_0 16000 0 0 0\n")
    reader = TrackReader(folder / "confidence.scp")
    with pytest.raises(UserError, match="utt2audio: utt0: '1_0' samples"):
        reader.check_audio("utt0", audio["utt0"], RATE)


@pytest.mark.parametrize("offset", ["inf", "nan", "1e300", "-1e9", "٣", "1_0", "", "x"])
def test_impossible_offsets_are_refused(tmp_path, offset):
    (tmp_path / "frame_shift").write_text("640\n")
    (tmp_path / "frame_offset").write_text(offset + "\n")
    with pytest.raises(UserError, match="frame_offset: '.*' is not a number of samples"):
        read_track_grid(str(tmp_path / "confidence.scp"), RATE)


@pytest.mark.parametrize("name", ["frame_shift", "sampling_rate"])
@pytest.mark.parametrize("text", ["٣", "１", "1" * 31, "0", "", "-1", "1e3", "640 640"])
def test_impossible_whole_numbers_are_refused(tmp_path, name, text):
    (tmp_path / "frame_shift").write_text("640\n")
    (tmp_path / name).write_text(text + "\n")
    with pytest.raises(UserError, match=f"{name}: '.*' is not a positive whole number"):
        read_track_grid(str(tmp_path / "confidence.scp"), RATE)


@pytest.mark.parametrize("name", ["frame_shift", "sampling_rate", "frame_offset"])
def test_what_is_no_text_file_is_refused(tmp_path, name):
    (tmp_path / "frame_shift").write_text("640\n")
    file = tmp_path / name
    file.unlink(missing_ok=True)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=f"{name}: is no text"):
        read_track_grid(str(tmp_path / "confidence.scp"), RATE)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=f"{name}: is a folder"):
        read_track_grid(str(tmp_path / "confidence.scp"), RATE)
    file.rmdir()
    os.mkfifo(file)
    with pytest.raises(UserError, match=f"{name}: is a pipe"):
        read_track_grid(str(tmp_path / "confidence.scp"), RATE)


@pytest.mark.parametrize(
    "name, value", [("frame_shift", 320), ("frame_offset", 1), ("sampling_rate", 8000)]
)
def test_numbers_are_those_of_the_scorer(tmp_path, name, value):
    said = {"frame_shift": 640, "frame_offset": 479.5, "sampling_rate": 16000}
    scorer = {"model": "1", "config": "2", **said}
    (tmp_path / "scorer").write_text(json.dumps(scorer))
    for key, number in said.items():
        (tmp_path / key).write_text(f"{number}\n")
    scp = str(tmp_path / "confidence.scp")
    assert read_track_grid(scp, RATE).offset == 479.5
    (tmp_path / name).write_text(f"{value}\n")
    with pytest.raises(UserError, match=f"{name}: .* is not .*scorer says"):
        read_track_grid(scp, RATE)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        read_track_grid(scp, RATE)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{'a': 1}", "[" * 99999])
def test_a_damaged_scorer_is_refused(tmp_path, text):
    (tmp_path / "frame_shift").write_text("640\n")
    (tmp_path / "scorer").write_text(text)
    with pytest.raises(UserError, match="scorer: is damaged"):
        read_track_grid(str(tmp_path / "confidence.scp"), RATE)


def test_grid_of_a_track(tmp_path):
    scp = str(tmp_path / "confidence.scp")
    with pytest.raises(ValueError, match="frame_shift is missing.*echo 640 > "):
        read_track_grid(scp, 16000, ENCODER)
    (tmp_path / "frame_shift").write_text("320\n")
    assert read_track_grid(scp, 16000, ENCODER) == FrameGrid(320, 160)
    (tmp_path / "frame_offset").write_text("199.5\n")
    assert read_track_grid(scp, 16000, ENCODER) == FrameGrid(320, 199.5)


def test_grid_of_a_track_by_a_scorer_of_another_rate(tmp_path):
    scp = str(tmp_path / "confidence.scp")
    (tmp_path / "frame_shift").write_text("320\n")
    (tmp_path / "frame_offset").write_text("239.5\n")
    (tmp_path / "sampling_rate").write_text("8000\n")
    assert read_track_grid(scp, 16000, ENCODER) == FrameGrid(640, 479.0)
    assert read_track_grid(scp, 8000, ENCODER) == FrameGrid(320, 239.5)
    (tmp_path / "sampling_rate").write_text("22050\n")
    grid = read_track_grid(scp, 16000, ENCODER)
    assert grid.shift == pytest.approx(320 * 16000 / 22050)
    (tmp_path / "sampling_rate").write_text("8k\n")
    with pytest.raises(ValueError, match="sampling_rate: '8k' is not a positive whole"):
        read_track_grid(scp, 16000, ENCODER)


@pytest.mark.parametrize("shift", ["0", "-640", "0.04", "forty", ""])
def test_impossible_rates_are_refused(tmp_path, shift):
    (tmp_path / "frame_shift").write_text(shift)
    with pytest.raises(ValueError, match="is not a positive whole number of samples"):
        read_track_grid(str(tmp_path / "confidence.scp"), 16000, ENCODER)


def test_a_track_much_coarser_than_the_encoder_is_refused(tmp_path):
    (tmp_path / "frame_shift").write_text("16000")
    with pytest.raises(
        ValueError, match="one value in 16000 samples is too coarse .* 640"
    ):
        read_track_grid(str(tmp_path / "confidence.scp"), 16000, ENCODER)

"""Crops that are read, not cut off what was read: espnet_atm.data and collate together."""

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from espnet2.train.collate_fn import HuBERTCollateFn
from espnet2.train.dataset import ESPnetDataset
from test_task import arguments

from espnet_atm import data
from espnet_atm.audio import Table, checksum, read_audio
from espnet_atm.collate import SyncedCollateFn
from espnet_atm.data import Crop, Reading, crop_start
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid
from espnet_atm.labels import LabelWriter
from espnet_atm.task import ATMSSLTask
from espnet_atm.track import TrackReader

RATE = 16000
SHIFT = 320
GRID = FrameGrid.from_layers([(400, SHIFT, 0)])
SAMPLES = {"a": 52_345, "b": 40_000, "c": 33_333, "d": 15_000}


@pytest.fixture
def ramps(tmp_path):
    """Audio whose samples say where they are, and tracks and labels that do, too."""
    lines, tracks, labels = [], {}, []
    for number, (utt, samples) in enumerate(SAMPLES.items()):
        ramp = np.arange(samples, dtype=np.int32) - 32768  # modulo: below 65536
        file = tmp_path / f"{utt}.flac"
        # A cut, a file, a WAV: whatever can be sought in.
        if number == 0:
            soundfile.write(file, np.pad(ramp.astype(np.int16), (777, 999)), RATE)
            source = f"{file}:777:{777 + samples}"
        else:
            source = file if number % 2 else file.with_suffix(".wav")
            soundfile.write(source, ramp.astype(np.int16), RATE)
        lines.append(f"{utt} {source}\n")
        frames = GRID.length(samples)
        tracks[utt] = (np.arange(frames) / 255).astype(np.float32)[:, None]
        labels.append(f"{utt} {' '.join(map(str, range(frames)))}\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    (tmp_path / "text").write_text("".join(labels))
    kaldiio.save_ark(
        str(tmp_path / "confidence.ark"),
        tracks,
        scp=str(tmp_path / "confidence.scp"),
    )
    (tmp_path / "frame_shift").write_text(f"{SHIFT}\n")
    (tmp_path / "frame_offset").write_text("199.5\n")
    utterances = Table(tmp_path / "wav.scp", 2)
    labeller = {"num_classes": 999, "sampling_rate": RATE}
    labeller.update(frame_shift=SHIFT, frame_offset=199.5)
    with LabelWriter(tmp_path, utterances, labeller) as writer:
        for number, samples in enumerate(SAMPLES.values()):
            audio, _ = read_audio(utterances[number][1])
            row = np.arange(GRID.length(samples))
            writer.write({number: row}, {number: checksum(audio)})
    return tmp_path


def labels_of(utt, sample):
    if isinstance(sample["text"], np.ndarray):
        return sample
    return {**sample, "text": np.array(sample["text"].split(), dtype=np.int64)}


def make(ramps, keep, crop_here=True, random=True, stored=False, **options):
    """What reads an utterance, and what makes a batch of several."""
    labels = (f"{ramps}/labels.scp", "text", "pseudo_labels")
    streams = [
        (f"{ramps}/wav.scp", "speech", "sound"),
        labels if stored else (f"{ramps}/text", "text", "text"),
        (f"{ramps}/confidence.scp", "confidence", "kaldi_ark"),
    ]
    reading = Reading(labels_of, RATE)
    if crop_here:
        reading.crop = Crop(keep, SHIFT, random)
    streams, reading = reading.of(streams)
    stock = HuBERTCollateFn(
        label_downsampling=1, crop_audio=True, rand_crop=random, train=True, **options
    )
    grid = FrameGrid(SHIFT, 199.5)
    collate = SyncedCollateFn(
        stock, GRID, grid, crop_samples=keep, label_grid=grid if stored else None
    )
    return ESPnetDataset(streams, preprocess=reading), collate


def starts_of(batch, utts) -> dict:
    """The first frame of each crop, of which audio, track and labels tell alike."""
    found = {}
    for row, utt in enumerate(utts):
        samples = int(batch["speech_lengths"][row])
        ramp = torch.round(batch["speech"][row, :samples] * 32768).long() + 32768
        assert torch.equal(ramp, ramp[0] + torch.arange(samples))
        frame, rest = divmod(int(ramp[0]), SHIFT)
        assert rest == 0
        count = GRID.length(samples)
        for name, one in (("confidence", 255), ("text", 1)):
            stream = batch[name][row, :count].double() * one
            expected = frame + torch.arange(count)
            assert (stream.round().long() == expected).all(), name
        found[utt] = frame
    return found


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("options", [{}, {"pad": True}])
@pytest.mark.parametrize("utts", ["abcd", "abc", "ab", "a"])
def test_all_streams_are_of_the_same_frames(ramps, utts, options, stored):
    dataset, collate = make(ramps, 32_000, stored=stored, **options)
    read = []
    for _ in range(30):
        rows = [dataset[utt] for utt in utts]
        read += [len(sample["speech"]) for _, sample in rows]
        found, batch = collate(rows)
        starts_of(batch, found)
        expected = [SAMPLES[x] for x in utts]
        shortest = min(max(expected) if options else min(expected), 32_000)
        assert batch["speech"].size(1) == shortest
    # Hardly any utterance is read as a whole, and none more than a frame too far.
    assert max(read) > 40_000 or len(read) < 64
    assert np.mean([x <= 32_000 + SHIFT for x in read]) > 0.9


@pytest.mark.parametrize("utts", ["ab", "abcd"])
def test_the_same_distribution(ramps, utts):
    """Every start as often as when whole utterances are read and then cropped."""
    counts = {}
    for crop_here in (True, False):
        dataset, collate = make(ramps, 32_000, crop_here)
        seen = np.zeros(200, int)
        for _ in range(600):
            found, batch = collate([dataset[utt] for utt in utts])
            seen[starts_of(batch, found)["a"]] += 1
        counts[crop_here] = seen
    keep = min([32_000, *(SAMPLES[x] for x in utts)])
    choices = (SAMPLES["a"] - keep) // SHIFT + 1
    for seen in counts.values():
        assert not seen[choices:].any()
        expected = 600 / choices
        # chi-square, which has this mean and standard deviation
        statistic = (np.square(seen[:choices] - expected) / expected).sum()
        assert abs(statistic - (choices - 1)) < 4 * np.sqrt(2 * (choices - 1))


def test_a_crop_lies_in_what_was_read():
    """For all lengths, all parts, and whatever the shortest of the batch is."""
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        keep = int(rng.integers(SHIFT, 5000))
        length = keep + int(rng.integers(1, 5000))
        shorter = int(rng.integers(1, keep + 1))
        part = float(rng.choice([0.0, rng.uniform(), np.nextafter(1, 0)]))
        first = crop_start(part, length, keep, SHIFT)
        last = min(first + keep + SHIFT, length)
        begin = crop_start(part, length, shorter, SHIFT)
        assert first <= begin and begin + shorter <= last <= length


def test_from_the_beginning_where_crops_are_not_random(ramps):
    dataset, collate = make(ramps, 32_000, random=False)
    for _ in range(5):
        found, batch = collate([dataset[utt] for utt in "ab"])
        assert set(starts_of(batch, found).values()) == {0}


def test_what_cannot_be_sought_in_is_read_whole(ramps):
    lines = (ramps / "wav.scp").read_text().splitlines()
    lines[1] = f"b cat {ramps}/b.flac |"
    (ramps / "wav.scp").write_text("\n".join(lines) + "\n")
    dataset, collate = make(ramps, 32_000)
    assert len(dataset["b"][1]["speech"]) == SAMPLES["b"] and "place" not in dataset["b"][1]
    starts_of(*reversed(collate([dataset["a"], dataset["b"]])))


def test_other_audio_is_refused(ramps, monkeypatch):
    """At once where its length is another, and soon where it is not."""
    audio = []
    for utt, samples in SAMPLES.items():
        audio.append(f"{utt} {samples} {RATE} 00000000 0 0\n")
    (ramps / "utt2audio").write_text("".join(audio))
    monkeypatch.setattr(TrackReader, "__getitem__", lambda self, utt: np.zeros(9))
    data.open_track.cache_clear()
    dataset, _ = make(ramps, 32_000)
    with pytest.raises(UserError, match="a: its audio is not what was scored: as long"):
        for _ in range(1000):
            dataset["a"]
    (ramps / "utt2audio").write_text(audio[0].replace("52345", "62345"))
    data.open_track.cache_clear()
    dataset, _ = make(ramps, 32_000)
    with pytest.raises(UserError, match="a: its audio .*: 52345 samples .* 62345 at"):
        dataset["a"]
    data.open_track.cache_clear()


def test_audio_that_was_not_labelled_is_refused(ramps):
    """At once where it is read whole, and soon where parts of it are read."""
    ramp, rate = soundfile.read(ramps / "b.flac", dtype="int16")
    soundfile.write(ramps / "b.flac", ramp[::-1], rate)
    data.open_track.cache_clear()
    for keep, crop_here in ((32_000, True), (32_000, False), (100_000, True)):
        dataset, _ = make(ramps, keep, crop_here, stored=True)
        with pytest.raises(UserError, match="b: its audio is not what was labelled"):
            for _ in range(1000 if keep == 32_000 and crop_here else 1):
                dataset["b"]
    for _ in range(100):
        dataset["c"]


@pytest.mark.parametrize(
    "conf, loudness, read",
    [
        ({"crop_seconds": 0.5}, None, True),
        ({}, None, False),
        ({"crop_seconds": 0.5, "track_conf": {"energy_gate": 30}}, None, False),
        ({"crop_seconds": 0.5}, 0.5, False),
    ],
)
def test_what_needs_the_whole_utterance_reads_it(ssl_command, conf, loudness, read):
    args = arguments(ssl_command(ssl_conf={"masker": "atm", **conf}))
    reading = ATMSSLTask.build_preprocess_fn(args, True)
    reading.stock.speech_volume_normalize = loudness  # ESPnet's SSL task sets none
    crop = ATMSSLTask.crop_to_read(args, reading)
    assert crop == (Crop(8000, 640, True) if read else None)

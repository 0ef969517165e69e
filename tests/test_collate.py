import math

import numpy as np
import pytest
import torch
from espnet2.train.collate_fn import HuBERTCollateFn
from test_frames import logmel, wav2vec_cnn

from espnet_atm.collate import SyncedCollateFn
from espnet_atm.frames import FrameGrid, frontend_layers, subsampling_layers
from espnet_atm.preencoder import Conv2dPreEncoder

# The paper's feature path, and that of wav2vec 2.0.
PATHS = {
    "conv2d": lambda: (logmel(), Conv2dPreEncoder(80, 16)),
    "wav2vec_cnn": lambda: (wav2vec_cnn(), None),
}


def grid_of(frontend, preencoder) -> FrameGrid:
    layers = frontend_layers(frontend)
    return FrameGrid.from_layers(
        layers + (subsampling_layers(preencoder) if preencoder else [])
    )


def collate(grid, track_grid=None, label_grid=None, **options) -> SyncedCollateFn:
    options = {"train": True, "label_downsampling": 1, **options}
    return SyncedCollateFn(
        HuBERTCollateFn(**options), grid, track_grid, label_grid=label_grid
    )


def response(frontend, preencoder, speech, event) -> torch.Tensor:
    """How much each encoded frame feels the event (T,)."""

    def encode(x):
        x, lengths = frontend(x[None], torch.tensor([len(x)]))
        return (preencoder(x, lengths)[0] if preencoder else x)[0]

    with torch.no_grad():
        quiet = speech.clone()
        quiet[event] = 0
        return (encode(speech) - encode(quiet)).abs().sum(dim=1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scorer", PATHS)
def test_an_event_lands_in_the_right_frame_after_cropping(path, scorer):
    frontend, preencoder = PATHS[path]()
    frontend.eval()
    grid = grid_of(frontend, preencoder)
    rng = np.random.default_rng(0)
    samples, tried = 48000, 0
    short = np.zeros(20000, dtype=np.float32)
    short_labels = np.zeros((len(short) - 400) // 160 + 1, dtype=np.int64)
    track_grid = grid_of(*PATHS[scorer]())
    short_track = np.zeros(track_grid.length(len(short)), dtype=np.float32)
    function = collate(grid, track_grid, label_downsampling=grid.shift // 160)
    for _ in range(30):
        event = int(rng.integers(2000, samples - 2000))
        speech = 1e-3 * rng.standard_normal(samples).astype(np.float32)
        speech[event] = 1.0
        # Labels as from MFCC: 25 ms windows every 10 ms, the first centred at 12.5 ms.
        times = 199.5 + 160 * np.arange((samples - 400) // 160 + 1)
        labels = (times - event).round().astype(np.int64)
        frames = np.arange(track_grid.length(samples))
        times = track_grid.offset + track_grid.shift * frames
        track = np.exp(-np.abs(times - event) / 16000).astype(np.float32)
        _, batch = function(
            [
                ("long", dict(speech=speech, text=labels, confidence=track[:, None])),
                (
                    "short",
                    dict(speech=short, text=short_labels, confidence=short_track),
                ),
            ]
        )
        cropped = batch["speech"][0]
        found = int(cropped.argmax())
        if cropped[found] < 1 or not 1500 < found < len(short) - 1500:
            continue
        tried += 1
        felt = response(frontend, preencoder, cropped, found)
        assert len(felt) == batch["text"].size(1) == batch["confidence"].size(1)
        # The front end itself feels the event in the frames that the grid says ...
        centre = float((felt * torch.arange(len(felt))).sum() / felt.sum())
        assert abs(grid.offset + grid.shift * centre - found) <= grid.shift / 2
        # ... and so do labels and confidence.
        # ... each frame has a label of its own time, to within a label ...
        centres = grid.offset + grid.shift * np.arange(len(felt))
        assert np.abs(batch["text"][0].numpy() + found - centres).max() <= 160
        # ... and confidence peaks there; a track tells no finer than its own frames.
        peak = centres[int(batch["confidence"][0].argmax())]
        coarser = track_grid.shift / 2 if track_grid != grid else 0
        assert abs(peak - found) <= grid.shift / 2 + coarser
    assert tried >= 5


def test_labels_do_not_lag_on_average():
    """ESPnet's own collate function lets them start 0.75 frames early."""
    grid = FrameGrid.from_layers(frontend_layers(wav2vec_cnn()))
    function = collate(grid)
    lags = []
    for _ in range(300):
        samples = 16000
        # speech tells its time, labels tell their frame
        speech = np.arange(samples, dtype=np.float32)
        labels = np.arange(grid.length(samples))
        short = np.zeros(8000, dtype=np.float32)
        _, batch = function(
            [
                ("a", dict(speech=speech, text=labels)),
                ("b", dict(speech=short, text=labels[: grid.length(8000)])),
            ]
        )
        start = float(batch["speech"][0, 0])
        lags.append(start / grid.shift - float(batch["text"][0, 0]))
    assert np.abs(lags).max() == 0 and len(set(lags)) == 1


def test_labels_at_the_encoder_rate_stay_as_they_are():
    grid = FrameGrid.from_layers([(400, 320, 0)])
    labels = np.arange(grid.length(16000))
    _, batch = collate(grid, train=False)(
        [("a", dict(speech=np.zeros(16000, np.float32), text=labels))]
    )
    assert batch["text"][0].tolist() == labels.tolist()


def test_labels_at_10_ms_match_espnets_thinning():
    """For the wav2vec CNN, MFCC labels are thinned to every second one."""
    grid = FrameGrid.from_layers(frontend_layers(wav2vec_cnn()))
    samples = 16000
    labels = np.arange((samples - 400) // 160 + 1)
    _, batch = collate(grid, train=False, label_downsampling=2)(
        [("a", dict(speech=np.zeros(samples, np.float32), text=labels))]
    )
    assert batch["text"][0].tolist() == labels[::2].tolist()[: grid.length(samples)]


def test_validation_is_not_cropped_but_padded():
    grid = FrameGrid.from_layers([(400, 320, 0)])
    data = [
        (utt, dict(speech=np.ones(n, np.float32), confidence=np.ones(grid.length(n))))
        for utt, n in (("a", 4000), ("b", 8000))
    ]
    utts, batch = collate(grid, FrameGrid(320, 199.5), train=False)(data)
    assert utts == ["a", "b"]
    assert batch["speech_lengths"].tolist() == [4000, 8000]
    assert batch["confidence_lengths"].tolist() == [
        grid.length(4000),
        grid.length(8000),
    ]
    assert (batch["confidence"][0, grid.length(4000) :] == 0).all()


def test_pad_keeps_the_longest_whole():
    grid = FrameGrid.from_layers([(400, 320, 0)])
    data = [
        (u, dict(speech=np.ones(n, np.float32))) for u, n in (("a", 4000), ("b", 8000))
    ]
    _, batch = collate(grid, pad=True)(data)
    assert batch["speech_lengths"].tolist() == [4000, 8000]


@pytest.mark.parametrize("pad", [False, True])
def test_no_more_than_so_much_is_trained_on(pad):
    """A contiguous region from a random start, all streams alike; validation is whole."""
    grid = FrameGrid.from_layers([(400, 320, 0)])
    data = [
        (
            utt,
            dict(speech=np.arange(n, dtype=np.float32), text=np.arange(grid.length(n))),
        )
        for utt, n in (("a", 6000), ("b", 32000))
    ]
    starts = set()
    for train in (True, False):
        stock = HuBERTCollateFn(train=train, label_downsampling=1, pad=pad)
        function = SyncedCollateFn(stock, grid, None, crop_samples=8000)
        for _ in range(10):
            _, batch = function(data)
            lengths = batch["speech_lengths"].tolist()
            if not train:
                assert lengths == [6000, 32000]
                continue
            assert lengths == ([6000, 8000] if pad else [6000, 6000])
            speech = batch["speech"][1, : lengths[1]]
            start = int(speech[0])
            assert speech.tolist() == list(range(start, start + lengths[1]))
            assert batch["text"][1, 0] * 320 == start
            starts.add(start)
    assert len(starts) > 5


def test_a_crop_too_short_for_a_frame_is_refused():
    grid = FrameGrid.from_layers([(400, 320, 0)])
    with pytest.raises(ValueError, match="crop_seconds: 399 samples are too short"):
        SyncedCollateFn(HuBERTCollateFn(), grid, None, crop_samples=399)


@pytest.mark.parametrize(
    "stream, value, message",
    [
        ("confidence", np.full(49, math.nan), "utt1: .*nan in frame 0"),
        ("confidence", np.full(49, -0.25), "utt1: .*-0.25 in frame 0"),
        ("confidence", np.ones(48), "utt1: a track of 48 frames .* 49 frames"),
        ("text", np.ones(40, int), "utt1: 40 labels of 320 samples .* 16000 samples"),
    ],
)
def test_streams_that_do_not_fit_are_refused_by_utterance(stream, value, message):
    grid = FrameGrid.from_layers([(400, 320, 0)])
    good = dict(speech=np.zeros(16000, np.float32))
    with pytest.raises(ValueError, match=message):
        collate(grid, FrameGrid(320, 199.5))([("utt1", {**good, stream: value})])


def test_too_short_audio_is_refused_by_utterance():
    grid = FrameGrid.from_layers([(400, 320, 0)])
    with pytest.raises(ValueError, match="utt1: 399 samples are too short"):
        collate(grid)([("utt1", dict(speech=np.zeros(399, np.float32)))])


def test_label_rate_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="label_downsampling: 3 does not divide"):
        collate(FrameGrid(640, 479.5), label_downsampling=3)


def test_a_track_is_refined_on_the_encoders_frames():
    """Smoothed over the whole utterance and gated by its energy, then cropped."""
    grid = FrameGrid.from_layers([(640, 640, 0)])
    speech = np.full(6400, 0.1, dtype=np.float32)
    speech[3200:3840] = 0.0  # frame 5
    track = np.linspace(0, 0.9, 10, dtype=np.float32)
    function = SyncedCollateFn(
        HuBERTCollateFn(train=False), grid, grid, smooth=3, energy_gate=20
    )
    _, batch = function([("utt", {"speech": speech, "confidence": track})])
    expected = track.copy()
    expected[[0, -1]] = track[:2].mean(), track[-2:].mean()
    expected[5] = 0
    np.testing.assert_allclose(batch["confidence"][0].numpy(), expected, atol=1e-6)


# --- labels that are stored with their time grid ---------------------------------------

MFCC = FrameGrid.from_layers([(400, 160, 0)])
GRIDS = {
    "conv2d": FrameGrid.from_layers([(512, 160, 256), (3, 2, 0), (3, 2, 0)]),
    "wav2vec_cnn": FrameGrid.from_layers([(400, 320, 0)]),
    "stft": FrameGrid.from_layers([(512, 160, 256)]),
    "stft8ms": FrameGrid.from_layers([(512, 128, 256)]),
    "mfcc": MFCC,
}


@pytest.mark.parametrize("labelled", GRIDS)
@pytest.mark.parametrize("trained", GRIDS)
def test_stored_labels_are_taken_by_time(trained, labelled):
    """Whatever front end they were made for, and however long the audio is."""
    grid, label_grid = GRIDS[trained], GRIDS[labelled]
    function = collate(grid, None, label_grid, train=False)
    for samples in [1600, 3333, *range(16000, 16700, 13)]:
        count = label_grid.length(samples)
        speech = np.zeros(samples, np.float32)
        _, batch = function([("a", dict(speech=speech, text=np.arange(count)))])
        found = batch["text"][0].numpy()
        assert len(found) == grid.length(samples)
        centres = grid.offset + grid.shift * np.arange(len(found))
        times = label_grid.offset + label_grid.shift * np.arange(count)
        nearest = np.abs(centres[:, None] - times).min(axis=1)
        np.testing.assert_allclose(np.abs(times[found] - centres), nearest)


@pytest.mark.parametrize("labelled", GRIDS)
@pytest.mark.parametrize("lost", [-20, -5, 5, 20])
def test_stored_labels_of_other_audio_are_refused(labelled, lost):
    label_grid = GRIDS[labelled]
    count = label_grid.length(16000) + lost
    data = dict(speech=np.zeros(16000, np.float32), text=np.zeros(max(count, 0), int))
    function = collate(GRIDS["wav2vec_cnn"], None, label_grid)
    with pytest.raises(ValueError, match=f"utt1: {len(data['text'])} labels of .* 16000 sam"):
        function([("utt1", data)])


@pytest.mark.parametrize("grid", [GRIDS["conv2d"], GRIDS["wav2vec_cnn"]])
def test_stored_labels_for_the_encoders_frames_are_as_many(grid):
    function = collate(grid, None, FrameGrid(grid.shift, grid.offset))
    for lost in (-1, 0, 1):
        labels = np.arange(grid.length(16000) + lost)
        data = [("utt1", dict(speech=np.zeros(16000, np.float32), text=labels))]
        if lost:
            with pytest.raises(ValueError, match=f"utt1: {len(labels)} labels .*other audio"):
                function(data)
        else:
            assert function(data)[1]["text"][0].tolist() == labels.tolist()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("labelled", GRIDS)
def test_an_event_has_its_stored_label_after_cropping(path, labelled):
    """The label of the frame that is nearest to the event, on the frame that feels it."""
    frontend, preencoder = PATHS[path]()
    frontend.eval()
    grid, label_grid = grid_of(frontend, preencoder), GRIDS[labelled]
    rng = np.random.default_rng(0)
    samples, tried = 48000, 0
    short = np.zeros(20000, dtype=np.float32)
    short_labels = np.zeros(label_grid.length(len(short)), dtype=np.int64)
    function = collate(grid, None, label_grid)
    for _ in range(20):
        event = int(rng.integers(2000, samples - 2000))
        speech = 1e-3 * rng.standard_normal(samples).astype(np.float32)
        speech[event] = 1.0
        times = label_grid.offset + label_grid.shift * np.arange(label_grid.length(samples))
        # Marked is what may be nearest to the frame that is nearest to the event.
        near = (label_grid.shift + grid.shift) / 2 + 1
        labels = (np.abs(times - event) <= near).astype(np.int64)
        long = dict(speech=speech, text=labels)
        _, batch = function([("l", long), ("s", dict(speech=short, text=short_labels))])
        cropped = batch["speech"][0]
        found = int(cropped.argmax())
        if cropped[found] < 1 or not 1500 < found < len(short) - 1500:
            continue
        tried += 1
        felt = response(frontend, preencoder, cropped, found)
        marked = np.flatnonzero(batch["text"][0].numpy())
        assert len(felt) == batch["text"].size(1) and len(marked)
        centre = float((felt * torch.arange(len(felt))).sum() / felt.sum())
        assert abs(marked.mean() - centre) <= 0.5 + near / grid.shift
    assert tried >= 3

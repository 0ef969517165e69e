import math

import numpy as np
import pytest
import torch

from espnet_atm.confidence import (
    align_track,
    check_refinement,
    check_track,
    frame_confidence,
    frame_energy,
    refine_confidence,
    smooth_confidence,
    utterance_confidence,
)
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid

# Two frames of three labels, label 0 the blank.
PROBS = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]])


def test_max_posterior_by_hand():
    torch.testing.assert_close(
        frame_confidence(PROBS.log()), torch.tensor([[0.5, 0.7]])
    )


def test_without_blank_the_other_labels_count_as_they_are():
    got = frame_confidence(PROBS.log(), include_blank=False)
    torch.testing.assert_close(got, torch.tensor([[0.3, 0.7]]))
    got = frame_confidence(PROBS.log(), include_blank=False, blank_id=2)
    torch.testing.assert_close(got, torch.tensor([[0.5, 0.2]]))


def test_margin_by_hand():
    got = frame_confidence(PROBS.log(), measure="margin")
    torch.testing.assert_close(got, torch.tensor([[0.2, 0.5]]))


def test_entropy_of_even_and_certain_posteriors():
    certain = torch.tensor([1.0, 0.0, 0.0]).log()
    even = torch.full((3,), 1 / 3).log()
    got = frame_confidence(torch.stack([certain, even])[None], measure="entropy")
    torch.testing.assert_close(got, torch.tensor([[1.0, 0.0]]), atol=1e-6, rtol=0)


def test_temperature_by_hand():
    got = frame_confidence(PROBS.log(), temperature=2.0)[0, 0]
    roots = [math.sqrt(p) for p in (0.5, 0.3, 0.2)]
    assert got.item() == pytest.approx(roots[0] / sum(roots))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(measure="mean"), "measure must be one of .* got 'mean'"),
        (dict(temperature=0.0), "temperature must be positive, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        frame_confidence(PROBS.log(), **options)


def test_logits_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="must not exceed 0, got 0.7"):
        frame_confidence(PROBS)
    with pytest.raises(ValueError, match=r"\(B, T, V\), got \(2, 3\)"):
        frame_confidence(PROBS[0].log())
    with pytest.raises(ValueError, match="must not exceed 0, got nan"):
        frame_confidence(torch.full((1, 2, 3), math.nan))


def test_utterance_confidence_ignores_padding():
    confidence = torch.tensor([[0.2, 0.4, 0.9], [0.5, math.nan, math.nan]])
    got = utterance_confidence(confidence, torch.tensor([3, 1]))
    torch.testing.assert_close(got, torch.tensor([0.5, 0.5]))
    assert utterance_confidence(torch.ones(1, 2), torch.tensor([0])).item() == 0


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.5, math.inf])
def test_bad_confidence_is_refused_by_utterance_and_frame(bad):
    track = np.full((5, 1), 0.5, dtype=np.float32)
    track[3] = bad
    with pytest.raises(ValueError, match=r"utt7: .*frame 3 \(1 of 5"):
        check_track(track, "utt7")


def test_track_of_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"utt7: .*got \(2, 3\)"):
        check_track(np.zeros((2, 3)), "utt7")
    with pytest.raises(ValueError, match=r"utt7: .*got \(0,\)"):
        check_track(np.zeros(0), "utt7")


def test_align_to_the_same_grid_is_the_identity():
    track = np.random.default_rng(0).random(50).astype(np.float32)
    assert align_track(track, 640, 640, 50) is track


def test_align_up_repeats_and_down_averages():
    track = np.array([0.0, 1.0, 0.5], dtype=np.float32)
    np.testing.assert_allclose(align_track(track, 640, 320, 6), [0, 0, 1, 1, 0.5, 0.5])
    np.testing.assert_allclose(align_track(track[[0, 1, 1, 1]], 320, 640, 2), [0.5, 1])


def test_align_honours_offsets():
    # Source frames 2..3 samples wide around 2, 6, 10; targets around 4 and 8.
    got = align_track(np.array([0.0, 1.0, 0.0]), 4, 4, 2, src_offset=2, dst_offset=4)
    np.testing.assert_allclose(got, [0.5, 0.5])


def test_align_beyond_the_end_takes_the_nearest_frame():
    got = align_track(np.array([0.2, 0.8]), 4, 4, 4, src_offset=2, dst_offset=-6)
    np.testing.assert_allclose(got, [0.2, 0.2, 0.2, 0.8])


def test_align_takes_tensors():
    got = align_track(torch.tensor([0.0, 1.0]), 2, 1, 4)
    assert isinstance(got, torch.Tensor) and got.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "frames, src, dst, length",
    [(100, 640, 640, 99), (100, 640, 320, 150), (100, 160, 640, 100)],
)
def test_tracks_of_another_duration_are_refused_with_both_numbers(
    frames, src, dst, length
):
    message = f"{frames} frames of {src} samples .* {length} frames of {dst} samples"
    with pytest.raises(ValueError, match=message):
        align_track(np.zeros(frames), src, dst, length)


def test_frame_shifts_must_be_positive():
    with pytest.raises(ValueError, match="got 0 and 640"):
        align_track(np.zeros(3), 0, 640, 3)


GRID = FrameGrid(640, 320.0)


def test_frame_energy_of_loud_and_silent_frames():
    speech = torch.zeros(2, 3200)
    speech[0, 640:1280] = 0.1  # frame 1
    speech[1, :1280] = 0.1  # frames 0 and 1 of two
    energy = frame_energy(
        speech, torch.tensor([3200, 1280]), GRID, torch.tensor([5, 2])
    )
    assert energy[0].argmax() == 1 and (energy[0, [0, 2, 3, 4]] < -50).all()
    assert energy[1, :2].abs().max() < 1e-4 and energy[1, 2:].isnan().all()


def test_smoothing_is_the_mean_over_the_frames_that_there_are():
    confidence = torch.tensor([[0.0, 0.3, 0.9, 0.6, 0.5], [1.0, 0.0, 0.5, 9.0, 9.0]])
    found = smooth_confidence(confidence, torch.tensor([5, 3]), 3)
    expected = [[0.15, 0.4, 0.6, 2 / 3, 0.55], [0.5, 0.5, 0.25, 0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    even = smooth_confidence(confidence, torch.tensor([5, 3]), 2)
    torch.testing.assert_close(even[0], torch.tensor([0.15, 0.6, 0.75, 0.55, 0.5]))


def test_refinement_of_a_confidence():
    confidence = torch.full((1, 5), 0.8)
    speech = torch.full((1, 3200), 0.1)
    speech[0, 640:1280] = 0.001  # frame 1, by 40 dB
    conf = (confidence, torch.tensor([5]), speech, torch.tensor([3200]), GRID)
    assert torch.equal(refine_confidence(*conf), confidence)
    gated = refine_confidence(*conf, smooth=3, energy_gate=30)
    torch.testing.assert_close(gated, torch.tensor([[0.8, 0.0, 0.8, 0.8, 0.8]]))
    torch.testing.assert_close(refine_confidence(*conf, energy_gate=50), confidence)
    with pytest.raises(ValueError, match="smooth: 0 is not a positive number"):
        refine_confidence(*conf, smooth=0)
    with pytest.raises(ValueError, match="energy_gate: -3 is not a positive number"):
        refine_confidence(*conf, energy_gate=-3)


@pytest.mark.parametrize("smooth", [31, 10**9, 10**30])
def test_a_window_longer_than_all_is_the_mean(smooth):
    confidence = torch.rand(2, 30)
    lengths = torch.tensor([30, 12])
    found = smooth_confidence(confidence, lengths, smooth if smooth > 31 else 61)
    expected = utterance_confidence(confidence, lengths)
    torch.testing.assert_close(found[0], expected[:1].expand(30))
    torch.testing.assert_close(found[1, :12], expected[1:].expand(12))
    assert (found[1, 12:] == 0).all()


@pytest.mark.parametrize("gate", [True, "30", math.nan, math.inf, 0, -1, [30], 10**400])
def test_a_gate_that_is_no_number(gate):
    with pytest.raises(UserError, match="energy_gate: .* is not a positive number of dB"):
        check_refinement(1, gate)


@pytest.mark.parametrize("smooth", [True, "10", 1.5, 0, -1, None, math.nan, [1]])
def test_a_window_that_is_no_number(smooth):
    with pytest.raises(UserError, match="smooth: .* is not a positive number of frames"):
        check_refinement(smooth, None)


@pytest.mark.parametrize("temperature", [True, "2", math.nan, math.inf, -1])
def test_a_temperature_that_is_no_number(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        frame_confidence(PROBS.log(), temperature=temperature)


def test_a_track_of_words_is_refused():
    with pytest.raises(UserError, match="utt7: a confidence track has numbers"):
        check_track(np.array(["a", "b"]), "utt7")

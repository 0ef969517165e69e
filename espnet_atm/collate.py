"""Batches whose audio, labels and confidence are cropped together."""

import copy
from typing import Collection, Dict, List, Optional, Tuple

import numpy as np
import torch
from espnet2.train.collate_fn import HuBERTCollateFn, common_collate_fn

from espnet_atm.confidence import align_track, check_track, refine_confidence
from espnet_atm.config import TRACK
from espnet_atm.data import PLACE, crop_start
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid, nearest_frames
from espnet_atm.values import MOST_FRAMES, whole


class SyncedCollateFn:
    """ESPnet's collate function with every frame-level stream on the encoder's frames.

    Labels and confidence are first brought to the frames of the whole utterance, by
    time. A crop starts at a multiple of the encoder's frame shift, so that its frames
    are frames of the whole utterance and all streams are cut at the same frame: labels
    neither lead nor lag. Augmentation and padding are left to ESPnet.

    Args:
        stock: the function that ESPnet made from ``collate_fn_conf``; its options hold.
        grid: the encoder's frames.
        track_grid: the frames of the stored confidence; None if there is none.
        smooth, energy_gate: what to do to the confidence, once it is on the encoder's
            frames; see :func:`espnet_atm.confidence.refine_confidence`.
        crop_samples: the longest audio that is trained on; longer utterances are
            cropped. None for no bound.
        label_grid: the frames of stored labels; None for those of ESPnet's text, as
            ``label_downsampling`` tells.

    Raises:
        UserError: when ``label_downsampling`` does not divide the frame shift, and
            when ``crop_samples`` is shorter than a frame.
    """

    def __init__(
        self,
        stock: HuBERTCollateFn,
        grid: FrameGrid,
        track_grid: Optional[FrameGrid],
        smooth: int = 1,
        energy_gate: Optional[float] = None,
        crop_samples: Optional[int] = None,
        label_grid: Optional[FrameGrid] = None,
    ):
        if crop_samples is not None and grid.length(crop_samples) == 0:
            raise UserError(
                f"ssl_conf.crop_seconds: {crop_samples} samples are too short for one "
                "encoder frame"
            )
        whole(
            "collate_fn_conf.label_downsampling",
            stock.label_downsampling,
            most=MOST_FRAMES,
        )
        if grid.shift % stock.label_downsampling:
            raise UserError(
                f"collate_fn_conf.label_downsampling: {stock.label_downsampling} does "
                f"not divide the encoder's frame shift of {grid.shift} samples"
            )
        self.grid = grid
        self.track_grid = track_grid
        self.label_grid = label_grid
        self.smooth = smooth
        self.energy_gate = energy_gate
        self.label_shift = grid.shift // stock.label_downsampling
        self.crop = stock.train and stock.crop_audio and not stock.pad
        self.longest = crop_samples if stock.train else None
        self.random_crop = stock.rand_crop
        self.stock = copy.copy(stock)
        # It must neither crop nor thin the labels a second time.
        self.stock.crop_audio = False
        self.stock.label_downsampling = 1

    def __call__(
        self, data: Collection[Tuple[str, Dict[str, np.ndarray]]]
    ) -> Tuple[List[str], Dict[str, torch.Tensor]]:
        """Make a batch.

        Args:
            data: utterance ids with ``speech`` (N,), and, where given, ``text`` (labels)
                and ``confidence`` (S,) or (S, 1), of all of the utterance; ``place``
                where the speech is a part of it (see :class:`espnet_atm.data.Reading`).

        Returns:
            The ids, and ``speech`` (B, N), ``text`` (B, T), ``confidence`` (B, T), each
            with its ``*_lengths`` (B,).

        Raises:
            UserError: naming the utterance, on streams that do not fit its audio.
        """
        # Of utterances that were read in part, too, what counts is all of them.
        places = [sample.get(PLACE) for _, sample in data]
        lengths = [
            len(sample["speech"]) if place is None else int(place[0])
            for (_, sample), place in zip(data, places)
        ]
        keep = min(lengths) if self.crop else max(lengths)
        keep = min(keep, self.longest or keep)
        samples, tracks = [], []
        for (utt, sample), length, place in zip(data, lengths, places):
            speech = sample["speech"]
            frames = self.grid.length(length)
            if frames < 2:
                found = "too short for one encoder frame"
                if frames:
                    found = "one encoder frame, which leaves nothing to predict it from"
                raise UserError(f"{utt}: {length} samples are {found}")
            streams = {}
            if "text" in sample:
                streams["text"] = self._align_labels(utt, sample["text"], length)
            if TRACK in sample:
                track = self._align_track(utt, sample[TRACK], frames)
                streams[TRACK] = self._refine(track, speech)
            if length > keep:
                shift, read_from, first = self.grid.shift, 0, 0
                if place is not None:
                    read_from, part = int(place[1]), float(place[2])
                    first = crop_start(part, length, keep, shift)
                elif self.random_crop:
                    choices = (length - keep) // shift + 1
                    first = int(torch.randint(choices, ())) * shift
                speech = speech[first - read_from : first - read_from + keep]
                start = first // shift
                end = start + self.grid.length(keep)
                streams = {k: v[start:end] for k, v in streams.items()}
            if TRACK in streams:
                tracks.append((utt, {TRACK: streams.pop(TRACK)}))
            samples.append((utt, {"speech": speech, **streams}))

        utts, batch = self.stock(samples)
        if tracks:
            batch.update(common_collate_fn(tracks)[1])
        return utts, batch

    def _align_track(self, utt: str, track: np.ndarray, frames: int) -> np.ndarray:
        if self.track_grid is None:
            raise UserError(
                f"{utt}: has confidence, but no frame shift is known for it"
            )
        try:
            track = check_track(track, utt)
        except ValueError as e:  # with the utterance's name
            raise UserError(str(e)) from None
        try:
            return align_track(
                track,
                self.track_grid.shift,
                self.grid.shift,
                frames,
                self.track_grid.offset,
                self.grid.offset,
            )
        except ValueError as e:
            raise UserError(
                f"{utt}: {e}; check that frame_shift beside its confidence.scp says how "
                "many samples a frame lasts, and that this audio was scored"
            ) from None

    def _refine(self, track: np.ndarray, speech: np.ndarray) -> np.ndarray:
        if self.smooth == 1 and self.energy_gate is None:
            return track
        refined = refine_confidence(
            torch.from_numpy(track)[None],
            torch.tensor([len(track)]),
            torch.from_numpy(speech)[None],
            torch.tensor([len(speech)]),
            self.grid,
            self.smooth,
            self.energy_gate,
        )
        return refined[0].numpy()

    def _align_labels(
        self, utt: str, labels: np.ndarray, num_samples: int
    ) -> np.ndarray:
        """For each encoder frame the label nearest in time, (L,) -> (T,)."""
        frames = self.grid.length(num_samples)
        if self.label_grid is not None:
            return self._align_stored_labels(utt, labels, num_samples, frames)
        if self.label_shift == self.grid.shift and len(labels) == frames:
            return labels
        lost = abs(len(labels) * self.label_shift - num_samples)
        if len(labels) == 0 or lost > 2 * self.grid.shift:
            raise UserError(
                f"{utt}: {len(labels)} labels of {self.label_shift} samples do not fit "
                f"{num_samples} samples of audio; check "
                "collate_fn_conf.label_downsampling (labels for each encoder frame)"
            )
        # Label frames lie symmetrically in the audio, to within half a label.
        offset = (num_samples - 1 - (len(labels) - 1) * self.label_shift) / 2
        centres = self.grid.offset + self.grid.shift * np.arange(frames)
        index = np.rint((centres - offset) / self.label_shift).astype(np.int64)
        return labels[index.clip(0, len(labels) - 1)]

    def _align_stored_labels(
        self, utt: str, labels: np.ndarray, num_samples: int, frames: int
    ) -> np.ndarray:
        own, grid = self.label_grid, self.grid
        same = (own.shift, own.offset) == (grid.shift, grid.offset)
        if same and len(labels) == frames:
            return labels
        # The last label is as far from the end as the first from the beginning.
        last = own.offset + own.shift * (len(labels) - 1)
        lost = abs(num_samples - 1 - own.offset - last)
        if same or len(labels) == 0 or lost > 2 * own.shift:
            raise UserError(
                f"{utt}: {len(labels)} labels of {own.shift} samples do not fit "
                f"{num_samples} samples of audio: they are of other audio"
            )
        return labels[nearest_frames(own, grid, frames).clip(0, len(labels) - 1)]

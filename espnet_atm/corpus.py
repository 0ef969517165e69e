"""A scored corpus as training takes it: each utterance's confidence and speech."""

import logging
import math
from array import array
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, List, NamedTuple, Optional, Union

import numpy as np
import torch
from tqdm import tqdm

from espnet_atm.audio import Table, read_audio
from espnet_atm.confidence import align_track, refine_confidence
from espnet_atm.config import SSLConf
from espnet_atm.errors import UserError, read_config
from espnet_atm.guidance import ALL, Heard
from espnet_atm.speech import speech_frames
from espnet_atm.track import TrackReader, read_track_grid

if TYPE_CHECKING:  # the command line must not wait for ESPnet's front ends
    from espnet_atm.frames import FrameGrid

ANY = "any"  # in place of what ESPnet's parser requires


class Settings(NamedTuple):
    """What is about to be trained with.

    Args:
        conf: the checked ``ssl_conf``.
        fs: sampling rate of the audio in Hz.
        encoder: the frames that are masked; None for those of the track.
    """

    conf: SSLConf
    fs: int
    encoder: Optional["FrameGrid"] = None

    @classmethod
    def read(cls, ssl_config: str) -> "Settings":
        """Those of an SSL config.

        Raises:
            UserError: naming the file, and the option that is wrong.
        """
        read_config(ssl_config)
        from espnet_atm.task import ATMSSLTask, encoder_grid, sampling_rate  # slow

        options = ATMSSLTask.get_parser().parse_args(
            ["--config", ssl_config, "--output_dir", ANY]
        )
        if not options.ssl_conf:
            raise UserError(f"{ssl_config}: has no ssl_conf: nothing is guided")
        try:
            conf = SSLConf.parse(options.ssl_conf)
            conf.check_trainable()
            return cls(conf, sampling_rate(options), encoder_grid(options))
        except ValueError as e:
            raise UserError(f"{ssl_config}: {e}") from None


class Corpus:
    """Utterances with their tracks on the frames that are masked.

    Args:
        folder: holds the scores, as ``espnet_atm.bin.score`` wrote them.
        wav_scp: the audio that was scored.
        settings: what is about to be trained with.
        utt2category: the condition of each utterance, where it is known.

    Attributes:
        grid: those frames, in samples.
        categories: the condition by utterance; None where none is known.

    Raises:
        UserError: when there are no scores, or they are not complete.
    """

    def __init__(
        self,
        folder: Path,
        wav_scp: Union[str, Path],
        settings: Settings,
        utt2category: Union[str, Path, None] = None,
    ):
        scp = folder / "confidence.scp"
        self.folder, self.wav_scp, self.settings = folder, wav_scp, settings
        self.track_grid = read_track_grid(str(scp), settings.fs, settings.encoder)
        self.grid = settings.encoder or self.track_grid
        self.tracks = TrackReader(scp)
        self.wavs = Table(wav_scp, 2)
        self.categories = Table(utt2category, 2) if utt2category else None
        if not self.tracks:
            raise UserError(f"{scp} is empty: score the corpus first")
        self.tracks.check_complete()

    def __len__(self) -> int:
        return len(self.tracks)

    def category(self, utt: str) -> str:
        """The condition of an utterance; :data:`ALL` where it is not known."""
        row = None if self.categories is None else self.categories.get(utt)
        return ALL if row is None else row[1]

    def audio(self, utt: str) -> np.ndarray:
        """The samples of an utterance (N,), float.

        Raises:
            UserError: naming the utterance that has none, or none that can be used.
        """
        index = self.wavs.find(utt)
        if index is None:
            raise UserError(f"{self.wav_scp} has no audio of {utt}, which has a score")
        try:
            speech, rate = read_audio(self.wavs[index][1])
        except Exception as e:  # whatever the reader of this audio format raises
            raise UserError(f"{utt}: {e or type(e).__name__}") from None
        fs = self.settings.fs
        if rate != fs:
            what = "--fs" if self.settings.encoder is None else "frontend_conf.fs"
            raise UserError(f"{utt}: sampled at {rate} Hz, not at {what} {fs}")
        if speech.ndim != 1 or not speech.size or not np.isfinite(speech).all():
            raise UserError(f"{utt}: its audio is empty, of several channels or not finite")
        self.tracks.check_audio(utt, speech, rate)
        return speech

    def hear(self, utt: str) -> Heard:
        """An utterance's confidence, as training takes it, and its speech.

        Raises:
            UserError: naming the utterance that has no audio, or no track that fits it.
        """
        speech = torch.from_numpy(self.audio(utt)).float()[None]
        track, encoder = self.tracks[utt], self.settings.encoder
        if encoder is not None:
            own = self.track_grid
            try:
                track = align_track(
                    *(track, own.shift, encoder.shift),
                    *(encoder.length(speech.size(1)), own.offset, encoder.offset),
                )
            except ValueError as e:
                raise UserError(f"{utt}: {e}") from None
        if not track.size:
            raise UserError(f"{utt}: {speech.size(1)} samples are too short for one frame")
        lengths, frames = torch.tensor([speech.size(1)]), torch.tensor([len(track)])
        confidence = refine_confidence(
            *(torch.from_numpy(np.ascontiguousarray(track))[None], frames),
            *(speech, lengths, self.grid),
            *(self.settings.conf.smooth, self.settings.conf.energy_gate),
        )
        found = speech_frames(speech, lengths, self.settings.fs, self.grid, frames)
        return Heard(
            utt,
            self.category(utt),
            confidence[0].numpy(),
            *(x[0].numpy() for x in found),
        )


def read_corpus(corpus: Corpus, most: int) -> List[Heard]:
    """An even selection of utterances, without their audio."""
    step = max(len(corpus) // most, 1)
    chosen = range(0, len(corpus), step)
    # One buffer of each kind: small arrays that are kept would lie between the large ones
    # that are freed, and keep most of their memory from being used again.
    kinds = np.float32, np.float32, bool
    names, lengths, kept = [], [], [bytearray() for _ in kinds]
    for index in tqdm(chosen, unit="utt", mininterval=5, desc="listening"):
        utt, category, *parts = corpus.hear(corpus.tracks.tracks[index][0])
        names.append((utt, category))
        lengths.append(len(parts[0]))
        for whole, part in zip(kept, parts):
            whole += part.tobytes()
    logging.info(f"{len(names)} of {len(corpus)} utterances looked at")
    ends = np.cumsum(lengths)[:-1]
    tracks = [np.split(np.frombuffer(x, kind), ends) for x, kind in zip(kept, kinds)]
    return [Heard(*name, *x) for name, *x in zip(names, *tracks)]


class Means:
    """The confidence of each utterance, as ``utt2confidence`` has it.

    In memory are 16 bytes an utterance.

    Args:
        corpus: whose.

    Attributes:
        values: (N,), float64, in [0, 1], in the order of the file.
        groups: those of each condition, (N',), in that order; conditions in the order
            in which they come.

    Raises:
        UserError: naming the utterance whose value is none.
        OSError: when there is no such file.
    """

    def __init__(self, corpus: Corpus):
        table = corpus.tracks.means
        if table is None:
            table = Table(corpus.folder / "utt2confidence", 2)
        self.table = table
        values, groups = array("d"), defaultdict(lambda: array("d"))
        for utt, text in table:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not 0 <= value <= 1:
                raise UserError(f"{table.path}: {utt}: {text!r} is not in [0, 1]")
            values.append(value)
            groups[corpus.category(utt)].append(value)
        self.values = np.array(values)
        self.groups = {name: np.array(x) for name, x in groups.items()}

    def __getitem__(self, utt: str) -> float:
        """That of an utterance.

        Raises:
            UserError: naming the utterance that has none.
        """
        index = self.table.find(utt)
        if index is None:
            raise UserError(f"{self.table.path}: has no line of {utt}, which has a track")
        return float(self.values[index])

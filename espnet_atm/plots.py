"""Figures of a scored corpus."""

from pathlib import Path
from typing import Dict, List, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from espnet_atm.corpus import Corpus
from espnet_atm.guidance import Heard
from espnet_atm.masking import sample_span_mask

SPEECH_COLOUR, OTHER_COLOUR = "tab:blue", "tab:orange"
DRAWS = 500


def plot_frames(heard: List[Heard], file: Path) -> Dict[str, float]:
    """Distribution of frame confidence, speech against the rest; its means."""
    confidence = np.concatenate([x.confidence for x in heard])
    speech = np.concatenate([x.speech for x in heard])
    figure = Figure(figsize=(8, 3.5))
    axes = figure.subplots()
    bins = np.linspace(0, 1, 41)
    for name, part, colour in (
        ("speech", confidence[speech], SPEECH_COLOUR),
        ("no speech", confidence[~speech], OTHER_COLOUR),
    ):
        if part.size:
            label = f"{name}: {part.size} frames, mean {part.mean():.3f}"
            axes.hist(part, bins, density=True, alpha=0.6, color=colour, label=label)
    axes.set(xlabel="frame confidence $s_t$", ylabel="density", yscale="log")
    axes.legend(loc="best")
    save(figure, file)

    def mean(x: np.ndarray) -> float:
        return float(x.mean()) if x.size else np.nan

    return {
        "frames looked at": confidence.size,
        "mean frame confidence": mean(confidence),
        "of speech": mean(confidence[speech]),
        "of what is no speech": mean(confidence[~speech]),
        "frames that are no speech, %": 100 * float((~speech).mean()),
    }


def plot_utterances(
    groups: Mapping[str, np.ndarray], file: Path
) -> Dict[str, np.ndarray]:
    """Utterance confidence by condition; returns the conditions, the surest one first."""
    groups = dict(sorted(groups.items(), key=lambda x: -x[1].mean()))
    figure = Figure(figsize=(8, 0.6 * len(groups) + 1.5))
    axes = figure.subplots()
    axes.boxplot(
        list(groups.values()),
        orientation="horizontal",
        tick_labels=[f"{name} ({len(x)})" for name, x in groups.items()],
    )
    axes.invert_yaxis()
    axes.set(xlabel="utterance confidence $s_u$")
    save(figure, file)
    return groups


def plot_example(
    heard: Heard,
    audio: np.ndarray,
    corpus: Corpus,
    strategies: Sequence[str],
    file: Path,
) -> None:
    """Spectrogram, confidence, speech, and the masks that each strategy draws."""
    settings, grid = corpus.settings, corpus.grid
    frames, fs = len(heard.confidence), settings.fs
    seconds = (grid.offset + grid.shift * np.arange(frames)) / fs
    figure = Figure(figsize=(10, 7.5))
    top, middle, odds, bottom = figure.subplots(
        4, 1, sharex=True, height_ratios=[3, 1.7, 2, 1.6]
    )
    top.specgram(audio + 1e-8, NFFT=400, noverlap=240, Fs=fs, cmap="magma")
    top.set(ylabel="Hz")
    middle.plot(seconds, heard.confidence, drawstyle="steps-mid", label="confidence $s_t$")
    middle.plot(
        *(seconds, heard.probability),
        drawstyle="steps-mid",
        color=OTHER_COLOUR,
        label="P(speech)",
    )
    middle.set(ylabel="$s_t$, P(speech)", ylim=(0, 1.05))
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "fontsize": "small"}
    middle.legend(**beside)
    drawn = []
    for seed, strategy in enumerate(strategies):
        masks = sample_span_mask(
            torch.from_numpy(heard.confidence).expand(DRAWS, -1),
            torch.full((DRAWS,), frames),
            **{**settings.conf.masking(), "strategy": strategy},
            generator=torch.Generator().manual_seed(seed),
        )
        style = {"linestyle": ":"} if strategy == "topk" else {}
        odds.plot(seconds, masks.double().mean(dim=0), label=strategy, **style)
        drawn.append(masks[0].numpy())
    odds.set(ylabel=f"masked, part\nof {DRAWS} draws", ylim=(0, 1.05))
    odds.legend(**beside)
    step = grid.shift / fs
    edges = np.append(seconds, seconds[-1] + step) - step / 2
    bottom.pcolormesh(edges, np.arange(len(drawn) + 1), np.stack(drawn), cmap="Greys")
    bottom.set(
        yticks=np.arange(len(drawn)) + 0.5,
        yticklabels=strategies,
        xlabel="s",
        xlim=(0, len(audio) / fs),
    )
    bottom.set_ylabel("one draw")
    bottom.invert_yaxis()
    save(figure, file)


def save(figure: Figure, file: Path) -> None:
    """Write a figure."""
    figure.tight_layout()
    figure.savefig(file, dpi=100)

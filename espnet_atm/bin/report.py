"""Plots of what a scorer thought of a corpus: report.html and the PNG files in it."""

import argparse
import base64
import html
import logging
from pathlib import Path
from typing import Dict, List, NamedTuple

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

from espnet_atm.audio import Table, read_audio
from espnet_atm.confidence import frame_energy
from espnet_atm.errors import UserError, one_line_errors
from espnet_atm.frames import FrameGrid
from espnet_atm.masking import check_mask_options, sample_span_mask
from espnet_atm.track import MOST, TrackReader, read_track_grid
from espnet_atm.values import number, whole

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

SPEECH_COLOUR, SILENCE_COLOUR = "tab:blue", "tab:orange"
# Frames this far below an utterance's loudest ones count as silence.
SILENCE_DB = 35.0
STRATEGIES = ("random", "high", "low")
DRAWS = 500


class Scored(NamedTuple):
    """One utterance.

    Args:
        utt: its id.
        category: its condition, or ``all``.
        confidence: s_t (T,), float32.
        energy: frame energy in dB below the utterance's 95th percentile (T,).
        speech: (N,), float; kept for the utterances that are drawn only.
    """

    utt: str
    category: str
    confidence: np.ndarray
    energy: np.ndarray
    speech: np.ndarray


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--confidence_dir", required=True, help="of espnet_atm.bin.score"
    )
    parser.add_argument("--wav_scp", required=True, help="the audio that was scored")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--utt2category", help="condition of each utterance")
    parser.add_argument("--mask_ratio", type=float, default=0.40)
    parser.add_argument("--span", type=int, default=10)
    parser.add_argument("--fs", type=int, default=16000, help="sampling rate in Hz")
    parser.add_argument(
        "--max_utterances", type=int, default=1000, help="evenly taken for frame plots"
    )
    parser.add_argument("--num_examples", type=int, default=4, help="spectrograms")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Refuse impossible options before anything is read or written.

    Raises:
        UserError: naming the option and its value.
    """
    check_mask_options(args.mask_ratio, args.span, STRATEGIES[0])
    whole("fs", args.fs, most=MOST)
    whole("max_utterances", args.max_utterances, most=MOST)
    whole("num_examples", args.num_examples, least=0, most=MOST)


def read_categories(args: argparse.Namespace) -> Dict[str, str]:
    """The condition of each utterance, where it is known."""
    return dict(Table(args.utt2category, 2)) if args.utt2category else {}


def read_means(file: Path) -> Dict[str, float]:
    """The confidence of each utterance.

    Raises:
        UserError: naming the utterance whose value is none.
    """
    means = {}
    for utt, text in Table(file, 2):
        try:
            means[utt] = number("mean confidence", float(text), within=(0, 1))
        except ValueError:
            raise UserError(f"{file}: {utt}: {text!r} is not in [0, 1]") from None
    return means


def read_corpus(args: argparse.Namespace) -> List[Scored]:
    """Confidence and energy of an even selection of utterances.

    Raises:
        UserError: naming the utterance that has no audio, or no track that fits it.
    """
    folder = Path(args.confidence_dir)
    grid = read_track_grid(str(folder / "confidence.scp"), args.fs)
    tracks = TrackReader(folder / "confidence.scp")
    wavs = Table(args.wav_scp, 2)
    categories = read_categories(args)
    if not tracks:
        raise UserError(f"{folder}/confidence.scp is empty: score the corpus first")
    tracks.check_complete()
    step = max(len(tracks) // args.max_utterances, 1)
    scored = []
    for utt in tqdm(list(tracks)[::step], unit="utt", mininterval=5):
        index = wavs.find(utt)
        if index is None:
            raise UserError(f"{args.wav_scp} has no audio of {utt}, which has a score")
        try:
            speech, rate = read_audio(wavs[index][1])
        except Exception as e:  # whatever the reader of this audio format raises
            raise UserError(f"{utt}: {e or type(e).__name__}") from None
        if rate != args.fs:
            raise UserError(f"{utt}: sampled at {rate} Hz, not at --fs {args.fs}")
        if speech.ndim != 1 or not speech.size or not np.isfinite(speech).all():
            raise UserError(f"{utt}: its audio is empty, of several channels or not finite")
        tracks.check_audio(utt, speech, rate)
        track = tracks[utt]
        energy = frame_energy(
            torch.from_numpy(speech)[None],
            torch.tensor([len(speech)]),
            grid,
            torch.tensor([len(track)]),
        )[0].numpy()
        scored.append(Scored(utt, categories.get(utt, "all"), track, energy, speech))
    logging.info(f"{len(scored)} of {len(tracks)} utterances looked at")
    return scored


def plot_frames(scored: List[Scored], file: Path) -> Dict[str, float]:
    """Distribution of frame confidence, speech against silence; its means."""
    confidence = np.concatenate([x.confidence for x in scored])
    silent = np.concatenate([x.energy for x in scored]) < -SILENCE_DB
    figure, axes = plt.subplots(figsize=(7, 3.5))
    bins = np.linspace(0, 1, 41)
    for name, part, colour in (
        ("speech", confidence[~silent], SPEECH_COLOUR),
        ("silence", confidence[silent], SILENCE_COLOUR),
    ):
        if part.size:
            label = f"{name}: {part.size} frames, mean {part.mean():.3f}"
            axes.hist(part, bins, density=True, alpha=0.6, color=colour, label=label)
    axes.set(xlabel="frame confidence $s_t$", ylabel="density", yscale="log")
    axes.legend(loc="upper left")
    save(figure, file)
    # The paper masks where the scorer is sure: how much of that is silence?
    top = confidence >= np.quantile(confidence, 0.6)
    return {
        "frames looked at": confidence.size,
        "mean frame confidence": float(confidence.mean()),
        "of speech frames": float(confidence[~silent].mean())
        if (~silent).any()
        else np.nan,
        "of silent frames": float(confidence[silent].mean())
        if silent.any()
        else np.nan,
        "silent frames, %": 100 * float(silent.mean()),
        "silent among the 40 % most confident frames, %": 100
        * float(silent[top].mean()),
    }


def plot_utterances(
    means: Dict[str, float], categories: Dict[str, str], file: Path
) -> Dict[str, List[float]]:
    """Utterance confidence by condition; returns the values of each condition."""
    groups: Dict[str, List[float]] = {}
    for utt, mean in means.items():
        groups.setdefault(categories.get(utt, "all"), []).append(mean)
    groups = dict(sorted(groups.items(), key=lambda x: -np.mean(x[1])))
    figure, axes = plt.subplots(figsize=(7, 0.6 * len(groups) + 1.5))
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
    example: Scored, grid: FrameGrid, args: argparse.Namespace, file: Path
) -> None:
    """Spectrogram, confidence, and the masks that each strategy draws."""
    frames = len(example.confidence)
    seconds = (grid.offset + grid.shift * np.arange(frames)) / args.fs
    figure, (top, middle, odds, bottom) = plt.subplots(
        4, 1, figsize=(9, 6.5), sharex=True, height_ratios=[3, 1.5, 1.5, 1.2]
    )
    top.specgram(
        example.speech + 1e-8, NFFT=400, noverlap=240, Fs=args.fs, cmap="magma"
    )
    top.set(ylabel="Hz", title=f"{example.utt} ({example.category})")
    middle.plot(seconds, example.confidence, drawstyle="steps-mid")
    middle.set(ylabel="$s_t$", ylim=(0, 1.05))
    drawn = []
    for seed, strategy in enumerate(STRATEGIES):
        masks = sample_span_mask(
            torch.from_numpy(example.confidence).expand(DRAWS, -1),
            torch.full((DRAWS,), frames),
            args.mask_ratio,
            args.span,
            strategy,
            torch.Generator().manual_seed(seed),
        )
        odds.plot(seconds, masks.double().mean(dim=0), label=strategy)
        drawn.append(masks[0].numpy())
    odds.set(ylabel=f"masked,\n{DRAWS} draws", ylim=(0, 1.05))
    odds.legend(loc="upper right", ncols=len(STRATEGIES), fontsize="small")
    step = grid.shift / args.fs
    edges = np.append(seconds, seconds[-1] + step) - step / 2
    bottom.pcolormesh(edges, np.arange(len(drawn) + 1), np.stack(drawn), cmap="Greys")
    bottom.set(
        yticks=np.arange(len(drawn)) + 0.5,
        yticklabels=STRATEGIES,
        xlabel="s",
        xlim=(0, len(example.speech) / args.fs),
    )
    bottom.set_ylabel("one draw")
    bottom.invert_yaxis()
    save(figure, file)


def save(figure: plt.Figure, file: Path) -> None:
    """Write a figure and free it."""
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)


def choose_examples(scored: List[Scored], number: int) -> List[Scored]:
    """One utterance of each condition, the one of median length, then more of the first."""
    groups: Dict[str, List[Scored]] = {}
    for x in scored:
        groups.setdefault(x.category, []).append(x)
    ordered = [sorted(x, key=lambda y: len(y.speech)) for x in groups.values()]
    chosen = [group[len(group) // 2] for group in ordered]
    chosen += [x for group in ordered for x in group if x not in chosen]
    return chosen[:number]


def write_html(file: Path, title: str, parts: List[str]) -> None:
    """One page that needs no other file."""
    style = (
        "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "img{max-width:100%}table{border-collapse:collapse}"
        "td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left}"
    )
    file.write_text(
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>" + "\n".join(parts) + "</body></html>\n",
        encoding="utf-8",
    )


def picture(file: Path, caption: str) -> str:
    """An embedded PNG with its caption."""
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f"<p>{html.escape(caption)}</p>"
        f"<img alt='{html.escape(file.stem)}' src='data:image/png;base64,{data}'>"
    )


def html_table(rows: List[List[str]]) -> str:
    """A table whose first row is the head."""
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["<tr><th>" + "</th><th>".join(head) + "</th></tr>"]
    lines += ["<tr><td>" + "</td><td>".join(row) + "</td></tr>" for row in body]
    return "<table>" + "\n".join(lines) + "</table>"


def main(cmd=None) -> None:
    """Read, plot, write."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    check_options(args)
    folder = Path(args.confidence_dir)
    categories = read_categories(args)
    means = read_means(folder / "utt2confidence")
    scored = read_corpus(args)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    figures = plot_frames(scored, output / "frame_confidence.png")
    groups = plot_utterances(means, categories, output / "utterance_confidence.png")
    summary = [["", ""], ["utterances scored", str(len(means))]]
    summary += [
        [name, f"{value:.3f}" if isinstance(value, float) else str(value)]
        for name, value in figures.items()
    ]
    deciles = np.percentile(list(means.values()), range(10, 100, 10))
    summary.append(
        ["deciles of utterance confidence", " ".join(f"{x:.3f}" for x in deciles)]
    )
    by_condition = [["condition", "utterances", "mean", "least", "most"]] + [
        [name, str(len(x)), f"{np.mean(x):.3f}", f"{min(x):.3f}", f"{max(x):.3f}"]
        for name, x in groups.items()
    ]
    parts = [
        html_table(summary),
        "<h2>Frames</h2>",
        picture(
            output / "frame_confidence.png",
            f"Silence: energy {SILENCE_DB:g} dB or more below the loud frames of its "
            "utterance.",
        ),
        "<h2>Utterances</h2>",
        picture(
            output / "utterance_confidence.png",
            "Mean confidence of each utterance (Eq. 5), the weight of its loss in ATM+S.",
        ),
        html_table(by_condition),
        "<h2>Masks</h2>",
    ]
    grid = read_track_grid(str(folder / "confidence.scp"), args.fs)
    for number, example in enumerate(choose_examples(scored, args.num_examples), 1):
        file = output / f"example_{number}.png"
        plot_example(example, grid, args, file)
        parts.append(
            picture(
                file,
                f"How often each strategy masks a frame when it masks "
                f"{args.mask_ratio:.0%} of them in spans of {args.span}, and one draw of "
                "each (black: masked).",
            )
        )
    write_html(output / "report.html", f"Confidence of {folder.name}", parts)
    logging.info(f"written: {output / 'report.html'}")


if __name__ == "__main__":
    with one_line_errors("espnet_atm.bin.report"):
        main()

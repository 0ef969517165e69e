"""How sure a scorer is of a corpus, and how strongly that guides masks and weights.

Writes report.html and the PNG files in it, prints the figures, and writes them into the
``summary.json`` beside the scores.
"""

import argparse
import base64
import html
import json
import logging
import re
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

from espnet_atm.audio import Table, read_audio
from espnet_atm.files import write_once
from espnet_atm.bin.summary import read_summary
from espnet_atm.confidence import align_track, refine_confidence
from espnet_atm.config import SSLConf
from espnet_atm.errors import UserError, one_line_errors, read_config, read_text
from espnet_atm.frames import FrameGrid
from espnet_atm.guidance import (
    Guidance,
    Heard,
    as_text,
    measure_guidance,
    measure_weights,
    noise_that_outranks,
    warn,
)
from espnet_atm.masking import sample_span_mask
from espnet_atm.speech import speech_frames
from espnet_atm.track import MOST, TrackReader, read_scorer, read_track_grid
from espnet_atm.values import number, whole

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

SPEECH_COLOUR, OTHER_COLOUR = "tab:blue", "tab:orange"
DRAWS = 500
TITLE = "Confidence of"  # of the page, and what it is known by
RATE = 16000  # Hz, where nothing says another
ANY = "any"  # in place of what ESPnet's parser requires
WORDS = {
    "random": "evenly, the baseline",
    "high": "where the scorer is sure (Eq. 3)",
    "low": "where it is unsure (Eq. 4)",
    "mixed": "half of the spans each",
    "topk": "the most confident frames, without drawing",
    "shuffled": "as high, in another order: what guidance has to beat",
}


class Settings(NamedTuple):
    """What is about to be trained with.

    Args:
        conf: the checked ``ssl_conf``.
        fs: sampling rate of the audio in Hz.
        encoder: the frames that are masked; None for those of the track.
    """

    conf: SSLConf
    fs: int
    encoder: Optional[FrameGrid] = None


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--confidence_dir", required=True, help="of espnet_atm.bin.score"
    )
    parser.add_argument("--wav_scp", required=True, help="the audio that was scored")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--utt2category", help="condition of each utterance")
    parser.add_argument(
        "--ssl_config",
        help="the SSL config that is about to be used: its ssl_conf and its frames; else "
        "the defaults of ssl_conf, on the scorer's frames",
    )
    parser.add_argument("--mask_ratio", type=float, help="without --ssl_config")
    parser.add_argument("--span", type=int, help="without --ssl_config")
    parser.add_argument(
        "--fs", type=int, help=f"sampling rate in Hz, without --ssl_config ({RATE})"
    )
    parser.add_argument(
        "--max_utterances", type=int, default=1000, help="evenly taken for frame plots"
    )
    parser.add_argument("--num_examples", type=int, default=4, help="spectrograms")
    return parser


def read_settings(args: argparse.Namespace) -> Settings:
    """Check the options before anything is read or written.

    Raises:
        UserError: naming the option, and what is wrong with it.
    """
    whole("max_utterances", args.max_utterances, most=MOST)
    whole("num_examples", args.num_examples, least=0, most=MOST)
    given = {
        name: getattr(args, name)
        for name in ("mask_ratio", "span", "fs")
        if getattr(args, name) is not None
    }
    if args.ssl_config is None:
        fs = whole("fs", given.pop("fs", RATE), most=MOST)
        conf = SSLConf.parse({"masker_conf": given})
        conf.check_trainable()
        return Settings(conf, fs)
    if given:
        raise UserError(
            f"--{next(iter(given))}: is in --ssl_config {args.ssl_config}: leave it out"
        )
    read_config(args.ssl_config)
    from espnet_atm.task import ATMSSLTask, encoder_grid, sampling_rate  # slow

    options = ATMSSLTask.get_parser().parse_args(
        ["--config", args.ssl_config, "--output_dir", ANY]
    )
    if not options.ssl_conf:
        raise UserError(f"{args.ssl_config}: has no ssl_conf: nothing is guided")
    try:
        conf = SSLConf.parse(options.ssl_conf)
        conf.check_trainable()
        return Settings(conf, sampling_rate(options), encoder_grid(options))
    except ValueError as e:
        raise UserError(f"{args.ssl_config}: {e}") from None


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


class Corpus:
    """Utterances with their tracks on the frames that are masked.

    Args:
        args: the command line.
        settings: what is about to be trained with.

    Attributes:
        grid: those frames, in samples.

    Raises:
        UserError: when there are no scores, or they are not complete.
    """

    def __init__(self, args: argparse.Namespace, settings: Settings):
        self.scp = Path(args.confidence_dir) / "confidence.scp"
        self.wav_scp = args.wav_scp
        self.settings = settings
        self.track_grid = read_track_grid(str(self.scp), settings.fs, settings.encoder)
        self.grid = settings.encoder or self.track_grid
        self.tracks = TrackReader(self.scp)
        self.wavs = Table(args.wav_scp, 2)
        self.categories = read_categories(args)
        if not self.tracks:
            raise UserError(f"{self.scp} is empty: score the corpus first")
        self.tracks.check_complete()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tracks)

    def __len__(self) -> int:
        return len(self.tracks)

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
            self.categories.get(utt, "all"),
            confidence[0].numpy(),
            *(x[0].numpy() for x in found),
        )


def read_corpus(corpus: Corpus, most: int) -> List[Heard]:
    """An even selection of utterances, without their audio."""
    step = max(len(corpus) // most, 1)
    heard = [
        corpus.hear(utt)
        for utt in tqdm(list(corpus)[::step], unit="utt", mininterval=5, desc="listening")
    ]
    logging.info(f"{len(heard)} of {len(corpus)} utterances looked at")
    return heard


def plot_frames(heard: List[Heard], file: Path) -> Dict[str, float]:
    """Distribution of frame confidence, speech against the rest; its means."""
    confidence = np.concatenate([x.confidence for x in heard])
    speech = np.concatenate([x.speech for x in heard])
    figure, axes = plt.subplots(figsize=(8, 3.5))
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
    means: Dict[str, float], categories: Dict[str, str], file: Path
) -> Dict[str, List[float]]:
    """Utterance confidence by condition; returns the values of each condition."""
    groups: Dict[str, List[float]] = {}
    for utt, mean in means.items():
        groups.setdefault(categories.get(utt, "all"), []).append(mean)
    groups = dict(sorted(groups.items(), key=lambda x: -np.mean(x[1])))
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(groups) + 1.5))
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
    heard: Heard, audio: np.ndarray, grid: FrameGrid, settings: Settings, file: Path
) -> None:
    """Spectrogram, confidence, speech, and the masks that each strategy draws."""
    frames, fs = len(heard.confidence), settings.fs
    seconds = (grid.offset + grid.shift * np.arange(frames)) / fs
    figure, (top, middle, odds, bottom) = plt.subplots(
        4, 1, figsize=(10, 7.5), sharex=True, height_ratios=[3, 1.7, 2, 1.6]
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
    for seed, strategy in enumerate(WORDS):
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
        yticklabels=list(WORDS),
        xlabel="s",
        xlim=(0, len(audio) / fs),
    )
    bottom.set_ylabel("one draw")
    bottom.invert_yaxis()
    save(figure, file)


def save(figure: plt.Figure, file: Path) -> None:
    """Write a figure and free it."""
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)


def choose_examples(heard: List[Heard], most: int) -> List[Heard]:
    """One utterance of each condition, the one of median length, then more of the first."""
    groups: Dict[str, List[Heard]] = {}
    for x in heard:
        groups.setdefault(x.category, []).append(x)
    ordered = [sorted(x, key=lambda y: len(y.speech)) for x in groups.values()]
    chosen = [group[len(group) // 2] for group in ordered]
    names = {x.utt for x in chosen}
    chosen += [x for group in ordered for x in group if x.utt not in names]
    return chosen[:most]


def write_html(file: Path, title: str, parts: List[str]) -> None:
    """One page that needs no other file."""
    style = (
        "body{font-family:sans-serif;max-width:62em;margin:2em auto;padding:0 1em;"
        "line-height:1.4}img{max-width:100%}table{border-collapse:collapse}"
        "td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left}"
        "td:first-child,code{white-space:nowrap}tr.used{font-weight:bold}"
        ".warning,.advice,.fine{padding:.6em 1em;margin:.6em 0;border-left:.4em solid}"
        ".warning{background:#fdecea;border-color:#c62828}"
        ".advice{background:#fff6e0;border-color:#e69500}"
        ".fine{background:#e8f4ea;border-color:#2e7d32}"
    )
    file.write_text(
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>" + "\n".join(parts) + "</body></html>\n",
        encoding="utf-8",
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, of one of the page's styles."""
    style = f" class='{kind}'" if kind else ""
    text = html.escape(text.replace("+-", "\u00b1"))
    text = re.sub(r"--\w+", r"<code>\g<0></code>", text)
    return f"<p{style}>{text}</p>"


def picture(file: Path, caption: str) -> str:
    """An embedded PNG with its caption."""
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f"<p>{html.escape(caption)}</p>"
        f"<img alt='{html.escape(file.stem)}' src='data:image/png;base64,{data}'>"
    )


def html_table(rows: List[List[str]], used: str = "") -> str:
    """A table whose first row is the head; one may be marked, by its first cell."""
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{html.escape(x)}</th>" for x in head) + "</tr>"]
    for row in body:
        style = " class='used'" if used and row[0] == used else ""
        cells = "".join(f"<td>{html.escape(x)}</td>" for x in row)
        lines.append(f"<tr{style}>{cells}</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def guidance_page(
    guidance: Guidance,
    weights: Mapping[str, float],
    lines: List[str],
    settings: Settings,
    utterances: int,
) -> List[str]:
    """What comes first on the page: how strong the guidance is."""
    conf = settings.conf
    parts = ["<h2>How strong the guidance is</h2>"]
    parts += [paragraph(x.partition(": ")[2], x.partition(": ")[0]) for x in lines]
    if not conf.needs_confidence:
        parts.append(
            paragraph(
                "These settings use no confidence: masks are random, and utterances weigh "
                "alike. Here is what guidance would do."
            )
        )
    elif not lines:
        parts.append(paragraph("The confidence guides.", "fine"))
    parts.append(
        paragraph(
            "The scorer, a speech recogniser, says of each frame how sure it is of it: "
            "the confidence s_t, from 0 to 1. Ask2Mask hides frames where it is sure, "
            "and the model learns to fill them in; with loss_scale: utterance (ATM+S) an "
            "utterance counts by its mean confidence s_u. The figures are for "
            f"{conf.mask_ratio:.0%} of the frames masked in spans of {conf.span}"
            + (", the last of which is cut (exact)" if conf.exact else "")
            + (f", sharpness {conf.sharpness:g}" if conf.sharpness != 1 else "")
            + f"; masker: {conf.masker}, strategy: {conf.strategy}, loss_scale: "
            f"{conf.loss_scale}."
            + (
                f" Training takes {conf.crop_seconds:g} s of each utterance at most; "
                "here they are whole."
                if conf.crop_seconds
                else ""
            )
        )
    )
    rows = [
        ["strategy", "masks", "chance of a frame", "confidence", "non-speech"],
        *(
            [
                strategy,
                words,
                f"{conf.mask_ratio:.2f} \u00b1 "
                f"{guidance.strategies[strategy]['probability_sd']:.3f}",
                f"{guidance.strategies[strategy]['confidence_gain']:+.3f}",
                f"{100 * guidance.strategies[strategy]['nonspeech_share']:.1f} %",
            ]
            for strategy, words in WORDS.items()
        ),
        ["all frames", "", "", "", f"{100 * guidance.nonspeech_share:.1f} %"],
    ]
    parts.append(html_table(rows, conf.strategy))
    parts.append(
        paragraph(
            "Chance of a frame: the probability that it is masked, and how far it is from "
            "that by random masking (root mean square over frames; 0 guides nothing). "
            "Confidence: mean of the masked frames minus mean of all. Non-speech: masked "
            "frames outside of speech, in utterances with speech, as silero-vad hears it. "
            f"{100 * guidance.without_speech:.1f} % of the utterances hold no speech; a part "
            "of their frames is masked like that of others, whatever the strategy: only "
            "their weight, or --min_confidence, tells them apart."
        )
    )
    parts.append(
        paragraph(
            f"Weights of ATM+S: s_u spreads by {100 * weights['spread']:.1f} % of its "
            f"mean. The effective share of the corpus is "
            f"{100 * weights['effective_share']:.1f} %: it counts as "
            f"{round(weights['effective_share'] * utterances)} equally weighted utterances "
            f"of {utterances} would."
        )
    )
    return parts


def main(cmd=None) -> None:
    """Read, measure, plot, write."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    settings = read_settings(args)
    conf = settings.conf
    folder, output = Path(args.confidence_dir), Path(args.output_dir)
    page = output / "report.html"
    if page.exists() and TITLE not in read_text(page)[:500]:
        raise UserError(
            f"{page} was not made by espnet_atm.bin.report, and is not written over; give "
            "another --output_dir"
        )
    corpus = Corpus(args, settings)
    means = read_means(folder / "utt2confidence")
    summary = read_summary(folder, settings.fs, len(means))
    heard = read_corpus(corpus, args.max_utterances)
    guidance = measure_guidance(heard, conf.masking())
    weights = measure_weights(means.values(), conf.weight_sharpness)
    outranking = noise_that_outranks(heard, means, corpus.categories)
    gated = bool((read_scorer(folder) or {}).get("speech_gate"))
    lines = warn(guidance, weights, outranking, conf.masking(), gated)
    summary.update(
        guidance=guidance.strategies,
        nonspeech_share=guidance.nonspeech_share,
        without_speech=guidance.without_speech,
        weights=weights,
        guidance_settings={
            "masker": conf.masker,
            **conf.masking(),
            "loss_scale": conf.loss_scale,
            "speech_gate": gated,
        },
        warnings=lines,
    )

    output.mkdir(parents=True, exist_ok=True)
    figures = plot_frames(heard, output / "frame_confidence.png")
    groups = plot_utterances(
        means, corpus.categories, output / "utterance_confidence.png"
    )
    rows = [["", ""], ["utterances scored", str(len(means))]]
    rows += [
        [name, f"{value:.3f}" if isinstance(value, float) else str(value)]
        for name, value in figures.items()
    ]
    deciles = np.percentile(list(means.values()), range(10, 100, 10))
    rows.append(
        ["deciles of utterance confidence", " ".join(f"{x:.3f}" for x in deciles)]
    )
    shares: Dict[str, List[float]] = {}
    for x in heard:
        shares.setdefault(x.category, []).append(x.speech.mean())
    by_condition = [["condition", "utterances", "mean", "least", "most", "speech"]] + [
        [
            *(name, str(len(x)), f"{np.mean(x):.3f}", f"{min(x):.3f}", f"{max(x):.3f}"),
            f"{100 * np.mean(shares[name]):.0f} %" if name in shares else "",
        ]
        for name, x in groups.items()
    ]
    parts = [
        *guidance_page(guidance, weights, lines, settings, len(means)),
        "<h2>Utterances</h2>",
        picture(
            output / "utterance_confidence.png",
            "Mean confidence of each utterance (Eq. 5), the weight of its loss in ATM+S.",
        ),
        html_table(by_condition),
        paragraph("speech: part of the frames that silero-vad takes for speech."),
        "<h2>Frames</h2>",
        html_table(rows),
        picture(
            output / "frame_confidence.png",
            "Frames in silero-vad's segments of speech, and the others.",
        ),
        "<h2>Masks</h2>",
        paragraph(
            "Examples: the confidence and the probability of speech, how often each "
            f"strategy masks a frame when it masks {conf.mask_ratio:.0%} of them, and one "
            "draw of each (black: masked)."
        ),
    ]
    for n, example in enumerate(choose_examples(heard, args.num_examples), 1):
        file = output / f"example_{n}.png"
        plot_example(example, corpus.audio(example.utt), corpus.grid, settings, file)
        parts.append(picture(file, f"{example.utt} ({example.category})"))
    write_html(page, f"{TITLE} {folder.name}", parts)
    text = as_text(summary)
    (output / "guidance.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    # Last: where it says so, all of the report is there.
    write_once(folder / "summary.json", json.dumps(summary, indent=2))
    print("\n".join(text))
    logging.info(f"written: {page}")


if __name__ == "__main__":
    with one_line_errors("espnet_atm.bin.report"):
        main()

"""The report on a scored corpus: report.html with its plots, and summary.json."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping

import numpy as np

from espnet_atm.corpus import Corpus, Means, Settings, read_corpus
from espnet_atm.errors import UserError, read_text
from espnet_atm.files import write_line
from espnet_atm.guidance import (
    Guidance,
    Heard,
    as_text,
    measure_guidance,
    measure_weights,
    noise_that_outranks,
    warn,
)
from espnet_atm.plots import plot_example, plot_frames, plot_utterances
from espnet_atm.summary import read_summary
from espnet_atm.track import read_scorer

TITLE = "Confidence of"  # of the page, and what it is known by
WORDS = {
    "random": "evenly, the baseline",
    "high": "where the scorer is sure (Eq. 3)",
    "low": "where it is unsure (Eq. 4)",
    "mixed": "half of the spans each",
    "topk": "the most confident frames, without drawing",
    "shuffled": "as high, in another order: what guidance has to beat",
}


def refuse_foreign(page: Path) -> None:
    """Refuse to write over a page that is no report.

    Raises:
        UserError: naming it.
    """
    if page.exists() and TITLE not in read_text(page)[:500]:
        raise UserError(
            f"{page} was not made by espnet_atm.bin.report, and is not written over; give "
            "another --output_dir"
        )


def make_report(
    corpus: Corpus, page: Path, max_utterances: int, num_examples: int
) -> Dict[str, Any]:
    """Measure, plot, and write the page, ``guidance.txt`` beside it and ``summary.json``.

    Args:
        corpus: what is reported on.
        page: the HTML file; its folder, which is made, holds the plots too.
        max_utterances: evenly taken for what is measured frame by frame.
        num_examples: utterances whose masks are shown.

    Returns:
        What was written into ``summary.json`` beside the scores.

    Raises:
        UserError: before anything is written, naming what is wrong with the scores, the
            audio or a ``summary.json`` that is there.
    """
    settings, folder, output = corpus.settings, corpus.folder, page.parent
    conf = settings.conf
    means = Means(corpus)
    summary = read_summary(folder, settings.fs, len(means.values))
    heard = read_corpus(corpus, max_utterances)
    guidance = measure_guidance(heard, conf.masking())
    weights = measure_weights(means.values, conf.weight_sharpness)
    outranking = noise_that_outranks(heard, [means[x.utt] for x in heard], means.groups)
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
    parts = [
        *guidance_part(guidance, weights, lines, settings, len(means.values)),
        *utterances_part(heard, means.groups, output),
        *frames_part(heard, means.values, output),
        *masks_part(corpus, choose_examples(heard, num_examples), output),
    ]
    write_html(page, f"{TITLE} {folder.name}", parts)
    text = "\n".join(as_text(summary)) + "\n"
    (output / "guidance.txt").write_text(text, encoding="utf-8")
    # Last: where it says so, all of the report is there.
    write_line(folder / "summary.json", json.dumps(summary, indent=2))
    return summary


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


def guidance_part(
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


def utterances_part(
    heard: List[Heard], groups: Mapping[str, np.ndarray], output: Path
) -> List[str]:
    """How sure the scorer is of the utterances of each condition."""
    file = output / "utterance_confidence.png"
    groups = plot_utterances(groups, file)
    shares: Dict[str, List[float]] = {}
    for x in heard:
        shares.setdefault(x.category, []).append(x.speech.mean())
    by_condition = [["condition", "utterances", "mean", "least", "most", "speech"]] + [
        [
            *(name, str(len(x)), f"{x.mean():.3f}", f"{x.min():.3f}", f"{x.max():.3f}"),
            f"{100 * np.mean(shares[name]):.0f} %" if name in shares else "",
        ]
        for name, x in groups.items()
    ]
    return [
        "<h2>Utterances</h2>",
        picture(
            file,
            "Mean confidence of each utterance (Eq. 5), the weight of its loss in ATM+S.",
        ),
        html_table(by_condition),
        paragraph("speech: part of the frames that silero-vad takes for speech."),
    ]


def frames_part(heard: List[Heard], means: np.ndarray, output: Path) -> List[str]:
    """How sure it is of frames, of speech and others."""
    file = output / "frame_confidence.png"
    rows = [["", ""], ["utterances scored", str(len(means))]]
    rows += [
        [name, f"{value:.3f}" if isinstance(value, float) else str(value)]
        for name, value in plot_frames(heard, file).items()
    ]
    deciles = np.percentile(means, range(10, 100, 10))
    rows.append(
        ["deciles of utterance confidence", " ".join(f"{x:.3f}" for x in deciles)]
    )
    return [
        "<h2>Frames</h2>",
        html_table(rows),
        picture(file, "Frames in silero-vad's segments of speech, and the others."),
    ]


def masks_part(corpus: Corpus, examples: List[Heard], output: Path) -> List[str]:
    """Where the masks of each strategy fall, in a few utterances."""
    parts = [
        "<h2>Masks</h2>",
        paragraph(
            "Examples: the confidence and the probability of speech, how often each "
            f"strategy masks a frame when it masks {corpus.settings.conf.mask_ratio:.0%} "
            "of them, and one draw of each (black: masked)."
        ),
    ]
    for n, example in enumerate(examples, 1):
        file = output / f"example_{n}.png"
        plot_example(example, corpus.audio(example.utt), corpus, list(WORDS), file)
        parts.append(picture(file, f"{example.utt} ({example.category})"))
    return parts

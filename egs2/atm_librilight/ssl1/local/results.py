#!/usr/bin/env python3
"""Put the error rates of a run into RESULTS.md, or say at its end what it has come to.

Errors are counted by sclite where ESPnet's scoring stage left its counts, else by jiwer;
the last column says whose. Rows of other runs stay as they are.
"""

import argparse
import fcntl
import re
import statistics
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

import jiwer
import numpy as np

from espnet_atm.errors import UserError, one_line_errors

HEADER = ["corpus", "run", "seed", "test set", "utterances", "WER %", "CER %", "scored by"]
NUMBERS = ("seed", "utterances", "WER %", "CER %")
RATES = ("WER %", "CER %")
TITLE = (
    "# Results\n\nWritten by stage 12: a row for each run, seed and test set, and, where a "
    "run has several\nseeds, their mean and standard deviation.\n\n"
)
MEAN = "mean of "  # in the column of seeds
DRAWS = 10000
CHUNK = 2**22  # utterances drawn at a time
SEED = 0
# Fewer than this say nothing, however wide the interval.
FEW = 20

Row = Dict[str, str]


class Counts(NamedTuple):
    """Errors in a test set, in the order of its utterances.

    Args:
        errors: of each utterance (N,), int.
        lengths: words or characters of its reference (N,), int.
    """

    errors: np.ndarray
    lengths: np.ndarray

    @property
    def rate(self) -> float:
        """In percent of the reference."""
        return 100 * self.errors.sum() / max(self.lengths.sum(), 1)


def read_text(file: Path) -> Dict[str, str]:
    """A Kaldi text file; utterances without words are there too."""
    rows = (line.rstrip("\n").partition(" ") for line in file.open(encoding="utf-8"))
    return {utt: words.strip() for utt, _, words in rows}


def sclite_counts(file: Path, utts: List[str]) -> Counts | None:
    """What sclite counted, of each utterance; None where it did not.

    Args:
        file: ``result.txt`` of ESPnet's scoring stage: its ids are ``(speaker-utterance)``,
            in lower case.
        utts: of the test set.
    """
    if not file.is_file():
        return None
    found = re.findall(
        r"^id: \((.*)\)\nScores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)$",
        file.read_text(encoding="utf-8", errors="replace"),
        re.MULTILINE,
    )
    if len(found) != len(utts):
        return None
    scores = np.array([list(map(int, x)) for _, *x in sorted(found)]).reshape(-1, 4)
    correct, substituted, deleted, inserted = scores.T
    return Counts(substituted + deleted + inserted, correct + substituted + deleted)


def jiwer_counts(refs: List[str], hyps: List[str], what: str) -> Counts:
    """What jiwer counts, of each utterance."""
    process = jiwer.process_words if what == "wer" else jiwer.process_characters
    errors, lengths = [], []
    for ref, hyp in zip(refs, hyps):
        if not ref:  # which jiwer refuses
            errors.append(len(hyp.split()) if what == "wer" else len(hyp))
            lengths.append(0)
            continue
        out = process(ref, hyp)
        errors.append(out.substitutions + out.deletions + out.insertions)
        lengths.append(out.hits + out.substitutions + out.deletions)
    return Counts(np.array(errors), np.array(lengths))


def count(reference: Path, decoded: Path, by: str = "") -> Tuple[Dict[str, Counts], str]:
    """Errors in words and in characters (``wer``, ``cer``), and who counted.

    Args:
        reference: the text of a test set.
        decoded: the folder of what was decoded.
        by: ``jiwer``, to have it count though sclite has.

    Raises:
        UserError: when hypotheses are missing.
    """
    ref, hyp = read_text(reference), read_text(decoded / "text")
    missing = sorted(set(ref) - set(hyp))
    if missing:
        raise UserError(
            f"{decoded}/text: no hypothesis for {missing[0]} and {len(missing) - 1} more "
            f"of {len(ref)} utterances of {reference}"
        )
    utts = sorted(ref)
    if by != "jiwer":
        found = {
            x: sclite_counts(decoded / f"score_{x}" / "result.txt", utts)
            for x in ("wer", "cer")
        }
        if None not in found.values():
            return found, "sclite"
    texts = [ref[x] for x in utts], [hyp[x] for x in utts]
    return {x: jiwer_counts(*texts, x) for x in ("wer", "cer")}, "jiwer"


def count_alike(reference: Path, folders: Sequence[Path]) -> List[Dict[str, Counts]]:
    """:func:`count` of several models, by the same program: each aligns in its own way."""
    found = [count(reference, x) for x in folders]
    if len({by for _, by in found}) > 1:
        found = [count(reference, x, by="jiwer") for x in folders]
    return [counts for counts, _ in found]


class Units(NamedTuple):
    """What of a test set is drawn together.

    Args:
        of: the unit of each utterance (N,), int.
        name: ``speakers`` or ``utterances``.
    """

    of: np.ndarray
    name: str

    @property
    def total(self) -> int:
        """How many there are."""
        return len(np.unique(self.of))

    @property
    def too_few(self) -> bool:
        """Whether they say nothing, however wide the interval."""
        return self.total < FEW

    def __str__(self) -> str:
        return f"{self.total} {self.name}"

    def together(self, counts: Counts) -> Counts:
        """The errors of each unit."""
        _, place = np.unique(self.of, return_inverse=True)
        errors, lengths = (
            np.bincount(place, weights=x).round().astype(int) for x in counts
        )
        return Counts(errors, lengths)


def read_units(data: Path) -> Units:
    """Speakers, whose utterances are right or wrong together, or utterances.

    Few speakers cannot stand for others; then utterances are drawn, whose interval is too
    narrow.

    Args:
        data: folder of the test set, with ``text`` and, where speakers are known,
            ``utt2spk``.
    """
    utts = sorted(read_text(data / "text"))
    file = data / "utt2spk"
    speakers = read_text(file) if file.is_file() else {}
    known = sorted({speakers.get(x, x) for x in utts})
    if FEW <= len(known) < len(utts):
        number = {x: n for n, x in enumerate(known)}
        of = [number[speakers.get(x, x)] for x in utts]
        return Units(np.array(of), "speakers")
    return Units(np.arange(len(utts)), "utterances")


def paired_interval(one: Counts, other: Counts) -> Tuple[float, float, float]:
    """How much lower or higher one error rate is than another of the same utterances.

    What is counted (utterances or, better, speakers: :class:`Units`) is drawn with
    replacement, the same for both (Bisani and Ney, "Bootstrap
    estimates for confidence intervals in ASR performance evaluation", ICASSP 2004).

    Returns:
        The difference in percentage points, and its 95 % interval.
    """
    rng = np.random.default_rng(SEED)
    total = len(one.errors)
    sums = []
    size = max(CHUNK // max(total, 1), 1)
    for begin in range(0, DRAWS, size):
        drawn = rng.integers(total, size=(min(size, DRAWS - begin), total))
        sums.append(
            100
            * (one.errors - other.errors)[drawn].sum(axis=1)
            / np.maximum(one.lengths[drawn].sum(axis=1), 1)
        )
    low, high = np.percentile(np.concatenate(sums), [2.5, 97.5])
    return one.rate - other.rate, float(low), float(high)


# --- RESULTS.md -----------------------------------------------------------------------


def read_parts(file: Path) -> List[str]:
    """RESULTS.md as its table, with the text before it, and its further sections."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return re.split(r"^(?=## )", text, flags=re.MULTILINE)


def read_rows(file: Path) -> List[Row]:
    """The rows of the table in RESULTS.md, without means over seeds."""
    lines = [x for x in read_parts(file)[0].splitlines() if x.startswith("|")]
    cells = [[cell.strip() for cell in x.strip("|").split("|")] for x in lines]
    if not cells:
        return []
    header, _, *rows = cells
    # An earlier version had no column of seeds: they were ESPnet's default.
    found = [{"seed": "0", **dict(zip(header, row))} for row in rows]
    return [row for row in found if not row["seed"].startswith(MEAN)]


def write_parts(file: Path, parts: List[str]) -> None:
    """Write RESULTS.md, whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(
        "\n".join(x.rstrip("\n") + "\n" for x in parts), encoding="utf-8"
    )
    partial.replace(file)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold RESULTS.md: two runs may end together."""
    with file.with_name(".RESULTS.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def put_section(file: Path, title: str, body: str) -> None:
    """Write a section of RESULTS.md, in place of what it was."""
    with locked(file):
        head, *sections = read_parts(file)
        head = head or TITLE
        sections = [x for x in sections if not x.startswith(f"## {title}\n")]
        sections.append(f"## {title}\n\n{body}\n")
        write_parts(file, [head, *sorted(sections)])


def place(row: Row) -> Tuple[str, str, str, int, str]:
    """What a row is sorted by."""
    seed = row["seed"]
    number = int(seed) if seed.isdigit() else 10**9  # means come last
    return row["corpus"], row["test set"], row["run"], number, seed


def with_means(rows: List[Row]) -> List[Row]:
    """The rows, and one more for each run and test set of several seeds."""
    groups: Dict[Tuple[str, str, str], List[Row]] = {}
    for row in rows:
        groups.setdefault((row["corpus"], row["run"], row["test set"]), []).append(row)
    means = []
    for group in groups.values():
        if len(group) > 1:
            mean = {**group[0], "seed": f"{MEAN}{len(group)}"}
            mean["scored by"] = ", ".join(sorted({x["scored by"] for x in group}))
            for name in RATES:
                rates = [float(x[name]) for x in group]
                spread = statistics.stdev(rates)
                mean[name] = f"{statistics.mean(rates):.1f} ± {spread:.1f}"
            means.append(mean)
    return sorted(rows + means, key=place)


def table(rows: List[Row], columns: List[str] = HEADER) -> str:
    """A Markdown table."""
    rule = ["---:" if x in NUMBERS else "---" for x in columns]
    cells = [[row[x] for x in columns] for row in rows]
    return "\n".join("| " + " | ".join(x) + " |" for x in [columns, rule, *cells])


# --------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """A model's hypotheses: its run, seed, and the folder that holds them."""

    run: str
    seed: str
    folder: Path


def decoded(text: str) -> Decoded:
    """``RUN,SEED,FOLDER`` of the command line."""
    run, seed, folder = text.split(",", 2)
    return Decoded(run, seed, Path(folder))


def put(args: argparse.Namespace) -> None:
    """Put rows into RESULTS.md."""
    with locked(args.results):
        rows = read_rows(args.results)
        for model in args.put:
            for name in args.test_sets:
                counts, scorer = count(
                    args.data_dir / name / "text", model.folder / name
                )
                row = {
                    "corpus": args.corpus,
                    "run": model.run,
                    "seed": model.seed,
                    "test set": name,
                    "utterances": str(len(counts["wer"].errors)),
                    "WER %": f"{counts['wer'].rate:.1f}",
                    "CER %": f"{counts['cer'].rate:.1f}",
                    "scored by": scorer,
                }
                rows = [x for x in rows if place(x) != place(row)] + [row]
        head = TITLE + table(with_means(rows))
        write_parts(args.results, [head, *read_parts(args.results)[1:]])


def differences(args: argparse.Namespace, model: Decoded, baseline: Decoded) -> List[str]:
    """A line for each test set."""
    lines = []
    for name in args.test_sets:
        data = args.data_dir / name
        counts = count_alike(data / "text", [x.folder / name for x in (model, baseline)])
        units = read_units(data)
        said = []
        for what in RATES:
            one, other = (units.together(x[what[:3].lower()]) for x in counts)
            numbers = paired_interval(one, other)
            change, *bounds = (f"{round(x, 1) + 0.0:+.1f}" for x in numbers)  # no -0.0
            said.append(f"{what[:3]} {change} [{', '.join(bounds)}]")
        few = " are too few to tell" if units.too_few else ""
        lines.append(f"  {name}: {', '.join(said)}; {units}{few}")
    return lines


def show(args: argparse.Namespace) -> None:
    """Print the rows of some models, and how far they are from a baseline."""
    models = [*args.show, *([args.baseline] if args.baseline else [])]
    wanted = {(x.run, x.seed): n for n, x in enumerate(models)}
    rows = [
        row
        for row in with_means(read_rows(args.results))
        if row["corpus"] == args.corpus
        and (row["run"], row["seed"]) in wanted
        and row["test set"] in args.test_sets
    ]
    rows.sort(key=lambda row: (row["test set"], wanted[row["run"], row["seed"]]))
    print(table(rows, HEADER[1:]))
    if args.baseline is None:
        return
    for model in args.show:
        print(
            f"\n{model.run}, seed {model.seed}, against {args.baseline.run}, "
            f"{args.which}:\npercentage points (below 0: fewer errors), and the 95 % interval of "
            f"{DRAWS} paired draws of what is named"
        )
        print("\n".join(differences(args, model, args.baseline)))


def main(cmd=None) -> None:
    """Update or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--data_dir", type=Path, required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    form = {"type": decoded, "metavar": "RUN,SEED,FOLDER"}
    what.add_argument("--put", **form, action="append", help="into the table")
    what.add_argument("--show", **form, action="append", help="this run's rows")
    parser.add_argument("--baseline", **form, help="to show the others against")
    parser.add_argument("--which", default="the baseline", help="what that one is")
    parser.add_argument("test_sets", nargs="+")
    args = parser.parse_args(cmd)
    (put if args.put else show)(args)


if __name__ == "__main__":
    with one_line_errors("results.py"):
        main()

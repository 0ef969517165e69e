#!/usr/bin/env python3
"""Put the error rates of a run into RESULTS.md, or print the table of a corpus.

The figures are sclite's where ESPnet's scoring stage left them, else jiwer's; the last
column says whose. Rows of other runs stay as they are.
"""

import argparse
import fcntl
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import jiwer

HEADER = ["corpus", "run", "test set", "utterances", "WER %", "CER %", "scored by"]
TITLE = "# Results\n\nWritten by stage 12, one row for each run and test set.\n\n"


def read_text(file: Path) -> Dict[str, str]:
    """A Kaldi text file; utterances without words are there too."""
    rows = (line.rstrip("\n").partition(" ") for line in file.open(encoding="utf-8"))
    return {utt: words.strip() for utt, _, words in rows}


def sclite_rate(file: Path) -> float | None:
    """The error rate of the ``Sum/Avg`` line, in percent."""
    if not file.is_file():
        return None
    found = re.search(
        r"Sum/Avg[^\n]*", file.read_text(encoding="utf-8", errors="replace")
    )
    if found is None:
        return None
    # Sum/Avg | sentences words | Corr Sub Del Ins Err S.Err |
    return float(found.group().split("|")[2].split()[4])


def rates(reference: Path, decoded: Path) -> Tuple[int, float, float, str]:
    """Utterances, WER, CER and who scored.

    Raises:
        ValueError: when hypotheses are missing.
    """
    ref, hyp = read_text(reference), read_text(decoded / "text")
    missing = sorted(set(ref) - set(hyp))
    if missing:
        raise ValueError(
            f"{decoded}/text: no hypothesis for {missing[0]} and {len(missing) - 1} more "
            f"of {len(ref)} utterances of {reference}"
        )
    wer = sclite_rate(decoded / "score_wer" / "result.txt")
    cer = sclite_rate(decoded / "score_cer" / "result.txt")
    if wer is not None and cer is not None:
        return len(ref), wer, cer, "sclite"
    refs, hyps = [ref[utt] for utt in ref], [hyp[utt] for utt in ref]
    return len(ref), 100 * jiwer.wer(refs, hyps), 100 * jiwer.cer(refs, hyps), "jiwer"


def read_parts(file: Path) -> List[str]:
    """RESULTS.md as its table, with the text before it, and its further sections."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return re.split(r"^(?=## )", text, flags=re.MULTILINE)


def read_rows(file: Path) -> List[List[str]]:
    """The rows of the table in RESULTS.md."""
    lines = [x for x in read_parts(file)[0].splitlines() if x.startswith("|")]
    return [[cell.strip() for cell in x.strip("|").split("|")] for x in lines[2:]]


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


def table(rows: List[List[str]]) -> str:
    """A Markdown table."""
    rule = ["---"] * 3 + ["---:"] * 3 + ["---"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [HEADER, rule, *rows])


def main() -> None:
    """Update or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--run")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--decode_dir", type=Path)
    parser.add_argument("test_sets", nargs="*")
    args = parser.parse_args()
    if args.run is None:
        rows = read_rows(args.results)
        print(table([row for row in rows if row[0] == args.corpus]))
        return
    with locked(args.results):
        rows = read_rows(args.results)
        for name in args.test_sets:
            utts, wer, cer, scorer = rates(
                args.data_dir / name / "text", args.decode_dir / name
            )
            row = [args.corpus, args.run, name, str(utts)]
            row += [f"{wer:.1f}", f"{cer:.1f}", scorer]
            rows = [r for r in rows if r[:3] != row[:3]] + [row]
        rows.sort(key=lambda row: (row[0], row[2], row[1]))
        sections = read_parts(args.results)[1:]
        write_parts(args.results, [TITLE + table(rows), *sections])


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The transcripts of AMI, from its NXT XML to the lines that ESPnet's recipe reads.

ESPnet's own way is NXT's query tool, a Java program that it downloads. The files are
``words/<meeting>.<agent>.words.xml``, ``segments/<meeting>.<agent>.segments.xml`` and
``corpusResources/meetings.xml`` of ``ami_public_manual_1.6``.
"""

import argparse
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kaldi_data import walk

NITE = "{http://nite.sourceforge.net/}"
MICS = {"ihm": "{meeting}.Headset-{channel}.wav", "sdm1": "{meeting}.Array1-01.wav"}


def parse(file: Path) -> ElementTree.Element:
    """Read an XML file.

    Raises:
        ValueError: naming the file.
    """
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError) as e:
        raise ValueError(f"{file}: {e}") from None


def read_speakers(annotations: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Name and channel by (meeting, agent)."""
    root = parse(annotations / "corpusResources" / "meetings.xml")
    return {
        (meeting.get("observation"), speaker.get("nxt_agent")): (
            speaker.get("global_name"),
            speaker.get("channel"),
        )
        for meeting in root.iter("meeting")
        for speaker in meeting.iter("speaker")
    }


def segments_of(
    words_file: Path, segments_file: Path
) -> Iterator[tuple[dict[str, str], list[ElementTree.Element]]]:
    """Each segment's attributes and its words, punctuation among them.

    Raises:
        ValueError: naming the file and the word that a segment has and that is not there.
    """
    elements = [x for x in parse(words_file) if x.get(f"{NITE}id")]
    index = {x.get(f"{NITE}id"): i for i, x in enumerate(elements)}
    for segment in parse(segments_file).iter("segment"):
        words = []
        for child in segment.iter(f"{NITE}child"):
            ends = re.findall(r"id\(([^)]+)\)", child.get("href", ""))
            for end in ends:
                if end not in index:
                    raise ValueError(f"{segments_file}: {end} is not in {words_file}")
            if ends:
                words += elements[index[ends[0]] : index[ends[-1]] + 1]
        yield dict(segment.attrib), [x for x in words if x.tag == "w" and x.text]


def transcript_lines(
    annotations: Path, meeting: str, agent: str, speakers
) -> list[str]:
    """What NXT's query says of a meeting's speaker, a line for each segment.

    The fields are meeting, agent, speaker, channel, begin and end that the transcriber
    gave, begin and end of the words, the words, and the time of each punctuation mark.
    """
    if (meeting, agent) not in speakers:
        raise ValueError(
            f"corpusResources/meetings.xml has no {meeting}, agent {agent}"
        )
    name, channel = speakers[meeting, agent]
    lines = []
    for attributes, words in segments_of(
        annotations / "words" / f"{meeting}.{agent}.words.xml",
        annotations / "segments" / f"{meeting}.{agent}.segments.xml",
    ):
        times = [float(x.get("starttime")) for x in words if x.get("starttime")]
        ends = [float(x.get("endtime")) for x in words if x.get("endtime")]
        if not times or not ends:
            continue
        marks = [
            x.get("starttime")
            for x in words
            if x.get("punc") == "true" and x.get("starttime")
        ]
        fields = [
            *(meeting, agent, name, channel),
            *(attributes.get("transcriber_start"), attributes.get("transcriber_end")),
            *(f"{min(times):.2f}", f"{max(ends):.2f}"),
            *(" ".join(x.text.split()) for x in words),
            *marks,
        ]
        lines.append(" ".join(map(str, fields)))
    return lines


def write_transcripts(annotations: Path, amicorpus: Path, output: Path) -> None:
    """Write every speaker's segments; say which meetings have audio but no transcript."""
    speakers = read_speakers(annotations)
    pairs = sorted(
        tuple(x.name.split(".")[:2])
        for x in (annotations / "words").glob("*.*.words.xml")
    )
    problems, written = Counter(), set()
    with output.open("w", encoding="utf-8") as f:
        for meeting, agent in pairs:
            try:
                lines = transcript_lines(annotations, meeting, agent, speakers)
            except ValueError as e:
                print(f"AMI: {e}", file=sys.stderr)
                problems["speakers of a meeting whose annotation cannot be read"] += 1
                continue
            if lines:
                written.add(meeting)
            f.writelines(f"{x}\n" for x in lines)
    heard = {x.name.split(".")[0] for x in walk(amicorpus) if x.suffix == ".wav"}
    for meeting in sorted(heard - written):
        print(
            f"AMI: meeting {meeting} has audio but no transcripts in {annotations}",
            file=sys.stderr,
        )
        problems["meetings with audio but without transcripts"] += 1
    print(f"AMI: {len(written)} meetings with transcripts", file=sys.stderr)
    for what, count in problems.items():
        print(f"AMI: {count} {what}", file=sys.stderr)
    if not written:
        sys.exit(f"AMI: no transcript in {annotations}")


def select(transcripts: Path, amicorpus: Path, mic: str, output: Path) -> None:
    """Keep the lines whose audio is there."""
    there = {x.name for x in walk(amicorpus) if x.suffix == ".wav" and x.exists()}
    missing, kept = Counter(), 0
    with (
        transcripts.open(encoding="utf-8") as f,
        output.open("w", encoding="utf-8") as g,
    ):
        for line in f:
            meeting, channel = line.split()[:2]
            wav = MICS[mic].format(meeting=meeting, channel=channel.removeprefix("H0"))
            if wav in there:
                kept += 1
                g.write(line)
            else:
                missing[wav] += 1
    for wav, count in sorted(missing.items()):
        print(f"AMI: no {wav}: {count} utterances left out", file=sys.stderr)
    print(f"AMI: {output.name} for {mic}: {kept} utterances kept", file=sys.stderr)


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("transcripts")
    one.add_argument("--annotations", type=Path, required=True)
    one.add_argument("--amicorpus", type=Path, required=True)
    one.add_argument("output", type=Path)
    two = commands.add_parser("select")
    two.add_argument("--amicorpus", type=Path, required=True)
    two.add_argument("--mic", choices=MICS, required=True)
    two.add_argument("transcripts", type=Path)
    two.add_argument("output", type=Path)
    args = parser.parse_args()
    try:
        if args.command == "transcripts":
            write_transcripts(args.annotations, args.amicorpus, args.output)
        else:
            select(args.transcripts, args.amicorpus, args.mic, args.output)
    except ValueError as e:
        sys.exit(f"AMI: {e}")


if __name__ == "__main__":
    main()

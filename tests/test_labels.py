"""Stored labels: what is written is read again, and never another utterance's."""

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from espnet_atm.audio import Table, checksum
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid
from espnet_atm.labels import HEADER, Labels, LabelWriter, read_label_grid, read_labeller

LABELLER = {
    "features": "mfcc",
    "kmeans": "0123",
    "num_classes": 1 << 16,
    "frame_shift": 320,
    "frame_offset": 199.5,
    "sampling_rate": 16000,
}
# Ids that end alike, and labels of few bytes, of none, and of the largest.
STORED = {
    "a": [0, 65535, 256, 255],
    "ba": list(range(40)),
    "c/a": [7],
    "d": [],
    "é": [1] * 9,
}
SPEECH = {utt: np.full(100 + n, 0.1 * n) for n, utt in enumerate(STORED)}


def write(folder, utterances, stored=STORED, labeller=LABELLER, most=None) -> None:
    """Label what is not labelled yet, but no more than so many utterances."""
    folder.mkdir(exist_ok=True)
    with LabelWriter(folder, utterances, labeller) as writer:
        left = [
            (index, utt)
            for index, (utt, _) in enumerate(utterances)
            if not writer.done[index]
        ]
        writer.write(
            {index: np.array(stored[utt], np.int64) for index, utt in left[:most]},
            {index: checksum(SPEECH[utt]) for index, utt in left[:most]},
        )


def utterances_of(file: Path, utts) -> Table:
    file.write_text("".join(f"{utt} {utt}.wav\n" for utt in utts))
    return Table(file, 2)


@pytest.fixture
def utterances(tmp_path) -> Table:
    return utterances_of(tmp_path / "wav.scp", STORED)


@pytest.fixture
def folder(tmp_path, utterances) -> Path:
    write(tmp_path / "labels", utterances)
    return tmp_path / "labels"


def contents(folder) -> dict:
    return {x.name: x.read_bytes() for x in folder.iterdir() if x.name != ".lock"}


def check_all(folder) -> None:
    found = Labels(folder / "labels.scp")
    assert list(found) == list(STORED) and len(found) == len(STORED)
    for utt, expected in STORED.items():
        assert found[utt].dtype == np.int64 and found[utt].tolist() == expected
        found.check_audio(utt, SPEECH[utt])


def test_what_is_written_is_read(folder):
    check_all(folder)
    assert set(contents(folder)) == {"labels.scp", "labels.bin", "labeller", "skipped"}
    assert (folder / "skipped").read_text() == ""
    ids = sum(len(utt.encode()) + 1 for utt in STORED)
    frames = sum(map(len, STORED.values()))
    size = (folder / "labels.bin").stat().st_size
    assert size == ids + len(STORED) * HEADER.size + 2 * frames
    assert read_labeller(folder) == LABELLER
    assert read_label_grid(str(folder / "labels.scp"), 16000) == FrameGrid(320, 199.5)


def test_an_utterance_without_labels_is_none(folder):
    found = Labels(folder / "labels.scp")
    assert "nobody" not in found and found.get("nobody") is None
    with pytest.raises(KeyError, match="nobody"):
        found["nobody"]


def test_labels_go_to_reading_processes(folder):
    found = pickle.loads(pickle.dumps(Labels(folder / "labels.scp")))
    assert found["ba"].tolist() == STORED["ba"]


def test_other_audio_is_refused_by_name(folder):
    found = Labels(folder / "labels.scp")
    for speech in (SPEECH["ba"][:-1], 2 * SPEECH["ba"], SPEECH["a"]):
        with pytest.raises(UserError, match="ba: its audio is not what was labelled.*label"):
            found.check_audio("ba", speech)


# --- a run that was ended anywhere ------------------------------------------------------


def test_labels_cut_at_any_byte_are_refused(folder, utterances):
    """No kill leaves less of them than the list names."""
    before = contents(folder)
    data = before["labels.bin"]
    for end in range(len(data)):
        (folder / "labels.bin").write_bytes(data[:end])
        with pytest.raises(UserError, match="labels.bin: .*(é|damaged)"):
            write(folder, utterances)
        assert contents(folder) == {**before, "labels.bin": data[:end]}


def test_files_cut_at_any_byte_as_a_kill_leaves_them(utterances, folder):
    """The list has at most what is in the other file, which may have more."""
    before = contents(folder)
    text, data = before["labels.scp"], before["labels.bin"]
    ends = [0]  # of the labels that so many lines name
    for line in text.decode().splitlines():
        at = int(line.rpartition(":")[2])
        frames, _, _ = HEADER.unpack(data[at : at + HEADER.size])
        ends.append(at + HEADER.size + 2 * frames)
    for end in range(len(text) + 1):
        least = ends[text[:end].count(b"\n")]
        more = (0, 7, len(data) - least)[end % 3]
        (folder / "labels.scp").write_bytes(text[:end])
        (folder / "labels.bin").write_bytes(data[: least + more])
        write(folder, utterances)
        assert contents(folder) == before, (end, more)
    assert ends[-1] == len(data)


def test_one_by_one_ends_in_the_same_bytes(tmp_path, utterances, folder):
    other = tmp_path / "other"
    for _ in STORED:
        write(other, utterances, most=1)
    expected = contents(folder)
    expected["labels.scp"] = expected["labels.scp"].replace(
        str(folder).encode(), str(other).encode()
    )
    assert contents(other) == expected


def test_a_list_in_another_order_loses_nothing(folder, utterances):
    """Someone sorted it."""
    lines = (folder / "labels.scp").read_text().splitlines(keepends=True)
    (folder / "labels.scp").write_text("".join(lines[::-1][1:]))
    write(folder, utterances)
    found = Labels(folder / "labels.scp")
    assert {utt: found[utt].tolist() for utt in found} == STORED


# --- damage ------------------------------------------------------------------------------


def refused_or_right(folder, utt) -> bool:
    """Whether the labels are refused by name; if not, they are these."""
    try:
        found = Labels(folder / "labels.scp")
        labels = found[utt].tolist()
        found.check_audio(utt, SPEECH[utt])
    except UserError as e:
        where = [f"labels.scp: {utt}: ", f"{utt}: ", "labels.scp:2: is no text in UTF-8"]
        assert any(x in str(e) for x in where)
        assert str(folder) in str(e) and "\n" not in str(e)
        return True
    assert labels == STORED[utt]
    return False


def test_flipped_bits_are_refused_by_name(folder):
    data = (folder / "labels.bin").read_bytes()
    begin = data.index(b"ba ")
    size = 3 + HEADER.size + 2 * len(STORED["ba"])
    for at in range(begin, begin + size):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            (folder / "labels.bin").write_bytes(damaged)
            assert refused_or_right(folder, "ba"), (at - begin, bit)
            with pytest.raises(UserError):  # whoever reads a part of the audio
                Labels(folder / "labels.scp")["ba"]
            if bit == 0:
                assert not refused_or_right(folder, "a")


def test_a_flipped_bit_in_the_list_gives_no_other_labels(folder):
    text = (folder / "labels.scp").read_bytes()
    line = text.index(b"ba ")
    refused = 0
    for at in range(line + 3, text.index(b"\n", line)):
        for bit in range(8):
            damaged = bytearray(text)
            damaged[at] ^= 1 << bit
            (folder / "labels.scp").write_bytes(damaged)
            try:
                refused += refused_or_right(folder, "ba")
            except KeyError:  # told before training, as an utterance that is lacking
                refused += 1
    assert refused > 300


def test_places_that_are_others_are_refused(folder, tmp_path):
    text = (folder / "labels.scp").read_text()
    rows = dict(line.split() for line in text.splitlines())
    (tmp_path / "text").write_text("these are no labels at all " * 9)
    (tmp_path / "pickle").write_bytes(b"ba " + pickle.dumps(list(range(99))))
    elsewhere = {
        "a's": rows["a"],
        "behind the end": f"{folder}/labels.bin:999999",
        "at the beginning": f"{folder}/labels.bin:0",
        "text": f"{tmp_path}/text:3",
        "a pickle": f"{tmp_path}/pickle:3",
        "a folder": f"{tmp_path}:3",
        "nothing": f"{tmp_path}/none:3",
        "no place": f"{folder}/labels.bin",
        "a part": f"{rows['ba']}[0:3]",
        "a command": "cat labels.bin |",
        "a null": f"{folder}/\0labels.bin:3",
    }
    for what, place in elsewhere.items():
        (folder / "labels.scp").write_text(text.replace(rows["ba"], place))
        assert refused_or_right(folder, "ba"), what


def test_files_that_are_cut_give_no_other_labels(folder):
    data = (folder / "labels.bin").read_bytes()
    whole = data.index(b"c/a ")
    for end in range(whole):
        (folder / "labels.bin").write_bytes(data[:end])
        assert refused_or_right(folder, "ba")
    (folder / "labels.bin").write_bytes(data[:whole])
    assert not refused_or_right(folder, "ba")


@pytest.mark.parametrize("utt", STORED)
def test_the_last_record_is_looked_at_before_it_is_gone_on_with(folder, utterances, utt):
    lines = (folder / "labels.scp").read_text().splitlines(keepends=True)
    number = list(STORED).index(utt)
    (folder / "labels.scp").write_text("".join(lines[: number + 1]))
    at = int(lines[number].rpartition(":")[2])
    data = bytearray((folder / "labels.bin").read_bytes())
    data[at + 5] ^= 1
    (folder / "labels.bin").write_bytes(data)
    with pytest.raises(UserError, match=f"labels.bin: .*{utt}.*damaged"):
        write(folder, utterances)
    assert (folder / "labels.bin").read_bytes() == data


# --- what is not to be mixed -----------------------------------------------------------


def refused(folder, message, utterances, **more) -> None:
    """Refused in one line; list and labels are what they were."""
    before = contents(folder)
    with pytest.raises(UserError, match=message) as e:
        write(folder, utterances, **more)
    assert "\n" not in str(e.value)
    after = contents(folder)
    for name in set(before) | set(after):
        if after.get(name) != before.get(name):
            assert name in ("labels.scp", "labels.bin") and not after[name]
            assert name not in before


@pytest.mark.parametrize("name, value", [*zip(LABELLER, ("x", "x", 4, 160, 0.0, 8000))])
def test_another_labeller_is_refused(folder, utterances, name, value):
    refused(
        folder,
        f"holds labels of another labeller .*{name}: .*now {json.dumps(value)}.*--output_dir",
        utterances,
        labeller={**LABELLER, name: value},
    )
    # As one that says more, of features that have more to say.
    more = {**LABELLER, "model": "1"}
    refused(folder, "model: null, now", utterances, labeller=more)


def test_a_labeller_that_says_more_than_this_one_is_another(tmp_path, utterances):
    write(tmp_path / "x", utterances, labeller={**LABELLER, "model": "1"})
    refused(tmp_path / "x", 'model: "1", now null', utterances)


def test_without_labels_any_labeller_may_begin(tmp_path, utterances):
    write(tmp_path / "x", utterances, most=0)
    write(tmp_path / "x", utterances, labeller={**LABELLER, "frame_shift": 160})
    assert read_label_grid(str(tmp_path / "x/labels.scp"), 16000).shift == 160


@pytest.mark.parametrize("name", ["labels.scp", "labels.bin"])
def test_a_folder_of_others_is_refused(tmp_path, utterances, name):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / name).write_text("something of a user's\n")
    refused(folder, f"{name} was not made by espnet_atm.bin.label", utterances)


@pytest.mark.parametrize("utts", [["a", "ba"], ["x", *STORED][:-1]])
def test_labels_of_other_utterances_are_refused(folder, tmp_path, utts):
    other = utterances_of(tmp_path / "other.scp", utts)
    refused(folder, "labels.scp:[0-9]: is no line of an utterance in .*other.scp", other)


@pytest.mark.parametrize("line", ["a {0}/labels.bin:2", "ba", "ba x", "\xff \xff"])
def test_lines_that_are_none_are_refused(folder, utterances, line):
    with open(folder / "labels.scp", "ab") as f:
        f.write(line.format(folder).encode("latin1") + b"\n")
    refused(folder, "labels.scp:6: is no line of an utterance", utterances)


def test_a_copied_folder_is_read_and_not_mixed_up(folder, tmp_path, utterances):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    check_all(copy)  # its list names the files of the first one
    refused(copy, f"lists labels of another folder, {folder}/labels.bin", utterances)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=f"{copy}/labels.scp: ba: {folder}/labels.bin"):
        Labels(copy / "labels.scp")["ba"]
    refused(copy, "lists labels of another folder", utterances)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"{}", b"3", b"\xff", b"[" * 99999),
        *(
            json.dumps({**LABELLER, name: value}).encode()
            for name, values in {
                "num_classes": ("4", 0, -1, 2.5, 1 << 17),
                "frame_shift": (0, -320, float("nan"), float("inf"), True, 10**10, None),
                "frame_offset": (float("nan"), float("inf"), 10**9, [1]),
                "sampling_rate": (0, -1, float("nan"), None, "16k"),
            }.items()
            for value in values
        ),
    ],
)
def test_a_damaged_note_of_the_labeller_is_named(folder, utterances, content):
    (folder / "labeller").write_bytes(content)
    with pytest.raises(UserError, match="labeller: is ") as e:
        read_label_grid(str(folder / "labels.scp"), 16000)
    assert "\n" not in str(e.value)
    refused(folder, "labeller: is ", utterances)


def test_a_note_that_is_missing_or_of_another_rate_is_named(folder):
    with pytest.raises(UserError, match="labeller: .* at 16000 Hz, .*fs is 8000"):
        read_label_grid(str(folder / "labels.scp"), 8000)
    (folder / "labeller").unlink()
    with pytest.raises(UserError, match="labeller is missing: .*does not say when"):
        read_label_grid(str(folder / "labels.scp"), 16000)


def wait_and_write(folder, wav_scp, begin) -> None:
    begin.wait()
    write(folder, Table(wav_scp, 2))


def test_a_second_process_waits_for_the_first(tmp_path, utterances, folder):
    """A scheduler may start the same job twice."""
    context = multiprocessing.get_context("fork")
    begin, twice = context.Event(), tmp_path / "twice"
    args = (twice, tmp_path / "wav.scp", begin)
    second = context.Process(target=wait_and_write, args=args)
    second.start()  # before there is a lock that it would inherit
    twice.mkdir()
    with LabelWriter(twice, utterances, LABELLER) as writer:
        begin.set()
        waits = f"-> FLOCK  ADVISORY  WRITE {second.pid} "
        while waits not in Path("/proc/locks").read_text():
            assert second.is_alive()
        for index, utt in enumerate(["a", "ba"]):
            labels = {index: np.array(STORED[utt])}
            writer.write(labels, {index: checksum(SPEECH[utt])})
    second.join(20)
    assert second.exitcode == 0
    expected = contents(folder)
    expected["labels.scp"] = expected["labels.scp"].replace(
        str(folder).encode(), str(twice).encode()
    )
    assert contents(twice) == expected

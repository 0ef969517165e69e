"""Libri-Light: egs2/atm_librilight/ssl1/local/librilight.py and segment_librilight.sh."""

import json
import os
import subprocess
import sys
from pathlib import Path

import librilight
import numpy as np
import pytest
import soundfile
import trees
from conftest import copy_recipe
from hypothesis import given
from hypothesis import strategies as st

BOUNDS = dict(shortest=3200, longest=6400, max_pause=500)


@st.composite
def activities(draw):
    """Voice activity with pauses and speech of every length."""
    end, activity = 0, []
    for pause, speech in draw(
        st.lists(st.tuples(st.integers(1, 1500), st.integers(1, 9000)), max_size=40)
    ):
        activity.append((end + pause, end + pause + speech))
        end += pause + speech
    return activity


@given(activities())
def test_segments_are_in_bounds_and_account_for_all_speech(activity):
    segments, too_short = librilight.cut(activity, **BOUNDS)
    assert all(3200 <= end - start <= 6400 for start, end in segments)
    assert all(a[1] <= b[0] for a, b in zip(segments, segments[1:]))
    covered = np.zeros(activity[-1][1] + 1 if activity else 1, dtype=bool)
    for start, end in segments:
        covered[start:end] = True
    lost = sum(int((~covered[onset:offset]).sum()) for onset, offset in activity)
    assert lost <= too_short
    # A segment begins and ends where speech does, or within speech.
    for start, end in segments:
        assert any(onset <= start < offset for onset, offset in activity)
        assert any(onset < end <= offset for onset, offset in activity)


@given(activities())
def test_no_segment_holds_a_long_pause(activity):
    segments, _ = librilight.cut(activity, **BOUNDS)
    for (_, offset), (onset, _) in zip(activity, activity[1:]):
        if onset - offset > 500:
            assert not any(start < offset and onset < end for start, end in segments)


@pytest.mark.parametrize(
    "activity, segments, too_short",
    [
        ([], [], 0),
        ([(100, 3200)], [], 3100),
        ([(0, 3200)], [(0, 3200)], 0),
        ([(0, 6400)], [(0, 6400)], 0),
        # Too long for one: the rest is left long enough.
        ([(0, 7000)], [(0, 3800), (3800, 7000)], 0),
        ([(0, 20000)], [(0, 6400), (6400, 12800), (12800, 16800), (16800, 20000)], 0),
        # The first pause would do, but the second holds more.
        ([(0, 3300), (3400, 6300), (6400, 9900)], [(0, 6300), (6400, 9900)], 0),
        # The second would leave too little.
        ([(0, 3300), (3400, 6300), (6400, 7900)], [(0, 3300), (3400, 7900)], 0),
        # A long pause ends a segment, and what is too short then is lost.
        ([(0, 3000), (4000, 7300)], [(4000, 7300)], 3000),
    ],
)
def test_cut(activity, segments, too_short):
    assert librilight.cut(activity, **BOUNDS) == (segments, too_short)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"speaker": "1", ', "Expecting property name"),
        ('{"speaker": "1", "voice_activity": []}', "has no 'book_meta'"),
        ('{"speaker": "1", "book_meta": {"id": "2"}}', "has no 'voice_activity'"),
        ('{"speaker": "", "book_meta": {"id": "2"}, "voice_activity": []}', "is no id"),
        ("[1]", "list indices"),
        (
            '{"speaker": "1", "book_meta": {"id": "2"}, "voice_activity": [[1, 2], [1.5, 3]]}',
            r"not in order at \[1.5, 3.0\]",
        ),
        (
            '{"speaker": "1", "book_meta": {"id": "2"}, "voice_activity": [[1, NaN]]}',
            "NaN",
        ),
    ],
)
def test_bad_json_is_named(tmp_path, content, message):
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        librilight.read_json(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("lost", [1, 1000, 50000])
def test_a_flac_that_is_cut_off_is_named(tmp_path, lost):
    """Its header says its full length all the same."""
    file = tmp_path / "a b.flac"
    noise = np.random.default_rng(0).integers(-3000, 3000, 50 * 1600, dtype=np.int16)
    soundfile.write(file, noise, 16000)
    assert librilight.flac_ticks(file) == 500
    file.write_bytes(file.read_bytes()[:-lost])
    assert soundfile.info(file).frames == len(noise)
    with pytest.raises(ValueError, match=f"{file} is cut off: its header says 5.00 s"):
        librilight.flac_ticks(file)


def test_recordings_behind_links_are_found(tmp_path):
    """Sizes, speakers, books and files that are links; loops; links to nothing."""
    away = tmp_path / "away"
    for place in ("size/1/b", "speaker/b", "book", "files", "root/small/5/b"):
        (away / place).mkdir(parents=True)
    root = tmp_path / "root"
    (root / "small/3").mkdir(parents=True)
    (root / "small/4/b").mkdir(parents=True)
    (root / "medium").symlink_to(away / "size")
    (root / "small/2").symlink_to(away / "speaker")
    (root / "small/3/b").symlink_to(away / "book")
    for suffix in (".flac", ".json"):
        (away / f"size/1/b/one{suffix}").touch()
        (away / f"speaker/b/two{suffix}").touch()
        (away / f"book/three{suffix}").touch()
        (away / f"files/x{suffix}").touch()
        (root / f"small/4/b/four{suffix}").symlink_to(away / f"files/x{suffix}")
    (root / "small/4/b/five.flac").symlink_to("nowhere.flac")
    (root / "small/4/b/loop").symlink_to(root / "small")
    (root / "small/4/b/self").symlink_to("self")
    (root / "small/6").symlink_to("nowhere")
    lost = []
    found = librilight.find_recordings(root, ("small", "medium"), lost)
    assert list(found) == [
        f"{root}/small/2/b/two",
        f"{root}/small/3/b/three",
        f"{root}/small/4/b/five",
        f"{root}/small/4/b/four",
        f"{root}/medium/1/b/one",
    ]
    assert f"{root}/small/6 is a link to nowhere, which is not there" in lost
    assert f"{root}/small/4/b/self is a link to self, which is not there" in lost
    out = tmp_path / "recordings"
    command = [sys.executable, librilight.__file__, "find", "--root", str(root)]
    command += ["--sizes", "small", "medium", "--output", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stems = out.read_text().splitlines()
    assert f"{root}/medium/1/b/one" in stems
    assert "warning: " in done.stderr and "links to nothing" in done.stdout
    assert len(stems) == 5


def test_exclusions(tmp_path):
    speakers = tmp_path / "SPEAKERS.TXT"
    speakers.write_text(
        ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
        "14   | F | train-clean-360  | 25.03 | Kristin LeMoine\n"
        "60   | M | train-clean-100  | 20.18 | |CBW|Simon\n"
        "61   | M | test-clean       | 8.08  | Paul-Gabriel Wiener\n"
        "84   | F | dev-clean        | 8.02  | Christie Nowak\n"
    )
    chapters = tmp_path / "CHAPTERS.TXT"
    chapters.write_text(
        ";ID    |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE\n"
        "134686 | 1089 | 9.31  | test-clean       | 391  | 4217  | Chapter 1 | A Portrait\n"
        "1      | 5    | 9.31  | train-clean-100  | 392  | 4218  | Chapter 1 | Other\n"
    )
    own = tmp_path / "own"
    own.write_text("speaker 7\nbook 9\n\n")
    assert librilight.read_exclusions([speakers, chapters, own]) == (
        {"61", "84", "1089", "7"},
        {"391", "9"},
    )
    own.write_text("speaker 7\n8\n")
    with pytest.raises(ValueError, match=f"{own}:2: '8' is neither"):
        librilight.read_exclusions([own])


def test_held_out_speakers():
    hours = {str(x): 1.0 for x in range(40)}
    assert len(librilight.held_out_speakers(hours, 10)) == 4  # a tenth
    assert len(librilight.held_out_speakers(hours, 2)) == 4  # a few
    chosen = librilight.held_out_speakers(hours, 2)
    assert librilight.held_out_speakers({**hours, "0": 1.0}, 2) == chosen
    assert len(librilight.held_out_speakers({"1": 5.0, "2": 6.0}, 10)) == 1
    # Some read for 50 hours, which is more than all that is wanted.
    uneven = {str(x): [50.0, 8.0, 1.5, 0.5][x % 4] for x in range(400)}
    chosen = librilight.held_out_speakers(uneven, 10)
    total = sum(uneven[x] for x in chosen)
    assert len(chosen) >= 4 and 9 < total <= 10
    with pytest.raises(ValueError, match="1 speakers with segments"):
        librilight.held_out_speakers({"1": 5.0}, 10)


# ------------------------------------------------------------------------------------
# A miniature Libri-Light
# ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Five sound recordings, and one of each kind that is not. The path has spaces."""
    root = tmp_path_factory.mktemp("with spaces") / "Libri Light"
    trees.librilight(
        root,
        "small",
        {
            ("100", "4393", "seafairies_01_baum_64kb"): 80,
            ("100", "4393", "seafairies_02_baum_64kb"): 40,
            ("19", "319", "holland 01 (van loon)"): 70,
            ("27", "55", "no_json"): 36,
            ("27", "55", "malformed"): 36,
            ("27", "55", "truncated"): 80,
            ("27", "55", "no_flac"): 36,
            ("27", "55", "noise"): 36,
            ("27", "55", "cut_off"): 36,
            ("31", "77", "silent"): 36,
            ("61", "78", "of_the_test_set"): 36,
        },
    )
    trees.librilight(root, "medium", {("200", "1", "medium_01"): 40})
    book = root / "small/27/book_55_64kb_mp3"
    (book / "no_json.json").unlink()
    (book / "no_flac.flac").unlink()
    (book / "noise.flac").write_bytes(b"this is no FLAC")
    (book / "malformed.json").write_text('{"speaker": "27",')
    whole = (book / "cut_off.flac").read_bytes()
    (book / "cut_off.flac").write_bytes(whole[: len(whole) // 2])
    audio, rate = soundfile.read(book / "truncated.flac")
    soundfile.write(book / "truncated.flac", audio[: 50 * rate], rate)
    silent = root / "small/31/book_77_64kb_mp3/silent.json"
    silent.write_text(
        json.dumps({**json.loads(silent.read_text()), "voice_activity": []})
    )
    (root / "SPEAKERS.TXT").write_text("61   | M | test-clean | 8.08 | Paul\n")
    return root


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A copy of the recipe, as stage 1 leaves it."""
    folder = copy_recipe(tmp_path)
    (folder / "data/local/librilight").mkdir(parents=True)
    return folder


def run(recipe: Path, *command: str, ok: bool = True) -> str:
    done = subprocess.run(
        command, cwd=recipe, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert (done.returncode == 0) == ok, done.stdout
    return done.stdout


def find(recipe: Path, tree: Path, *sizes: str) -> None:
    run(
        recipe,
        *(sys.executable, "local/librilight.py", "find", "--root", str(tree)),
        *("--sizes", *sizes, "--output", "data/local/librilight/recordings"),
    )


def segment(recipe: Path, tree: Path | str, **options: str) -> str:
    """Run the script with LIBRISPEECH in this folder."""
    opts = [x for name, value in options.items() for x in (f"--{name}", value)]
    (recipe / "db.sh").write_text(f"LIBRISPEECH='{tree}'\n")
    return run(recipe, "local/segment_librilight.sh", *opts)


def read(file: Path) -> dict[str, list[str]]:
    return {x.split()[0]: x.split(maxsplit=1)[1:] for x in file.open()}


def test_miniature(recipe, tree):
    find(recipe, tree, "small", "medium")
    log = segment(recipe, tree)
    train, valid = (recipe / f"data/librilight_unlabelled{x}" for x in ("", "_dev"))
    segments = {**read(train / "segments"), **read(valid / "segments")}
    speakers = {**read(train / "utt2spk"), **read(valid / "utt2spk")}
    books = {**read(train / "utt2book"), **read(valid / "utt2book")}
    wavs = {**read(train / "wav.scp"), **read(valid / "wav.scp")}
    assert set(segments) == set(speakers) == set(books)
    assert not set(read(train / "spk2utt")) & set(read(valid / "spk2utt"))
    assert set(wavs) == {
        "100-4393-seafairies_01_baum_64kb",
        "100-4393-seafairies_02_baum_64kb",
        "19-319-holland_01__van_loon_",
        "27-55-truncated",
        "200-1-medium_01",
    }
    for utt, (line,) in segments.items():
        rec, start, end = line.split()
        assert 32 <= float(end) - float(start) <= 64
        assert (
            utt
            == f"{rec}-{round(float(start) * 100):07d}-{round(float(end) * 100):07d}"
        )
        assert speakers[utt] == [utt.split("-")[0] + "\n"]
        assert books[utt] == [utt.split("-")[1] + "\n"]
        path = Path(wavs[rec][0].strip())
        assert float(end) <= soundfile.info(path).duration
    # By hand: the first begins with the first speech of its recording.
    activity = json.loads(
        (tree / "small/100/book_4393_64kb_mp3/seafairies_02_baum_64kb.json").read_text()
    )["voice_activity"]
    (only,) = (x for x in segments if "seafairies_02" in x)
    assert segments[only] == [
        f"100-4393-seafairies_02_baum_64kb {activity[0][0]:.2f} {activity[-1][1]:.2f}\n"
    ]

    summary = json.loads(
        (recipe / "data/local/librilight/merged/summary.json").read_text()
    )
    dropped = summary["dropped"]
    for reason in (
        *(librilight.NO_JSON, librilight.NO_FLAC, librilight.BAD_JSON),
        *(librilight.BAD_FLAC, librilight.EXCLUDED, librilight.SILENT),
        librilight.BEYOND,
    ):
        assert reason in log
        if reason != librilight.BEYOND:
            count = 2 if reason == librilight.BAD_FLAC else 1
            assert dropped[reason]["recordings"] == count
    lost = sum(x["hours"] for x in dropped.values())
    assert summary["hours_in"] == pytest.approx(summary["hours_out"] + lost)
    kept = sum(float(x.split()[2]) - float(x.split()[1]) for (x,) in segments.values())
    assert summary["hours_out"] == pytest.approx(kept / 3600)
    audio = sum(
        soundfile.info(x).duration
        for x in tree.rglob("*.flac")
        if x.stem not in ("noise", "cut_off")
    )
    unheard = dropped[librilight.BEYOND]["hours"] + sum(
        dropped[x]["hours"] for x in (librilight.NO_FLAC, librilight.BAD_FLAC)
    )
    assert summary["hours_in"] == pytest.approx(audio / 3600 + unheard, abs=1e-4)
    for name in ("malformed.json", "no_json.json", "no_flac.flac", "noise.flac"):
        assert f"{tree}/small/27/book_55_64kb_mp3/{name}" in log
    assert f"{tree}/small/27/book_55_64kb_mp3/cut_off.flac is cut off: its" in log
    assert "truncated.flac has 50.0 s, but its JSON has voice activity up to" in log


def without_broken(recipe: Path) -> None:
    """Take speaker 27, whose files are broken, out of the list."""
    recordings = recipe / "data/local/librilight/recordings"
    kept = [x for x in recordings.open() if "/small/27/" not in x]
    recordings.write_text("".join(kept))


def test_segmenting_again_gives_the_same(recipe, tree):
    find(recipe, tree, "small")
    without_broken(recipe)
    segment(recipe, tree, nj="1")
    one = (recipe / "data/librilight_unlabelled/segments").read_bytes()
    log = segment(recipe, tree, nj="3")
    assert (recipe / "data/librilight_unlabelled/segments").read_bytes() == one
    # A part that was cut off is cut again; the others are not.
    (recipe / "data/local/librilight/3.2/summary.json").unlink()
    (recipe / "data/local/librilight/3.2/cut").write_text("half a li")
    segment(recipe, tree, nj="3")
    assert (recipe / "data/librilight_unlabelled/segments").read_bytes() == one
    logs = [
        (recipe / f"data/local/librilight/cut.{n}.log").read_text() for n in (1, 2, 3)
    ]
    assert ["done already" in x for x in logs] == [True, False, True]
    # Other settings are not what was done.
    segment(recipe, tree, nj="3", max_seconds="40", min_seconds="20")
    assert (recipe / "data/librilight_unlabelled/segments").read_bytes() != one
    assert "hours in" in log


def test_mended_files_are_taken(tmp_path):
    """And only the parts that had problems are cut again."""
    names = ("a", "b", "c", "d")
    root = tmp_path / "tree"
    trees.librilight(root, "small", {(x, "1", x): 36 for x in names})
    stems = [root / f"small/{x}/book_1_64kb_mp3/{x}" for x in names]
    settings = librilight.Settings(3200, 6400, 500, True, frozenset(), frozenset())

    def cut() -> list[bool]:
        cut_now = []
        for part, pair in (("1", stems[:2]), ("2", stems[2:])):
            recordings = tmp_path / f"recordings.{part}"
            recordings.write_text("".join(f"{x}\n" for x in pair))
            done = tmp_path / part / "summary.json"
            before = done.stat().st_mtime_ns if done.exists() else None
            librilight.cut_part(recordings, tmp_path / part, settings)
            cut_now.append(done.stat().st_mtime_ns != before)
        return cut_now

    def speakers() -> list[str]:
        parts = [tmp_path / "1", tmp_path / "2"]
        librilight.merge(parts, tmp_path / "merged", 1)
        read = librilight.read_cut(parts)
        return sorted(x.speaker for x in read)

    json_file, flac = stems[0].with_suffix(".json"), stems[1].with_suffix(".flac")
    sound = json_file.read_text()
    json_file.write_text(sound[:-20])
    audio = flac.read_bytes()
    flac.unlink()
    assert cut() == [True, True]
    assert speakers() == ["c", "d"]
    json_file.write_text(sound)
    flac.write_bytes(audio)
    assert cut() == [True, False]
    assert speakers() == ["a", "b", "c", "d"]
    assert (tmp_path / "merged/problems").read_text() == ""
    assert cut() == [False, False]


def test_of_recordings_with_one_id_the_first_is_taken(recipe, tmp_path):
    root = tmp_path / "tree"
    recordings = {("100", "1", x): 40 for x in ("a b", "a_b", "c")}
    trees.librilight(root, "small", {**recordings, ("19", "2", "d"): 40})
    trees.librilight(root, "medium", {("19", "2", "d"): 50})
    find(recipe, root, "small", "medium")
    log = segment(recipe, root)
    train, valid = (recipe / f"data/librilight_unlabelled{x}" for x in ("", "_dev"))
    wavs = {**read(train / "wav.scp"), **read(valid / "wav.scp")}
    small = root / "small/100/book_1_64kb_mp3"
    assert {rec: Path(wav.strip()) for rec, (wav,) in wavs.items()} == {
        "100-1-a_b": small / "a b.flac",
        "100-1-c": small / "c.flac",
        "19-2-d": root / "small/19/book_2_64kb_mp3/d.flac",
    }
    kept = sum(len(read(x / "segments")) for x in (train, valid))
    merged = recipe / "data/local/librilight/merged"
    summary = json.loads((merged / "summary.json").read_text())
    assert summary["segments"] == kept == 3
    assert summary["dropped"][librilight.TWICE]["recordings"] == 2
    assert summary["hours_in"] == pytest.approx(
        summary["hours_out"] + sum(x["hours"] for x in summary["dropped"].values())
    )
    audio = sum(soundfile.info(x).duration for x in root.rglob("*.flac"))
    assert summary["hours_in"] == pytest.approx(audio / 3600, abs=1e-4)
    message = f"{small}/a_b.flac has the same id, 100-1-a_b, as {small}/a b.flac"
    assert message in log
    assert f"{root}/medium/19/book_2_64kb_mp3/d.flac has the same id, 19-2-d, as" in log


def test_exclusions_by_option(recipe, tree):
    find(recipe, tree, "small")
    own = recipe / "my list"
    own.write_text("book 319\n")
    log = segment(recipe, tree, exclude=f"{own},librispeech")
    recordings = json.loads(
        (recipe / "data/local/librilight/merged/summary.json").read_text()
    )["dropped"][librilight.EXCLUDED]["recordings"]
    assert recordings == 2
    assert f"books of: {own} {tree}/SPEAKERS.TXT" in log
    assert "Warning" not in log


@pytest.mark.parametrize("librispeech", ["", "/no where"])
def test_a_pool_with_the_readers_of_librispeechs_test_sets(recipe, tree, librispeech):
    """It is allowed, but said, with what is missing."""
    find(recipe, tree, "small")
    log = segment(recipe, librispeech, nj="1")
    assert "Warning: the readers of LibriSpeech's dev and test sets are not left" in log
    assert f"LIBRISPEECH, which is '{librispeech}' in db.sh. Set it to the" in log
    assert "books of: nothing" in log
    speakers = {
        speaker
        for name in ("", "_dev")
        for speaker in read(recipe / f"data/librilight_unlabelled{name}/spk2utt")
    }
    assert "61" in speakers


def test_missing_size(recipe, tree):
    command = (sys.executable, "local/librilight.py", "find", "--root", str(tree))
    log = run(recipe, *command, "--sizes", "large", "--output", "list", ok=False)
    assert f"{tree}/large is not there: LIBRILIGHT in db.sh" in log
    assert not os.path.exists(recipe / "list")

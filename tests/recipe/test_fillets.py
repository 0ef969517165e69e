"""The fillets corpus: egs2/atm_librilight/ssl1/local/fillets.py, on a made-up tree."""

import json
import os
from pathlib import Path

import fillets
import kaldi_data
import numpy as np
import pytest
import soundfile

NL = r"""
-- dialogId("x-m-comment", "font_small", "")
dialogId("x-m-goed", "font_small", "Good.")
dialogStr("Z’n 't \"goede\" foto's, één  — wow!")

dialogId("x-v-twee", "", "Two
lines.")  -- a comment with "quotes"
dialogStr("Twee
regels.")
dialogId("x-m-cijfer", "font_small", "Pier 5.")
dialogStr("Steiger 5.")
dialogId("x-m-leeg", "font_small", "")
dialogStr("")
dialogId("x-m-punten", "font_small", "...")
dialogStr("...")
dialogId("x-m-vreemd", "font_small", "")
dialogStr("да")
dialogId("x-m-stil", "font_small", "No audio.")
dialogStr("Geen geluid.")
dialogId("x-m-kort", "font_small", "Too short.")
dialogStr("Kort.")
dialogId("x-m-kapot", "font_small", "Broken.")
dialogStr("Kapot.")
dialogId("x-m-geen", "font_small", "No transcript.")
dialogId(name, "font_small", "Not a string.")
dialogStr("Niemand.")
dialogId("x-hs-laatste", "font_viking1", "Last.")
dialogStr('Laatste.')
"""


def write_ogg(path: Path, seconds: float, rate: int = 22050, channels: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    noise = rng.uniform(-0.1, 0.1, (int(seconds * rate), channels))
    soundfile.write(str(path), noise, rate, format="OGG", subtype="VORBIS")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Scripts and sounds in two packages; level "a" has all the bad cases."""
    root = tmp_path_factory.mktemp("packages")
    game = "usr/share/games/fillets-ng"
    script, sound = root / "data" / game / "script", root / "data-nl" / game / "sound"
    (script / "a").mkdir(parents=True)
    (script / "a" / "dialogs_nl.lua").write_text(NL, encoding="utf-8")
    (script / "a" / "dialogs_en.lua").write_text(
        'dialogId("x-m-goed", "font_small", "Good.")'
    )
    for name in "goed cijfer leeg punten vreemd geen".split():
        write_ogg(sound / "a" / "nl" / f"x-m-{name}.ogg", 1.0)
    write_ogg(sound / "a" / "nl" / "x-v-twee.ogg", 1.5, rate=44100, channels=1)
    write_ogg(sound / "a" / "nl" / "x-hs-laatste.ogg", 2.0)
    write_ogg(sound / "a" / "nl" / "x-m-kort.ogg", 0.1)
    write_ogg(sound / "a" / "nl" / "x-m-ongebruikt.ogg", 1.0)
    (sound / "a" / "nl" / "x-m-kapot.ogg").write_bytes(b"not audio")
    for level in "bcdef":
        for language in ("nl", "cs"):
            (script / level).mkdir(exist_ok=True)
            (script / level / f"dialogs_{language}.lua").write_text(
                'dialogId("y-m-een", "font_small", "One.")\ndialogStr("Een dva.")\n'
            )
            write_ogg(sound / level / language / "y-m-een.ogg", 1.0)
    return root


def generate(folder: Path, tree: Path, *options: str) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        fillets.main(
            ["--roots", str(tree / "data"), str(tree / "data-nl")]
            + "--data_dir data --staging_dir data/staging".split()
            + "--download_dir downloads/fillets".split()
            + list(options)
        )
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def corpus(tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    generate(folder, tree)
    return folder


def staged(folder: Path, name: str) -> dict[str, str]:
    """A table of all sets together."""
    rows: dict[str, str] = {}
    for path in sorted((folder / "data" / "staging").glob(f"*/{name}")):
        rows.update(kaldi_data.read_scp(path))
    return rows


def test_parser():
    dialogues, unreadable = fillets.parse_dialogues(NL, "nl", "a")
    texts = {d.name: d.text for d in dialogues}
    assert unreadable == 1
    assert "x-m-comment" not in texts
    assert texts["x-m-goed"] == "Z’n 't \"goede\" foto's, één  — wow!"
    assert texts["x-v-twee"] == "Twee\nregels."
    assert texts["x-m-geen"] is None
    assert texts["x-hs-laatste"] == "Laatste."
    assert "Niemand." not in texts.values()
    actors = {d.name: d.actor for d in dialogues}
    assert (actors["x-m-goed"], actors["x-v-twee"]) == ("small", "big")
    assert actors["x-hs-laatste"] == "viking1"


def test_parser_survives_an_unclosed_call():
    source = (
        'dialogId("a", "font_big", "x"\ndialogStr("lost")\n'
        'dialogId("b", "font_big", "y")\ndialogStr("kept")'
    )
    dialogues, unreadable = fillets.parse_dialogues(source, "nl", "a")
    assert [(d.name, d.text) for d in dialogues] == [("b", "kept")]
    assert unreadable == 1


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Z’n 't \"goede\" foto's, één — wow!", "nl", "z'n 't goede foto's één wow"),
        ("C:\\WINDOWS a 'Auto' je", "cs", "c windows a auto je"),
        ("PŘÍLIŠ žluťoučký", "cs", "příliš žluťoučký"),
        ("e\u0301e\u0301n", "nl", "één"),
        ("příliš", "nl", None),
        ("...", "nl", ""),
    ],
)
def test_normalise(text, language, expected):
    assert fillets.normalise(text, language) == expected


def test_corpus_keeps_the_good_and_counts_the_rest(corpus):
    texts = {k: v for k, v in staged(corpus, "text").items() if "-a-" in k}
    assert set(texts) == {
        "nl_small-a-x-m-goed",
        "nl_big-a-x-v-twee",
        "nl_viking1-a-x-hs-laatste",
    }
    done = json.loads((corpus / "data" / "staging" / ".done").read_text())
    assert done["dropped"][""] == {
        "digits in the transcript": 1,
        "empty transcript": 2,
        "letters of another language in the transcript": 1,
        "no recording (not dubbed in this language)": 1,
        "no transcript": 1,
        "recording without a dialogue": 1,
        "shorter than 0.3 s or longer than 20 s": 1,
        "unreadable call in a script": 1,
        "unreadable recording": 1,
    }


def test_audio_and_tables(corpus):
    wavs, speakers = staged(corpus, "wav.scp"), staged(corpus, "utt2spk")
    languages, durations = staged(corpus, "utt2category"), staged(corpus, "utt2dur")
    for utt_id, wav in wavs.items():
        info = soundfile.info(str(corpus / wav))
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.duration == pytest.approx(float(durations[utt_id]), abs=1e-3)
        assert utt_id.startswith(f"{speakers[utt_id]}-")
        assert speakers[utt_id].startswith(f"{languages[utt_id]}_")
    assert float(durations["nl_big-a-x-v-twee"]) == pytest.approx(1.5, abs=0.01)


def test_split_is_by_level(corpus):
    part_of_level: dict[str, str] = {}
    for path in (corpus / "data" / "staging").iterdir():
        if path.is_dir():
            part = path.name.removesuffix("_nl").removesuffix("_cs")
            for utt_id in kaldi_data.read_scp(path / "text"):
                assert part_of_level.setdefault(utt_id.split("-")[1], part) == part
            languages = set(kaldi_data.read_scp(path / "utt2category").values())
            if path.name.startswith("fillets_test_"):
                assert languages == {path.name[-2:]}
            if path.name.startswith("fillets_unlabelled"):
                texts = set(kaldi_data.read_scp(path / "text").values())
                assert texts == {kaldi_data.PLACEHOLDER}
    assert len(part_of_level) == 6
    assert len(set(part_of_level.values())) == len(fillets.SHARES)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_part_gets_its_share_of_levels_and_minutes(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(5, 400, 80)
    seconds = {f"level{i:02d}": float(s) for i, s in enumerate(lengths)}
    parts = fillets.split_levels(seconds)
    for part, share in fillets.SHARES.items():
        levels = [level for level in seconds if parts[level] == part]
        minutes = sum(seconds[level] for level in levels) / sum(seconds.values())
        assert abs(len(levels) - share) <= 1, part
        assert share / 80 / 1.5 < minutes < share / 80 * 1.5, part
    assert fillets.split_levels(dict(reversed(seconds.items()))) == parts
    with pytest.raises(ValueError, match="4 levels cannot be dealt out to 5 parts"):
        fillets.split_levels({level: 1.0 for level in "abcd"})


def test_resumes(tree, corpus):
    staging = corpus / "data" / "staging"
    before = {
        p: p.read_bytes()
        for top in ("data", "downloads")
        for p in (corpus / top).rglob("*")
        if p.is_file()
    }
    audio = sorted((corpus / "downloads").rglob("*.flac"))
    audio[0].unlink()
    kept = [path.stat().st_mtime_ns for path in audio[1:]]
    (staging / ".done").unlink()
    generate(corpus, tree, "--nj", "1")
    assert {p: p.read_bytes() for p in before} == before
    assert [path.stat().st_mtime_ns for path in audio[1:]] == kept


def test_errors(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        fillets.read_corpus([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="no script/<level>"):
        fillets.read_corpus([tmp_path])
    with pytest.raises(FileNotFoundError, match="no sound/<level>"):
        fillets.read_corpus([tree / "data"])
    with pytest.raises(ValueError, match="3 levels cannot be dealt out"):
        generate(tmp_path, tree, "--levels", "3")
    bad = tmp_path / "script" / "a" / "dialogs_nl.lua"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"\xff\xfe\xff")
    write_ogg(tmp_path / "sound" / "a" / "nl" / "x.ogg", 1.0)
    with pytest.raises(ValueError, match="dialogs_nl.lua is not UTF-8"):
        fillets.read_corpus([tmp_path])

"""The labelled corpora through ESPnet's recipes: local/data_labelled.sh."""

import os
import subprocess
from pathlib import Path

import normalise_text
import pytest
import soundfile
import trees
from conftest import copy_recipe

SETS = {
    "librispeech_100_train": 3,
    "librispeech_100_dev": 6,
    "librispeech_dev_clean": 3,
    "librispeech_dev_other": 3,
    "librispeech_test_clean": 3,
    "librispeech_test_other": 3,
    "ami_ihm_train": 6,
    "ami_ihm_dev": 6,
    "ami_ihm_eval": 6,
    "ami_sdm1_train": 6,
    "ami_sdm1_dev": 6,
    "ami_sdm1_eval": 6,
    "tedlium2_dev": 4,
    "tedlium2_test": 4,
    "commonvoice_test": 4,
    "chime6_dev": 4,
    "chime6_eval": 4,
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, Path]:
    """All of them, in a folder with spaces, by their names in db.sh."""
    root = tmp_path_factory.mktemp("with spaces")
    found = {}
    for name in ("librispeech", "ami", "tedlium2", "commonvoice", "chime6"):
        folder = root / f"the {name}"
        getattr(trees, name)(folder)
        found[name.upper()] = folder
    return found


def prepare(folder: Path, corpora: dict[str, Path]) -> tuple[Path, str]:
    """Run data_labelled.sh in a recipe of its own; its data folder, and what it said."""
    recipe = copy_recipe(folder)
    (recipe / "db.sh").write_text("".join(f"{k}='{v}'\n" for k, v in corpora.items()))
    (recipe / "data").mkdir()
    done = subprocess.run(
        ["local/data_labelled.sh", "data/test_sets"],
        cwd=recipe,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return recipe / "data", done.stdout


def read(file: Path) -> dict[str, str]:
    rows = (x.rstrip("\n").partition(" ") for x in file.open(encoding="utf-8"))
    return {utt: value for utt, _, value in rows}


def test_every_corpus(tmp_path, corpora):
    data, log = prepare(tmp_path, corpora)
    assert "5 prepared" in log and "0 failed" in log, log
    found = {
        x.parent.name: len(x.read_text().splitlines()) for x in data.glob("*/text")
    }
    assert found == SETS
    tests = (data / "test_sets").read_text().split()
    assert set(tests) == {
        x for x in SETS if "100" not in x and not x.startswith("ami") or "_eval" in x
    }
    for name in SETS:
        texts = read(data / name / "text")
        assert all(x == normalise_text.normalise(x) for x in texts.values())
        wavs = read(data / name / "wav.scp")
        assert not any(x.endswith("|") for x in wavs.values())
        assert all(soundfile.info(x).samplerate == 16000 for x in wavs.values())
        if (data / name / "segments").exists():
            for line in read(data / name / "segments").values():
                rec, start, end = line.split()
                assert 0 <= float(start) < float(end)
                assert float(end) <= soundfile.info(wavs[rec]).duration + 0.01
    # By hand.
    assert (
        read(data / "librispeech_test_clean/text")["61-1061-0000"]
        == (trees.sentence("61", 0)[0])
    )
    texts = read(data / "ami_ihm_eval/text")
    first = min(x for x in texts if "_H00_" in x)
    assert first.startswith("AMI_EN2002a_H00_FEE009_0000050_")
    assert texts[first] == trees.sentence("EN2002aA", 0)[0]
    assert set(texts.values()) == set(read(data / "ami_sdm1_eval/text").values())
    texts = read(data / "tedlium2_test/text")
    assert texts[min(texts)] == trees.sentence("BillGates_2010", 0)[0]
    texts = read(data / "commonvoice_test/text")
    assert texts["c0ffee0-common_voice_en_100"] == trees.sentence("cv", 0)[0]
    texts = read(data / "chime6_eval/text")
    assert trees.sentence("P01", 0)[0] + " YEAH" in texts.values()


def test_what_is_wrong_is_said_and_the_rest_goes_on(tmp_path, corpora):
    root = tmp_path / "corpora"
    trees.ami(root / "ami")
    notes = root / "ami/annotations"
    for agent in "AB":  # a meeting without transcripts
        (notes / f"words/EN2001a.{agent}.words.xml").unlink()
    (notes / "words/ES2011a.B.words.xml").write_text("<nite:root")
    (root / "ami/amicorpus/EN2002a/audio/EN2002a.Headset-1.wav").unlink()
    trees.librispeech(root / "librispeech")
    speaker = next(root.glob("librispeech/LibriSpeech/dev-clean/*/*"))
    next(speaker.glob("*.trans.txt")).unlink()
    data, log = prepare(
        tmp_path,
        {
            "AMI": root / "ami",
            "LIBRISPEECH": root / "librispeech",
            "TEDLIUM2": root / "nowhere",
            "COMMONVOICE": corpora["COMMONVOICE"],
            "CHIME6": "",
        },
    )
    assert "AMI: meeting EN2001a has audio but no transcripts in" in log
    assert "ES2011a.B.words.xml: unclosed token" in log
    assert "AMI: no EN2002a.Headset-1.wav: 3 utterances left out" in log
    assert (
        "AMI: no train utterance with audio for ihm: ami_ihm_train is not made" in log
    )
    assert "84-1084.trans.txt to exist" in log
    assert f"tedlium2: db.sh names {root}/nowhere, which is no directory" in log
    assert "2 prepared ( ami commonvoice)" in log
    assert "2 failed ( librispeech tedlium2)" in log
    assert "1 not set in db.sh ( CHIME6)" in log
    assert (data / "test_sets").read_text().split() == [
        "ami_ihm_eval",
        "ami_sdm1_eval",
        "commonvoice_test",
    ]
    assert len(read(data / "ami_ihm_eval/text")) == 3
    assert not list(data.glob("librispeech*"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("it's the <unk> [NOISE] <sil> end", "IT'S THE END"),
        ("'Quoted' don't", "QUOTED DON'T"),
        ("Caf\u00e9, twenty-one!", "CAFE TWENTY ONE"),
        ("[laughs]", ""),
    ],
)
def test_normalise(text, words):
    assert normalise_text.normalise(text) == words


def test_no_program_is_needed(tmp_path, corpora):
    """Neither sox nor flac nor sph2pipe: none of them is on this path."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for file in Path(folder).glob("*") if folder else ():
            if file.name not in ("sox", "flac", "ffmpeg", "sph2pipe"):
                if not (tools / file.name).exists():
                    (tools / file.name).symlink_to(file)
    before = os.environ["PATH"]
    os.environ["PATH"] = str(tools)
    try:
        _, log = prepare(tmp_path / "recipe", {"TEDLIUM2": corpora["TEDLIUM2"]})
    finally:
        os.environ["PATH"] = before
    assert "1 prepared" in log

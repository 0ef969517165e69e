"""The labelled corpora through ESPnet's recipes: local/data_labelled.sh."""

import shutil
import subprocess
from pathlib import Path

import ami
import normalise_text
import pytest
import trees
from conftest import ROOT, copy_recipe


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


def test_what_is_wrong_is_said_and_the_rest_goes_on(tmp_path):
    root = tmp_path / "corpora"
    trees.ami(root / "ami")
    notes = root / "ami/annotations"
    for agent in "AB":  # a meeting without transcripts
        (notes / f"words/EN2001a.{agent}.words.xml").unlink()
    (notes / "words/ES2011a.B.words.xml").write_text("<nite:root")
    (root / "ami/amicorpus/EN2002a/audio/EN2002a.Headset-1.wav").unlink()
    trees.librispeech(root / "librispeech")
    trees.commonvoice(root / "commonvoice", trees.COMMONVOICE_17)
    next(root.rglob("dev.tsv")).unlink()
    speaker = next(root.glob("librispeech/LibriSpeech/dev-clean/*/*"))
    next(speaker.glob("*.trans.txt")).unlink()
    data, log = prepare(
        tmp_path,
        {
            "AMI": Path("../../../corpora/ami"),  # seen from the recipe
            "LIBRISPEECH": root / "librispeech",
            "TEDLIUM2": root / "nowhere",
            "COMMONVOICE": root / "commonvoice",
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
    assert "no dev.tsv: commonvoice_{train,dev} is not made" in log
    assert "2 prepared ( ami commonvoice)" in log
    assert "2 failed ( librispeech tedlium2)" in log
    assert "3 not set in db.sh ( WSJ0 SWBD CHIME6)" in log
    assert (data / "test_sets").read_text().split() == [
        "ami_ihm_eval",
        "ami_sdm1_eval",
        "commonvoice_test",
    ]
    assert len(read(data / "ami_ihm_eval/text")) == 3
    assert not list(data.glob("librispeech*"))
    texts = read(data / "commonvoice_test/text")
    assert texts == {
        f"c0ffee{i}-common_voice_en_{i + 100}": trees.sentence("cv", i)[0]
        for i in range(4)
    }


def test_audio_that_is_cut_off_stops_its_corpus_and_no_other(tmp_path):
    """Of evaluation and of training; of a file that is whole, cut off, empty or text."""
    root = tmp_path / "corpora"
    trees.librispeech(root / "librispeech")
    trees.tedlium2(root / "tedlium2")
    trees.chime6(root / "chime6")
    trees.commonvoice(root / "commonvoice")
    flac = next(root.rglob("train-clean-100/**/*.flac"))
    flac.write_bytes(flac.read_bytes()[:-200])
    wav = next(root.rglob("S01_U01.CH1.wav"))
    wav.write_bytes(wav.read_bytes()[:-2000])
    next(root.rglob("common_voice_en_100.mp3")).write_bytes(b"")
    shutil.rmtree(root / "tedlium2/TEDLIUM_release2/train")
    names = ("librispeech", "tedlium2", "commonvoice", "chime6")
    data, log = prepare(tmp_path, {x.upper(): root / x for x in names})
    assert f"1 of 3 recordings are bad, the first: {data}" in log
    assert f"{flac.name} is cut off" in log or f"{flac.name} cannot be read" in log
    assert "S01_U01.CH1.wav is cut off" in log
    assert "1 clips of corpus/cv-corpus-5.1-2020-06-22/en/test.tsv are missing" in log
    assert "3 failed ( librispeech commonvoice chime6)" in log
    assert "TED-LIUM: no TEDLIUM_release2/train: tedlium2_train is not made" in log
    assert "1 prepared ( tedlium2)" in log
    assert (data / "test_sets").read_text().split() == ["tedlium2_dev", "tedlium2_test"]
    assert not (data / "librispeech_100_train").exists()
    assert not (data / "commonvoice_test").exists()
    assert not (data / "chime6_eval").exists()


def test_the_newest_release_is_taken_and_links_are_followed(tmp_path):
    """Names of releases sorted as text put 17 before 9, and 1.6.10 before 1.6.2."""
    root = tmp_path / "corpora"
    trees.commonvoice(root / "commonvoice")
    (old,) = (root / "commonvoice").iterdir()
    old = old.rename(old.with_name("cv-corpus-9.0-2022-04-27"))
    new = root / "commonvoice/cv-corpus-17.0-2024-03-15"
    new.mkdir()
    (new / "en").symlink_to(old.rename(root / "elsewhere") / "en")
    (old / "en").mkdir(parents=True)
    (old / "en/test.tsv").write_text("client_id\tpath\tsentence\n")
    # Of what is validated, stock leaves out what is empty.
    (root / "elsewhere/en/clips/common_voice_en_106.mp3").write_bytes(b"")
    trees.ami(root / "ami")
    notes = root / "ami/annotations"
    notes.rename(root / "ami/ami_public_manual_1.6.10")
    for version in ("1.6.1", "1.6.2"):
        (root / f"ami/ami_public_manual_{version}/words").mkdir(parents=True)
    audio = root / "ami/amicorpus/EN2002a/audio"
    (root / "ami/amicorpus/EN2002a/audio").rename(root / "audio")
    audio.symlink_to(root / "audio")
    data, log = prepare(
        tmp_path, {"COMMONVOICE": root / "commonvoice", "AMI": root / "ami"}
    )
    assert "cv-corpus-17.0-2024-03-15/en/test.tsv is taken" in log
    assert "2 prepared ( ami commonvoice)" in log
    assert "1 clips of corpus/cv-corpus-17.0-2024-03-15/en/validated.tsv are empty" in log
    assert len(read(data / "commonvoice_test/text")) == 4
    # The clip of a dev speaker that is in no list but this is held out too.
    speakers = {"c0ffee7", "c0ffee8"}
    assert set(read(data / "commonvoice_train/spk2utt")) == speakers
    assert len(read(data / "commonvoice_train/text")) == 2
    assert len(read(data / "ami_ihm_eval/text")) == 6
    assert len(read(data / "ami_sdm1_eval/text")) == 6


def test_what_the_annotation_of_ami_has(tmp_path):
    """Truncated words, marks without words, and segments of several sentences."""
    root = f'<?xml version="1.0" encoding="ISO-8859-1"?><nite:root {trees.NXT}>'
    elements = [
        ("w", "0.50", "0.80", "", "Hmm"),
        ("w", "0.80", "0.80", 'punc="true"', "."),
        ("vocalsound", "0.90", "1.20", 'type="laugh"', None),
        ("w", "2.00", "2.20", "", "Um"),
        ("disfmarker", "2.20", "2.20", "", None),
        ("w", "2.20", "2.40", 'trunc="true"', "remo"),
        ("gap", "2.40", "2.60", "", None),
        ("w", "2.60", "3.00", "", "caf\xe9"),
        ("w", "3.00", "3.00", 'punc="true"', "."),
        ("w", "3.10", "3.50", "", "The"),
        ("w", "3.50", "4.00", "", "L_C_D_"),
        ("w", "4.00", "4.00", 'punc="true"', ","),
        ("w", "4.10", "4.75", "", "Mm-hmm"),
        ("w", "4.75", "4.75", 'punc="true"', "?"),
        ("nonvocalsound", "5.00", "5.50", "", None),
    ]
    words = ""
    for i, (tag, start, end, more, text) in enumerate(elements):
        words += f'<{tag} nite:id="M1.A.words{i}" starttime="{start}" endtime="{end}" '
        words += f"{more}/>" if text is None else f"{more}>{text}</{tag}>"
    href = '<nite:child href="M1.A.words.xml#id(M1.A.words{})'
    segments = "".join(
        f'<segment nite:id="M1.A.sync.{i}" transcriber_start="1" transcriber_end="2">'
        f"{child}</segment>"
        for i, child in enumerate(
            [
                href.format(0) + '..id(M1.A.words1)"/>',
                href.format(2) + '"/>',  # a laugh alone
                href.format(3) + '..id(M1.A.words13)"/>',
                href.format(14) + '"/>',
                "",  # nothing at all
            ]
        )
    )
    speaker = '<speaker nxt_agent="A" channel="2" global_name="MEE006"/>'
    for name, content in (
        ("words/M1.A.words", words),
        ("segments/M1.A.segments", segments),
        (
            "corpusResources/meetings",
            f'<meeting observation="M1">{speaker}</meeting>',
        ),
    ):
        file = tmp_path / f"{name}.xml"
        file.parent.mkdir()
        file.write_bytes(f"{root}{content}</nite:root>".encode("latin-1"))
    out = tmp_path / "transcripts1"
    ami.write_transcripts(tmp_path, tmp_path / "amicorpus", out)
    assert out.read_text(encoding="utf-8").splitlines() == [
        "M1 A MEE006 2 1 2 0.50 0.80 Hmm . 0.80",
        "M1 A MEE006 2 1 2 2.00 4.75 Um remo caf\xe9 . The L_C_D_ , Mm-hmm ? "
        "3.00 4.00 4.75",
    ]
    # ESPnet's own script splits them at full stops, and takes the marks out.
    stock = (ROOT / "egs2/TEMPLATE").resolve().parent / "ami/asr1/local"
    split = tmp_path / "transcripts2"
    subprocess.run(
        [stock / "ami_split_segments.pl", out, split], check=True, capture_output=True
    )
    assert sorted(split.read_text(encoding="utf-8").splitlines()) == [
        "M1 H02 MEE006 0.5 0.8 HMM ",
        "M1 H02 MEE006 2 3 UM REMO CAF\xe9 ",
        "M1 H02 MEE006 3 4.75 THE L. C. D. MM-HMM ",
    ]


def test_common_voice_without_a_sentence_is_refused(tmp_path):
    columns = trees.COMMONVOICE_5.replace(" sentence ", " text ")
    trees.commonvoice(tmp_path / "corpus", columns)
    data, log = prepare(tmp_path, {"COMMONVOICE": tmp_path / "corpus"})
    assert "en/test.tsv lacks one of the columns client_id, path and sentence" in log
    assert "1 failed ( commonvoice)" in log
    assert not (data / "commonvoice_test").exists()


SWBD_TEXTS = {
    f"sw0{call}-{side}": [
        trees.sentence(f"sw{call}{side}", number)[0] + (" YEAH TH" if number else "")
        for number in (0, 1)
    ]
    for call in ("2001", "2005", "2006")
    for side in "AB"
}


def test_wsj_and_switchboard(tmp_path):
    """Packed and two-sided SPHERE; marks of the transcripts; nobody in train and dev."""
    root = tmp_path / "corpora"
    trees.wsj(root)
    trees.swbd(root)
    corpora = {"WSJ0": root / "wsj0", "WSJ1": Path("../../../corpora/wsj1"), "SWBD": root}
    data, log = prepare(tmp_path, corpora)
    assert "2 prepared ( wsj swbd)" in log
    assert "Warning: expected 37416 lines in train_si284.flist, got 12" in log
    assert "swbd_fisher_train is not made" in log
    tests = (data / "test_sets").read_text().split()
    assert tests == ["wsj_eval92", "wsj_eval93", "swbd_eval2000"]
    for dset, speakers in (
        *(("train", ("01t", "01u", "460")), ("dev", ("4k0",))),
        *(("eval92", ("440",)), ("eval93", ("4oa",))),
    ):
        assert read(data / f"wsj_{dset}/text") == {
            f"wsj_{speaker}c020{n + 1}": trees.sentence(speaker, n)[0] + words
            for speaker in speakers
            for n, (_, words) in enumerate(trees.WSJ_MARKS)
        }
        wavs = read(data / f"wsj_{dset}/wav.scp")
        assert all("/sphere.py wav 0 " in x for x in wavs.values())
        assert set(read(data / f"wsj_{dset}/spk2utt")) == {f"wsj_{x}" for x in speakers}
    for dset, calls in (("train", ("2005", "2006")), ("dev", ("2001",))):
        sides = [f"sw0{call}-{side}" for call in calls for side in "AB"]
        texts = read(data / f"swbd_{dset}/text")
        assert list(texts.values()) == [x for side in sides for x in SWBD_TEXTS[side]]
        assert list(read(data / f"swbd_{dset}/spk2utt")) == sides
        wavs = read(data / f"swbd_{dset}/wav.scp")
        for side in sides:
            assert f"/sphere.py wav {'AB'.index(side[-1]) + 1} " in wavs[side]
    texts = read(data / "swbd_eval2000/text")
    assert len(texts) == 80
    said = {side: trees.sentence(f"en_4156{side}", 0)[0] + " YEAH" for side in "AB"}
    assert all(words == said[utt.split("_")[1][-1]] for utt, words in texts.items())


def test_what_wsj_and_switchboard_lack(tmp_path):
    root = tmp_path / "corpora"
    (root / "wsj0/11-2.1").mkdir(parents=True)
    (root / "swbd/LDC97S62").mkdir(parents=True)
    corpora = {"WSJ0": root / "wsj0", "WSJ1": root / "nowhere", "SWBD": root / "swbd"}
    _, log = prepare(tmp_path, corpora)
    assert "2 failed ( wsj swbd)" in log
    assert f"WSJ: db.sh names {root}/nowhere, which is no directory" in log
    assert "Switchboard: no LDC97S62/transcriptions/swb_ms98_transcriptions/sw-ms98-" in log
    corpora = {"WSJ0": root / "wsj0", "WSJ1": root / "wsj0"}
    _, log = prepare(tmp_path / "again", corpora)
    assert f"WSJ: no folder 11-13.1 in {root}/wsj0 and {root}/wsj0" in log
    trees.wsj(root)
    next(root.rglob("01uc0200.dot")).unlink()
    corpora["WSJ1"] = root / "wsj1"
    _, log = prepare(tmp_path / "still", corpora)
    assert "WSJ: 8 of the 12 utterances of train_si284 have no transcript" in log


@pytest.mark.slow
def test_fisher(tmp_path):
    """As many calls as ESPnet's recipe asks for."""
    root = tmp_path / "corpora"
    trees.swbd(root)
    trees.fisher(root)
    shutil.rmtree(root / "LDC2002S09")
    data, log = prepare(tmp_path, {"SWBD": root})
    assert "1 prepared ( swbd)" in log
    assert "Switchboard: no LDC2002S09: swbd_eval2000 is not made" in log
    assert read(data / "swbd_fisher_dev/text") == read(data / "swbd_dev/text")
    texts = read(data / "swbd_fisher_train/text")
    alone = read(data / "swbd_train/text")
    assert alone.items() < texts.items()
    more = [texts[x] for x in texts if x not in alone]
    assert more == [trees.sentence(f"fe_03{x}", 0)[0] for x in "AB"] * 2
    assert len(read(data / "swbd_fisher_train/wav.scp")) == 4 + 4


@pytest.mark.parametrize(
    "text, words",
    [
        ("it's the <unk> [NOISE] <sil> end", "IT'S THE END"),
        ("'Quoted' don't", "QUOTED DON'T"),
        ("Caf\u00e9, twenty-one!", "CAFE TWENTY ONE"),
        ("[laughs]", ""),
        # Marks of the corpora are in other brackets; what is read is in parentheses.
        ("He (John) went", "HE JOHN WENT"),
        ("(all of it)", "ALL OF IT"),
        ("[inaudible 0:01:02.30] {BREATH} yeah", "YEAH"),
    ],
)
def test_normalise(text, words):
    assert normalise_text.normalise(text) == words

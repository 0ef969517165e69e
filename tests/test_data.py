import os
import shutil
import threading
from argparse import Namespace
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import LOSSES
from test_track import store

import espnet_atm.data
import espnet_atm.task
from espnet_atm.data import Reading, check_lists, check_not_all_zero
from espnet_atm.errors import UserError
from espnet_atm.task import ATMSSLTask

ATM = {"masker": "atm"}
RANDOM = {"masker": "random"}
# Not among the first utterances, which are looked at before training.
LAST = "utt9"


@pytest.fixture
def own(corpus, tmp_path):
    """A copy of the corpus that the test may spoil."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    for scp in ("wav.scp", "confidence.scp"):
        file = folder / scp
        file.write_text(file.read_text().replace(str(corpus), str(folder)))
    return folder


@pytest.fixture
def command(ssl_command, corpus, own):
    """Makes a command that trains on that copy, or validates on it only."""

    def make(*args, only=None, **config) -> list:
        words, mode = [], None
        for word in ssl_command(*args, **config):
            mode = word[2:7] if word.startswith("--") else mode
            spoilt = only in (None, mode)
            words.append(word.replace(str(corpus), str(own)) if spoilt else word)
        return words

    return make


def rewrite(file: Path, change) -> None:
    """Pass the lines of a file, without their ends, through a function."""
    lines = file.read_text().splitlines()
    file.write_text("".join(f"{line}\n" for line in change(lines)))


def folder_of(command) -> Path:
    return Path(command[command.index("--output_dir") + 1])


def read_last(own) -> np.ndarray:
    return soundfile.read(own / f"{LAST}.wav")[0]


def write_nan(own, value=np.nan):
    speech = read_last(own).astype(np.float32)
    speech[300] = value
    soundfile.write(own / f"{LAST}.wav", speech, 16000, subtype="FLOAT")


def write_rate(own):
    soundfile.write(own / f"{LAST}.wav", read_last(own), 8000)


def write_stereo(own):
    soundfile.write(own / f"{LAST}.wav", np.stack([read_last(own)] * 2, axis=1), 16000)


def write_flac(own, keep):
    """Half of a FLAC, or its header only."""
    file = own / f"{LAST}.flac"
    soundfile.write(file, read_last(own), 16000)
    data = file.read_bytes()
    file.write_bytes(data[: keep(len(data))])
    scp = own / "wav.scp"
    rewrite(scp, lambda x: [*x[:-1], f"{LAST} {file}"])


SPOILS = {
    "nan": (write_nan, "not finite, nan at sample 300"),
    "inf": (lambda own: write_nan(own, -np.inf), "not finite, -inf at sample 300"),
    "rate": (write_rate, "is sampled at 8000 Hz, and frontend_conf.fs is 16000"),
    "stereo": (write_stereo, "has 2 channels"),
    "empty": (lambda own: soundfile.write(own / f"{LAST}.wav", [], 16000), "is empty"),
    "no file": (lambda own: (own / f"{LAST}.wav").unlink(), "no such file"),
    "no sound": (lambda own: (own / f"{LAST}.wav").write_text("x"), "cannot be read"),
    "cut": (lambda own: write_flac(own, lambda n: n // 2), "cut off|cannot be read"),
    "None": (
        lambda own: rewrite(own / "wav.scp", lambda x: [*x[:-1], f"{LAST} None"]),
        "has no audio",
    ),
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("ssl_conf", [ATM, RANDOM], ids=["atm", "random"])
def test_bad_audio_is_refused_by_name(command, own, spoil, ssl_conf):
    change, message = SPOILS[spoil]
    change(own)
    streams = ("speech", "text", "confidence")[: 3 if ssl_conf == ATM else 2]
    with pytest.raises(UserError, match=f"{LAST}: .*({message})"):
        ATMSSLTask.main(cmd=command(streams, ssl_conf=ssl_conf))


STATS = ["--collect_stats", "true"]
WORKERS = ["--num_workers", "2"]


@pytest.mark.parametrize(
    "spoil, only, options",
    [
        ("nan", "valid", []),
        ("rate", "valid", []),
        ("stereo", "valid", []),
        ("nan", "train", WORKERS),
        ("rate", "valid", WORKERS),
        ("nan", None, STATS),
        ("rate", None, STATS),
        ("stereo", None, STATS + WORKERS),
    ],
)
def test_bad_audio_is_refused_wherever_it_is_read(command, own, spoil, only, options):
    change, message = SPOILS[spoil]
    change(own)
    cmd = command(("speech", "text"), only=only, ssl_conf=RANDOM) + options
    with pytest.raises(UserError, match=f"(?s){LAST}: .*({message})"):
        ATMSSLTask.main(cmd=cmd)


@pytest.mark.parametrize("name", LOSSES)
def test_bad_audio_is_refused_with_every_loss(command, own, name):
    write_nan(own)
    conf = dict(loss=[{"name": name, "conf": LOSSES[name]}], ssl_conf=RANDOM)
    cmd = command(("speech",), **conf) + ["--token_list", ""]
    with pytest.raises(UserError, match=f"{LAST}: .*not finite"):
        ATMSSLTask.main(cmd=cmd)


def to_ark(own, **kwargs):
    rate = kwargs.pop("rate", None)
    audio = {
        line.split()[0]: soundfile.read(line.split()[1], dtype=kwargs.get("dtype"))[0]
        for line in (own / "wav.scp").read_text().splitlines()
    }
    if rate is None:
        kaldiio.save_ark(str(own / "a.ark"), audio, scp=str(own / "ark.scp"))
    else:
        audio = {k: (rate if k == LAST else 16000, v) for k, v in audio.items()}
        with kaldiio.WriteHelper(f"ark,scp:{own}/a.ark,{own}/ark.scp") as f:
            for utt, (of, speech) in audio.items():
                f[utt] = of, (speech * 32767).astype(np.int16)
    return own / "ark.scp", "kaldi_ark"


def to_npy(own):
    lines = []
    for line in (own / "wav.scp").read_text().splitlines():
        utt, wav = line.split()
        np.save(own / f"{utt}.npy", soundfile.read(wav, dtype="float32")[0])
        lines.append(f"{utt} {own}/{utt}.npy\n")
    (own / "npy.scp").write_text("".join(lines))
    return own / "npy.scp", "npy"


def to_columns(own):
    rewrite(own / "wav.scp", lambda x: [*x[:-1], f"{x[-1]} {x[-1].split()[1]}"])
    return own / "wav.scp", "multi_columns_sound"


def with_type(command, own, file, kind) -> list:
    return [x.replace(f"{own}/wav.scp,speech,sound", f"{file},speech,{kind}") for x in command]


@pytest.mark.parametrize("stats", [[], STATS], ids=["", "stats"])
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda own: (write_nan(own), to_ark(own))[1], "not finite"),
        (lambda own: (write_nan(own), to_npy(own))[1], "not finite"),
        (lambda own: to_ark(own, rate=8000), "sampled at 8000 Hz"),
        (to_columns, "has 2 channels"),
    ],
    ids=["ark", "npy", "rate of an ark", "columns"],
)
def test_other_types_of_audio_are_checked(command, own, make, message, stats):
    file, kind = make(own)
    cmd = with_type(command(("speech", "text"), ssl_conf=RANDOM), own, file, kind)
    with pytest.raises(UserError, match=f"{LAST}: .*{message}"):
        ATMSSLTask.main(cmd=cmd + stats)


@pytest.mark.parametrize("make", [to_ark, to_npy, lambda own: to_ark(own, rate=16000)])
def test_other_types_of_audio_are_trained_on(command, own, make):
    file, kind = make(own)
    cmd = with_type(command(ssl_conf=ATM), own, file, kind)
    ATMSSLTask.main(cmd=cmd)
    assert (folder_of(cmd) / "1epoch.pth").exists()


def test_the_config_that_is_written_has_the_users_types(command):
    cmd = command(ssl_conf=ATM)
    ATMSSLTask.main(cmd=cmd)
    config = yaml.safe_load((folder_of(cmd) / "config.yaml").read_text())
    streams = config["train_data_path_and_name_and_type"]
    assert [x[2] for x in streams] == ["sound", "text", "kaldi_ark"]
    # And it trains again.
    again = folder_of(cmd) / "again"
    ATMSSLTask.main(args=Namespace(**{**config, "output_dir": str(again)}))
    first, second = (
        torch.load(x / "1epoch.pth", weights_only=True) for x in (folder_of(cmd), again)
    )
    assert all(torch.equal(first[k], second[k]) for k in first)


def less(file):
    rewrite(file, lambda x: x[:-3])


LISTS = {
    "track": (
        lambda own: less(own / "confidence.scp"),
        "confidence.scp: lacks 3 of the 10 utterances in .*shape: utt7, utt8, utt9; "
        "score them, .*--max_skipped",
    ),
    "label": (
        lambda own: less(own / "text"),
        "text: lacks 3 of the 10 utterances in .*shape: utt7, utt8, utt9; label them",
    ),
    "audio": (lambda own: less(own / "wav.scp"), "wav.scp: lacks 3 of the 10"),
    "twice": (
        lambda own: rewrite(own / "wav.scp", lambda x: [*x, x[2]]),
        "wav.scp:11: utt2 is in a line before",
    ),
    "empty line": (
        lambda own: rewrite(own / "wav.scp", lambda x: [*x[:5], "", *x[5:]]),
        "wav.scp:6: is an empty line",
    ),
    "empty label": (
        lambda own: rewrite(own / "text", lambda x: [*x[:-1], LAST]),
        "text:10: utt9 has nothing behind its id",
    ),
    "mark": (
        lambda own: (own / "wav.scp").write_bytes(
            b"\xef\xbb\xbf" + (own / "wav.scp").read_bytes()
        ),
        "wav.scp: begins with a byte-order mark",
    ),
    "no text": (
        lambda own: (own / "text").write_bytes(b"utt0 \xff\xfe\n"),
        "text: is no text in UTF-8",
    ),
    "empty": (lambda own: (own / "shape").write_text(""), "shape: names no utterances"),
}


@pytest.mark.parametrize("fault", LISTS)
@pytest.mark.parametrize("only", ["train", "valid"])
def test_an_utterance_without_a_stream_is_refused_at_the_start(
    command, own, fault, only
):
    change, message = LISTS[fault]
    change(own)
    cmd = command(only=only, ssl_conf=ATM)
    with pytest.raises(UserError, match=message):
        ATMSSLTask.main(cmd=cmd)
    assert not (folder_of(cmd) / "config.yaml").exists()


@pytest.mark.parametrize("fault", ["track", "label", "audio", "twice"])
@pytest.mark.parametrize("only", ["train", "valid"])
def test_large_lists_are_compared_before_training(
    command, own, fault, only, monkeypatch
):
    """Not before the model is built, where only the first utterances are looked at."""
    monkeypatch.setattr(espnet_atm.data, "SMALL", 0)
    monkeypatch.setattr(espnet_atm.task, "TRIED", 2)
    change, message = LISTS[fault]
    change(own)
    cmd = command(only=only, ssl_conf=ATM)
    with pytest.raises(UserError, match=message):
        ATMSSLTask.main(cmd=cmd)
    assert (folder_of(cmd) / "config.yaml").exists()
    assert not (folder_of(cmd) / "1epoch.pth").exists()


def test_large_lists_that_lack_the_first_utterance(command, own, monkeypatch):
    monkeypatch.setattr(espnet_atm.data, "SMALL", 0)
    rewrite(own / "text", lambda x: x[1:])
    with pytest.raises(UserError, match="text: lacks 1 of the 10 utterances .*: utt0; "):
        ATMSSLTask.main(cmd=(cmd := command(ssl_conf=ATM)))
    assert not (folder_of(cmd) / "config.yaml").exists()


def test_large_lists_of_parts_are_compared_before_training(command, own, monkeypatch):
    monkeypatch.setattr(espnet_atm.data, "SMALL", 0)
    split(own)
    rewrite(own / "confidence.scp" / "split.1", lambda x: x[:-1])
    cmd = command(only="train", ssl_conf=ATM) + ["--multiple_iterator", "true"]
    with pytest.raises(UserError, match="split.1: lacks 1 of the 5 utterances"):
        ATMSSLTask.main(cmd=cmd)
    assert not (folder_of(cmd) / "1epoch.pth").exists()


def test_what_is_not_trained_on_needs_no_track(command, own):
    less(own / "confidence.scp")
    less(own / "shape")
    cmd = command(ssl_conf=ATM)
    ATMSSLTask.main(cmd=cmd)
    assert (folder_of(cmd) / "1epoch.pth").exists()


def test_statistics_of_a_part_need_no_more_tracks_than_it_has(command, own):
    less(own / "confidence.scp")
    rewrite(own / "shape", lambda x: [line.split()[0] for line in x[:4]])
    ATMSSLTask.main(cmd=(cmd := command(ssl_conf=ATM)) + ["--collect_stats", "true"])
    assert len((folder_of(cmd) / "train/speech_shape").read_text().splitlines()) == 4


def test_a_pipe_for_a_list_is_refused_and_not_waited_for(command, own):
    content = (own / "wav.scp").read_text()
    (own / "wav.scp").unlink()
    os.mkfifo(own / "wav.scp")
    # Whoever writes must not be waited for either.
    writer = threading.Thread(
        target=lambda: (own / "wav.scp").write_text(content), daemon=True
    )
    writer.start()
    with pytest.raises(UserError, match="wav.scp: is a pipe or a device"):
        ATMSSLTask.main(cmd=command(ssl_conf=ATM))


def split(own, number=2) -> None:
    """Into folders of parts, as split_scps.py does."""
    for name in ("wav.scp", "text", "confidence.scp", "shape"):
        lines = (own / name).read_text().splitlines(keepends=True)
        (own / name).unlink()
        (own / name).mkdir()
        (own / name / "num_splits").write_text(str(number))
        for part in range(number):
            (own / name / f"split.{part}").write_text("".join(lines[part::number]))


def test_parts_of_a_set_are_checked_too(command, own):
    split(own)
    options = ["--multiple_iterator", "true"]
    cmd = command(only="train", ssl_conf=ATM) + options
    ATMSSLTask.main(cmd=cmd)
    assert (folder_of(cmd) / "1epoch.pth").exists()
    write_nan(own)
    with pytest.raises(UserError, match=f"{LAST}: .*not finite"):
        ATMSSLTask.main(cmd=command(only="train", ssl_conf=ATM) + options)
    rewrite(own / "confidence.scp" / "split.1", lambda x: x[1:])
    with pytest.raises(UserError, match="split.1: lacks 1 of the 5 utterances.*: utt1;"):
        ATMSSLTask.main(cmd=command(only="train", ssl_conf=ATM) + options)
    (own / "text" / "num_splits").write_text("3")
    with pytest.raises(UserError, match=r"have \[2, 3, 2, 2\] parts"):
        ATMSSLTask.main(cmd=command(only="train", ssl_conf=ATM) + options)
    (own / "text" / "num_splits").write_text("two")
    with pytest.raises(UserError, match="num_splits: 'two' is not a positive"):
        ATMSSLTask.main(cmd=command(only="train", ssl_conf=ATM) + options)


def last_label(word):
    """Makes the labels of the last utterance end with that."""
    return lambda own: rewrite(
        own / "text", lambda x: [*x[:-1], f"{x[-1].rsplit(maxsplit=1)[0]} {word}"]
    )


@pytest.mark.parametrize(
    "word, kind, message",
    [
        ("9", "text", "label 9 .* is not in the token list"),
        ("<unk>", "text", "label <unk> .* is not in the token list"),
        ("4", "text_int", r"label 4 .* is not in \[0, 3\], .* num_classes: 4"),
        ("-2", "text_int", r"label -2 .* is not in \[0, 3\]"),
    ],
)
@pytest.mark.parametrize("stats", [[], STATS], ids=["", "stats"])
def test_labels_without_a_class_are_refused_by_name(
    command, own, word, kind, message, stats
):
    last_label(word)(own)
    cmd = [x.replace(",text,text", f",text,{kind}") for x in command(ssl_conf=ATM)]
    with pytest.raises(UserError, match=f"{LAST}: .*{message}"):
        ATMSSLTask.main(cmd=cmd + stats)


def test_labels_that_are_no_whole_numbers_are_refused(command):
    cmd = [x.replace(",text,text", ",text,text_float") for x in command(ssl_conf=ATM)]
    with pytest.raises(UserError, match="utt0: labels must be whole numbers"):
        ATMSSLTask.main(cmd=cmd)


def test_frames_may_have_no_label(command, own):
    last_label("-1")(own)
    cmd = [x.replace(",text,text", ",text,text_int") for x in command(ssl_conf=ATM)]
    ATMSSLTask.main(cmd=cmd)
    assert (folder_of(cmd) / "1epoch.pth").exists()


def test_more_labels_than_classes_are_refused_at_the_start(command, own):
    rewrite(own / "tokens.txt", lambda x: [*x[:-1], "4", "5", x[-1]])
    with pytest.raises(UserError, match="label '5' is number 5, .*num_classes: 4; .* 6"):
        ATMSSLTask.main(cmd=command(ssl_conf=ATM))


def test_fewer_labels_than_classes_are_told(command, own, caplog):
    rewrite(own / "tokens.txt", lambda x: [*x[:2], x[-1]])
    with pytest.raises(UserError, match="utt0: label [23] .* is not in the token list"):
        ATMSSLTask.main(cmd=command(ssl_conf=ATM))
    assert "labels end at number 1, and the loss hubert has num_classes: 4" in caplog.text


@pytest.mark.parametrize(
    "lines, message",
    [
        (["0", "1", "2", "3"], "'<unk>' doesn't exist"),
        (["0", "1", "1", "<unk>"], '"1" is duplicated'),
        (["<unk>"], "holds no labels"),
    ],
)
def test_a_damaged_token_list_is_refused(command, own, lines, message):
    rewrite(own / "tokens.txt", lambda _: lines)
    with pytest.raises(UserError, match=f"token.*{message}"):
        ATMSSLTask.main(cmd=command(ssl_conf=ATM))


@pytest.mark.parametrize("only", ["train", "valid"])
@pytest.mark.parametrize(
    "ssl_conf", [ATM, {**RANDOM, "loss_scale": "utterance"}], ids=["atm", "scale"]
)
def test_confidence_0_everywhere_is_refused(command, own, ssl_conf, only):
    scores = [f"utt{number} 0.0000" for number in range(10)]
    (own / "utt2confidence").write_text("\n".join(scores) + "\n")
    with pytest.raises(UserError, match="utt2confidence: all 10 utterances .* 0:"):
        ATMSSLTask.main(cmd=command(only=only, ssl_conf=ssl_conf))


def test_only_the_set_counts_for_confidence_0(tmp_path):
    (tmp_path / "utt2confidence").write_text("a 0.0\nb 0.5\nc 0.0\n")
    (tmp_path / "shape").write_text("a 16000\nc 16000\n")
    scp = str(tmp_path / "confidence.scp")
    check_not_all_zero(scp, [])
    with pytest.raises(UserError, match="all 2 utterances have the confidence 0"):
        check_not_all_zero(scp, [str(tmp_path / "shape")])
    (tmp_path / "utt2confidence").write_text("a high\n")
    with pytest.raises(UserError, match="utt2confidence:1: 'high' is not a confidence"):
        check_not_all_zero(scp, [])


def test_lists_of_many_utterances_are_read_in_seconds(tmp_path):
    """200,000 of them: what is not decoded costs microseconds an utterance."""
    import time

    utts = [f"speaker{n % 1000}-{n}" for n in range(200_000)]
    streams = []
    for name, kind in (("speech", "sound"), ("confidence", "kaldi_ark")):
        file = tmp_path / name
        file.write_text("".join(f"{utt} /data/{utt}\n" for utt in utts))
        streams.append((str(file), name, kind))
    start = time.perf_counter()
    check_lists(streams, [])
    assert time.perf_counter() - start < 10


def test_augmentation_sees_what_was_checked():
    """The checks see the audio as it was read, and stock preprocessing comes behind."""
    seen = []

    def stock(utt, data):
        seen.append(data["speech"].copy())
        return {**data, "speech": data["speech"] * np.nan}

    speech = np.ones(8, np.float32)
    found = Reading(stock, 16000)("a", {"speech": speech})
    assert (seen[0] == speech).all() and np.isnan(found["speech"]).all()


def scored(own) -> None:
    """Have the copy's tracks as scoring leaves them, with what it notes beside them."""
    tracks = {
        utt: track[:, 0]
        for utt, track in kaldiio.load_scp(str(own / "confidence.scp")).items()
    }
    audio = {utt: soundfile.read(own / f"{utt}.wav", dtype="float32")[0] for utt in tracks}
    store(own, tracks, audio=audio)


def exchange(own):
    """The archive's places of two utterances, as if they were the other's."""

    def change(lines):
        (one, here), (two, there) = (line.split() for line in lines[-2:])
        return [*lines[:-2], f"{one} {there}", f"{two} {here}"]

    rewrite(own / "confidence.scp", change)


def flip(own):
    """A bit of the last track's last frame."""
    data = bytearray((own / "confidence.ark").read_bytes())
    data[-1] ^= 1
    (own / "confidence.ark").write_bytes(data)


def other_audio(own):
    soundfile.write(own / f"{LAST}.wav", read_last(own)[::-1], 16000, subtype="PCM_16")


def longer_audio(own):
    speech = np.concatenate([read_last(own), np.zeros(3200)])
    soundfile.write(own / f"{LAST}.wav", speech, 16000, subtype="PCM_16")
    labels = " 0" * 20
    rewrite(own / "text", lambda x: [*x[:-1], x[-1] + labels])


FOREIGN = {
    "exchanged": (exchange, "utt[89]: .*is not its track"),
    "flipped": (flip, f"{LAST}: .*(checksum|not the mean)"),
    "other audio": (other_audio, f"{LAST}: its audio is not what was scored"),
    "longer audio": (longer_audio, f"{LAST}: .*(is not what was scored|does not fit)"),
}


@pytest.mark.parametrize(
    "fault, options",
    [
        *((fault, options) for fault in FOREIGN for options in ([], STATS)),
        ("other audio", WORKERS),
    ],
)
def test_tracks_that_are_not_this_audios_are_refused(command, own, fault, options):
    change, message = FOREIGN[fault]
    scored(own)
    change(own)
    with pytest.raises(UserError, match=f"(?s){message}"):
        ATMSSLTask.main(cmd=command(ssl_conf=ATM) + options)


@pytest.mark.parametrize("fault", ["exchanged", "longer audio"])
def test_tracks_by_others_are_held_to_their_id_and_length(command, own, fault):
    change, message = FOREIGN[fault]
    change(own)
    with pytest.raises(UserError, match=message):
        ATMSSLTask.main(cmd=command(ssl_conf=ATM))


@pytest.mark.parametrize("masker", [ATM, RANDOM], ids=["atm", "random"])
def test_tracks_as_scoring_leaves_them_are_trained_with(command, own, masker):
    scored(own)
    cmd = command(ssl_conf=masker)
    ATMSSLTask.main(cmd=cmd)
    assert (folder_of(cmd) / "1epoch.pth").exists()


def test_a_flac_is_held_to_what_was_scored_or_to_its_own_checksum(own):
    """What was scored is what its own checksum was of, or scoring would have refused it."""
    from espnet2.train.dataset import ESPnetDataset

    speech, flac = read_last(own), own / f"{LAST}.flac"
    rewrite(own / "wav.scp", lambda x: [*x[:-1], f"{LAST} {flac}"])

    def write(samples, digest=b""):
        soundfile.write(flac, samples, 16000, subtype="PCM_16")
        data = bytearray(flac.read_bytes())
        data[26 : 26 + len(digest)] = digest
        flac.write_bytes(data)

    def read(tracked):
        streams = [(str(own / "wav.scp"), "speech", "sound")]
        if tracked:
            streams.append((str(own / "confidence.scp"), "confidence", "kaldi_ark"))
        ours, reading = Reading(None, 16000).of(streams)
        espnet_atm.data.open_track.cache_clear()
        return ESPnetDataset(ours, preprocess=reading)[LAST][1]["speech"]

    damaged = f"{LAST}: is damaged: its samples do not have the checksum of the FLAC"
    scored(own)
    write(speech, bytes(range(16)))
    with pytest.raises(UserError, match=damaged):
        read(tracked=False)
    assert np.array_equal(read(tracked=True), speech.astype(np.float32))
    write(speech[::-1], bytes(range(16)))
    with pytest.raises(UserError, match=damaged):
        read(tracked=True)
    write(speech[::-1])
    with pytest.raises(UserError, match=f"{LAST}: its audio is not what was scored"):
        read(tracked=True)
    write(speech[:-1], bytes(range(16)))  # of about the same length
    with pytest.raises(UserError, match=damaged):
        read(tracked=True)
    write(speech[:-1])
    assert len(read(tracked=True)) == len(speech) - 1
    (own / "utt2audio").unlink()
    write(speech, bytes(range(16)))
    with pytest.raises(UserError, match=damaged):
        read(tracked=True)


def test_parts_are_held_to_what_is_noted_beside_the_whole(command, own):
    scored(own)
    split(own)
    other_audio(own)
    cmd = command(only="train", ssl_conf=ATM) + ["--multiple_iterator", "true"]
    with pytest.raises(UserError, match=f"{LAST}: its audio is not what was scored"):
        ATMSSLTask.main(cmd=cmd)


def test_a_track_that_is_no_confidence_is_refused_of_any_type(command, own):
    lines = []
    for line in (own / "confidence.scp").read_text().splitlines():
        utt, source = line.split()
        track = kaldiio.load_mat(source)
        track[3] = np.nan if utt == LAST else track[3]
        np.save(own / f"{utt}.npy", track)
        lines.append(f"{utt} {own}/{utt}.npy\n")
    (own / "confidence.scp").write_text("".join(lines))
    cmd = [x.replace("confidence,kaldi_ark", "confidence,npy") for x in command(ssl_conf=ATM)]
    with pytest.raises(UserError, match=f"{LAST}: confidence must be in .* nan in frame 3"):
        ATMSSLTask.main(cmd=cmd)


def test_lists_stay_in_their_files(own):
    """What ESPnet's type ``text`` says, and nothing of it in memory."""
    from espnet2.fileio.read_text import read_2columns_text
    from espnet2.train.dataset import ESPnetDataset

    streams = [
        (str(own / "wav.scp"), "speech", "sound"),
        (str(own / "text"), "text", "text"),
        (str(own / "confidence.scp"), "confidence", "kaldi_ark"),
    ]
    ours, reading = Reading(lambda utt, data: {**data, "text": np.zeros(1, np.int64)}, 16000).of(
        streams
    )
    dataset = ESPnetDataset(ours, preprocess=reading)
    for name, file in (("speech", "wav.scp"), ("text", "text")):
        loader, expected = dataset.loader_dict[name], read_2columns_text(own / file)
        assert not isinstance(loader, dict)
        assert dict(loader) == expected and len(loader) == len(expected)
        assert "utt3" in loader and "nothing" not in loader
        with pytest.raises(KeyError, match="nothing"):
            loader["nothing"]
    assert set(dataset["utt3"][1]) == {"speech", "text", "confidence"}
    assert list(dataset) == [f"utt{x}" for x in range(10)]
    # For statistics they come line by line.
    assert [x[2] for x in Reading(None, 16000).of(streams, one_by_one=True)[0][:2]] == [
        "text",
        "text",
    ]


@pytest.mark.parametrize("order", ["sorted", "unsorted"])
def test_lists_of_the_same_utterances(tmp_path, order):
    """In any order, whether they need be held in memory or not."""
    utts = [f"utt{x:03}" for x in range(50)]
    files = []
    for name in ("shape", "wav.scp", "text"):
        own = utts if order == "sorted" or name == "shape" else utts[::-1]
        (tmp_path / name).write_text("".join(f"{utt} x\n" for utt in own))
        files.append(str(tmp_path / name))
    streams = [(files[1], "speech", "sound"), (files[2], "text", "text")]
    check_lists(streams, files[:1])
    lines = Path(files[2]).read_text().splitlines()
    for bad, message in (
        (lines[:-1], "text: lacks 1 of the 50 utterances"),
        ([*lines[:-1], lines[0]], "text:50: utt... is in a line before already"),
        ([lines[0].split()[0], *lines[1:]], "text:1: utt... has nothing behind its id"),
        ([], "text: lacks 50 of the 50 utterances"),
    ):
        Path(files[2]).write_text("".join(f"{line}\n" for line in bad))
        with pytest.raises(UserError, match=message):
            check_lists(streams, files[:1])
    Path(files[2]).write_text("\n".join([*lines, "more x"]) + "\n")
    check_lists(streams, files[:1])  # more than are wanted

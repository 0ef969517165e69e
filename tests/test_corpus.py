import re

import numpy as np
import pytest
import torch
import yaml
from conftest import CNN, SSL_CONFIG

from espnet_atm.confidence import smooth_confidence
from espnet_atm.config import SSLConf
from espnet_atm.corpus import Corpus, Means, Settings, read_corpus
from espnet_atm.errors import UserError
from espnet_atm.task import ATMSSLTask, encoder_grid

PLAIN = Settings(SSLConf.parse({}), 16000)


def hear(scores, wav_scp, settings=PLAIN, utt2category=None):
    return read_corpus(Corpus(scores, wav_scp, settings, utt2category), 1000)


def test_a_scorer_may_have_another_rate(corpus, tmp_path):
    expected = hear(corpus, corpus / "wav.scp")
    (tmp_path / "confidence.scp").write_text((corpus / "confidence.scp").read_text())
    for name, value in (
        ("frame_shift", "320"),
        ("frame_offset", "239.75"),
        ("sampling_rate", "8000"),
    ):
        (tmp_path / name).write_text(value)
    found = hear(tmp_path, corpus / "wav.scp")
    for name in ("confidence", "probability", "speech"):
        for a, b in zip(found, expected):
            assert np.array_equal(getattr(a, name), getattr(b, name))


def test_another_sampling_rate_is_refused(corpus):
    settings = PLAIN._replace(fs=8000)
    with pytest.raises(ValueError, match="utt0: sampled at 16000 Hz, not at --fs 8000"):
        hear(corpus, corpus / "wav.scp", settings)


def test_scores_without_audio_are_refused(corpus, tmp_path):
    (tmp_path / "wav.scp").write_text("other x.wav\n")
    with pytest.raises(ValueError, match="no audio of utt0"):
        hear(corpus, tmp_path / "wav.scp")


def test_tracks_come_to_the_frames_that_are_masked(scored, tmp_path):
    """As training takes them: aligned by time, smoothed and gated."""

    def config(**more) -> str:
        file = tmp_path / "train.yaml"
        file.write_text(yaml.safe_dump({**SSL_CONFIG, **more}))
        return str(file)

    def heard(settings=PLAIN):
        files = scored / "scores", scored / "wav.scp", settings, scored / "utt2category"
        return hear(*files)

    def with_track(**track_conf):
        return Settings.read(config(ssl_conf={"masker": "atm", "track_conf": track_conf}))

    plain = {x.utt: x for x in heard()}
    cnn = {"frontend": "wav2vec_cnn", "frontend_conf": CNN, "preencoder": "linear"}
    for x in heard(Settings.read(config(ssl_conf={"masker": "atm"}, **cnn))):
        assert len(x.confidence) == pytest.approx(2 * len(plain[x.utt].confidence), abs=3)
        assert len(x.confidence) == len(x.speech) == len(x.probability)
        assert x.confidence.mean() == pytest.approx(plain[x.utt].confidence.mean(), abs=0.02)
        assert x.speech.mean() == pytest.approx(plain[x.utt].speech.mean(), abs=0.05)
    args = ATMSSLTask.get_parser().parse_args(
        ["--config", config(ssl_conf={"masker": "atm"}), "--output_dir", "x"]
    )
    assert encoder_grid(args).shift == 640
    for x in heard(with_track(smooth=5)):
        track = torch.from_numpy(plain[x.utt].confidence)[None]
        expected = smooth_confidence(track, torch.tensor([track.size(1)]), 5)[0]
        assert np.abs(x.confidence - expected.numpy()).max() < 1e-6
    for x in heard(with_track(energy_gate=20)):
        if x.category == "clean":
            assert (x.confidence[plain[x.utt].confidence > 0.8] == 0).all()


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"masker": "best"}, "train.yaml: ssl_conf.masker: 'best'"),
        (
            {"masker": "atm", "masker_conf": {"mask_ratio": 1}},
            "train.yaml: ssl_conf.masker_conf.mask_ratio: 1.0 teaches nothing",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, conf, message):
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({**SSL_CONFIG, "ssl_conf": conf}))
    with pytest.raises(UserError, match=message):
        Settings.read(str(tmp_path / "train.yaml"))


def means_of(scored, utt2category=None) -> Means:
    return Means(Corpus(scored / "scores", scored / "wav.scp", PLAIN, utt2category))


def test_every_utterance_has_its_confidence_and_condition(scored):
    """Whatever the order of the lists, and whoever is missing in one."""
    lines = (scored / "scores/utt2confidence").read_text().splitlines()
    expected = {utt: float(text) for utt, text in map(str.split, lines)}
    categories = dict(map(str.split, (scored / "utt2category").open()))
    del categories["noise-1"], categories["clean-0"]
    rows = [f"{utt} {name}\n" for utt, name in categories.items()]
    for more in (rows, sorted(rows), rows[::-1]):
        (scored / "utt2category").write_text("other one of two words\n" + "".join(more))
        means = means_of(scored, scored / "utt2category")
        assert means.values.tolist() == list(expected.values())
        assert {name: x.tolist() for name, x in means.groups.items()} == {
            name: [y for utt, y in expected.items() if categories.get(utt, "all") == name]
            for name in ("all", *dict.fromkeys(categories.values()))
        }
        assert all(means[utt] == x for utt, x in expected.items())
    assert list(means_of(scored).groups) == ["all"]


@pytest.mark.parametrize("text", ["1.01", "-0.1", "nan", "inf", "x", "0.5 0.5"])
def test_what_is_no_confidence_is_refused(scored, text):
    file = scored / "scores/utt2confidence"
    first, second, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first, f"{second.split()[0]} {text}", *rest]))
    message = f"{file}: {second.split()[0]}: {text!r} is not in [0, 1]"
    with pytest.raises(UserError, match=re.escape(message)):
        means_of(scored)


def test_a_track_without_confidence_is_refused(scored):
    file = scored / "scores/utt2confidence"
    file.write_text("".join(file.read_text().splitlines(True)[1:]))
    with pytest.raises(UserError, match="utt2confidence: has no line of clean-0"):
        means_of(scored)["clean-0"]


def test_an_even_selection(scored):
    """Five of fifteen, each as it is by itself."""
    corpus = Corpus(scored / "scores", scored / "wav.scp", PLAIN, scored / "utt2category")
    utts = list(corpus.tracks)
    found = read_corpus(corpus, 5)
    assert [x.utt for x in found] == utts[::3] and len(utts) == 15
    for x in found:
        for a, b in zip(x, corpus.hear(x.utt)):
            assert np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype
    assert [x.utt for x in read_corpus(corpus, 1)] == utts[:1]
    assert len(read_corpus(corpus, 1000)) == 15

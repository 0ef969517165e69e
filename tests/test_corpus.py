import numpy as np
import pytest
import torch
import yaml
from conftest import CNN, SSL_CONFIG

from espnet_atm.confidence import smooth_confidence
from espnet_atm.config import SSLConf
from espnet_atm.corpus import Corpus, Settings, read_corpus
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

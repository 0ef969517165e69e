import json

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import CNN, SSL_CONFIG

from espnet_atm.bin import summary
from espnet_atm.bin.report import Corpus, get_parser, main, read_corpus, read_settings
from espnet_atm.confidence import frame_energy, smooth_confidence
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid
from espnet_atm.guidance import measure_weights
from espnet_atm.masking import STRATEGIES
from espnet_atm.task import ATMSSLTask, encoder_grid


def hear(command):
    args = get_parser().parse_args(command)
    return read_corpus(Corpus(args, read_settings(args)), args.max_utterances)


@pytest.fixture
def scored(corpus, tmp_path):
    """The corpus with its track and made-up utterance confidences."""
    lines = [f"utt{i} 0.{i}" for i in range(10)]
    (corpus / "utt2confidence").write_text("\n".join(lines) + "\n")
    (corpus / "summary.json").unlink(missing_ok=True)
    categories = [f"utt{i} {'clean' if i % 2 else 'noise'}" for i in range(10)]
    (tmp_path / "utt2category").write_text("\n".join(categories) + "\n")
    return [
        *("--confidence_dir", str(corpus), "--wav_scp", str(corpus / "wav.scp")),
        *("--output_dir", str(tmp_path / "report")),
    ]


def test_report_has_its_plots(scored, tmp_path):
    main(
        scored
        + ["--utt2category", str(tmp_path / "utt2category"), "--num_examples", "2"]
    )
    names = {x.name for x in (tmp_path / "report").glob("*.png")}
    assert names == {
        *("frame_confidence.png", "utterance_confidence.png"),
        *("example_1.png", "example_2.png"),
    }
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "<td>clean</td><td>5</td><td>0.500</td>" in page
    assert "<td>utterances scored</td><td>10</td>" in page


def test_without_conditions(scored, tmp_path):
    main(scored)
    assert "<td>all</td><td>10</td>" in (tmp_path / "report/report.html").read_text()


def test_a_scorer_may_have_another_rate(scored, corpus, tmp_path):
    expected = hear(scored)
    (tmp_path / "confidence.scp").write_text((corpus / "confidence.scp").read_text())
    for name, value in (
        ("frame_shift", "320"),
        ("frame_offset", "239.75"),
        ("sampling_rate", "8000"),
    ):
        (tmp_path / name).write_text(value)
    scored[1] = str(tmp_path)
    found = hear(scored)
    for name in ("confidence", "probability", "speech"):
        for a, b in zip(found, expected):
            assert np.array_equal(getattr(a, name), getattr(b, name))


def test_another_sampling_rate_is_refused(scored):
    with pytest.raises(ValueError, match="utt0: sampled at 16000 Hz, not at --fs 8000"):
        main(scored + ["--fs", "8000"])


def test_scores_without_audio_are_refused(scored, tmp_path):
    (tmp_path / "wav.scp").write_text("other x.wav\n")
    scored[3] = str(tmp_path / "wav.scp")
    with pytest.raises(ValueError, match="no audio of utt0"):
        main(scored)


def test_no_page_of_others_is_written_over(scored, tmp_path):
    page = tmp_path / "report" / "report.html"
    page.parent.mkdir()
    page.write_text("<html>mine</html>")
    with pytest.raises(UserError, match="report.html was not made by"):
        main(scored)
    assert page.read_text() == "<html>mine</html>"
    page.unlink()
    main(scored)
    main(scored)


@pytest.fixture
def mini(spoken, tmp_path):
    """Speech and noise in three takes each, with tracks that rank noise above speech."""
    grid = FrameGrid(640, 479.5)
    tracks, wavs, means, categories = {}, [], [], []
    for condition, speech in spoken.items():
        soundfile.write(tmp_path / f"{condition}.wav", speech.numpy(), 16000)
        frames = (len(speech) - 160) // 640
        energy = frame_energy(
            speech[None], torch.tensor([len(speech)]), grid, torch.tensor([frames])
        )
        for take in range(3):
            utt = f"{condition}-{take}"
            wavs.append(f"{utt} {tmp_path}/{condition}.wav\n")
            # Sure of what is silent, and of noise.
            track = np.where(energy[0].numpy() < -20, 0.9, 0.6)
            track = np.full(frames, 0.95) if condition == "purenoise" else track
            tracks[utt] = track[:, None].astype(np.float32)
            means.append(f"{utt} {np.rint(track * 255).mean() / 255:.6f}\n")
            categories.append(f"{utt} {condition}\n")
    folder = tmp_path / "scores"
    folder.mkdir()
    kaldiio.save_ark(
        str(folder / "confidence.ark"),
        tracks,
        scp=str(folder / "confidence.scp"),
        compression_method=7,
    )
    (folder / "frame_shift").write_text("640\n")
    (folder / "frame_offset").write_text("479.5\n")
    (folder / "utt2confidence").write_text("".join(means))
    (tmp_path / "wav.scp").write_text("".join(wavs))
    (tmp_path / "utt2category").write_text("".join(categories))
    return [
        *("--confidence_dir", str(folder), "--wav_scp", str(tmp_path / "wav.scp")),
        *("--output_dir", str(tmp_path / "report"), "--num_examples", "1"),
        *("--utt2category", str(tmp_path / "utt2category")),
    ]


def read(tmp_path) -> dict:
    return json.loads((tmp_path / "scores/summary.json").read_text())


def test_the_summary_says_how_strong_the_guidance_is(mini, tmp_path, capsys):
    summary.main(["--confidence_dir", str(tmp_path / "scores")])
    before = read(tmp_path)
    main(mini)
    found = read(tmp_path)
    assert {k: found[k] for k in before} == before
    assert set(found["guidance"]) == set(STRATEGIES)
    for figures in found["guidance"].values():
        assert set(figures) == {"probability_sd", "confidence_gain", "nonspeech_share"}
    means = [
        float(x.split()[1]) for x in (tmp_path / "scores/utt2confidence").open()
    ]
    assert found["weights"] == measure_weights(means)
    assert found["guidance_settings"]["mask_ratio"] == 0.4
    assert found["guidance"]["topk"]["confidence_gain"] > 0.05
    warnings = "\n".join(found["warnings"])
    assert "purenoise, which is noise, has a higher utterance confidence" in warnings
    assert "masks more frames without speech than random masks" in warnings
    out = capsys.readouterr().out
    text = (tmp_path / "report/guidance.txt").read_text()
    assert out.endswith(text) and all(x in text for x in found["warnings"])
    page = (tmp_path / "report/report.html").read_text()
    assert page.index("How strong the guidance is") < page.index("<h2>Utterances")
    assert page.count("class='warning'") == 2 and "<td>purenoise</td>" in page
    main(mini)
    assert read(tmp_path) == found
    # Summarised again, the scores have lost it, as stage 7 sees.
    summary.main(["--confidence_dir", str(tmp_path / "scores")])
    assert read(tmp_path) == before


def test_without_a_summary_one_is_made(mini, tmp_path):
    main(mini)
    assert read(tmp_path)["utterances"] == 15 and "guidance" in read(tmp_path)


def test_an_old_summary_is_made_anew(mini, tmp_path):
    old = {"utterances": 3, "deciles": [], "mean": 2}
    (tmp_path / "scores/summary.json").write_text(json.dumps(old))
    main(mini)
    assert read(tmp_path)["utterances"] == 15 and read(tmp_path)["mean"] < 1


def test_a_summary_of_others_is_not_written_over(mini, tmp_path):
    file = tmp_path / "scores/summary.json"
    file.write_text("mine")
    with pytest.raises(UserError, match="summary.json was not made by"):
        main(mini)
    assert file.read_text() == "mine" and not (tmp_path / "report").exists()


def test_gated_scores_are_not_told_to_be_gated(mini, tmp_path):
    (tmp_path / "scores/scorer").write_text(
        json.dumps({"model": "x", "config": "y", "speech_gate": "silero-vad 6"})
    )
    main(mini)
    found = read(tmp_path)
    assert found["guidance_settings"]["speech_gate"] is True
    assert found["warnings"] and not any("--speech_gate" in x for x in found["warnings"])


@pytest.fixture
def config(tmp_path):
    """Writes an SSL config."""

    def write(**more):
        file = tmp_path / "train.yaml"
        file.write_text(yaml.safe_dump({**SSL_CONFIG, **more}))
        return ["--ssl_config", str(file)]

    return write


def test_the_settings_of_a_run(mini, config, tmp_path):
    conf = {
        "masker": "atm",
        "masker_conf": {
            **{"strategy": "low", "mask_ratio": 0.3, "span": 5, "sharpness": 2},
            "exact": True,
        },
        "loss_scale": "utterance",
        "loss_scale_conf": {"sharpness": 3},
        "crop_seconds": 32,
    }
    main(mini + config(ssl_conf=conf))
    found = read(tmp_path)
    settings = found["guidance_settings"]
    assert settings == {
        **{"masker": "atm", "mask_ratio": 0.3, "span": 5, "strategy": "low"},
        **{"sharpness": 2.0, "exact": True},
        **{"loss_scale": "utterance", "speech_gate": False},
    }
    means = [
        float(x.split()[1]) for x in (tmp_path / "scores/utt2confidence").open()
    ]
    assert found["weights"] == measure_weights(means, 3)
    page = (tmp_path / "report/report.html").read_text()
    assert (
        "30% of the frames masked in spans of 5, the last of which is cut (exact), "
        "sharpness 2" in page
    )
    assert "Training takes 32 s of each utterance at most" in page
    assert "<tr class='used'><td>low</td>" in page


def test_tracks_come_to_the_frames_that_are_masked(mini, config, tmp_path):
    """As training takes them: aligned by time, smoothed and gated."""
    plain = {x.utt: x for x in hear(mini)}
    cnn = {"frontend": "wav2vec_cnn", "frontend_conf": CNN, "preencoder": "linear"}
    options = config(ssl_conf={"masker": "atm"}, **cnn)
    for x in hear(mini + options):
        assert len(x.confidence) == pytest.approx(2 * len(plain[x.utt].confidence), abs=3)
        assert len(x.confidence) == len(x.speech) == len(x.probability)
        assert x.confidence.mean() == pytest.approx(plain[x.utt].confidence.mean(), abs=0.02)
        assert x.speech.mean() == pytest.approx(plain[x.utt].speech.mean(), abs=0.05)
    args = ATMSSLTask.get_parser().parse_args(
        ["--config", config(ssl_conf={"masker": "atm"})[1], "--output_dir", "x"]
    )
    assert encoder_grid(args).shift == 640
    smooth = config(ssl_conf={"masker": "atm", "track_conf": {"smooth": 5}})
    for x in hear(mini + smooth):
        track = torch.from_numpy(plain[x.utt].confidence)[None]
        expected = smooth_confidence(track, torch.tensor([track.size(1)]), 5)[0]
        assert np.abs(x.confidence - expected.numpy()).max() < 1e-6
    gate = config(ssl_conf={"masker": "atm", "track_conf": {"energy_gate": 20}})
    for x in hear(mini + gate):
        if x.category == "clean":
            assert (x.confidence[plain[x.utt].confidence > 0.8] == 0).all()


@pytest.mark.parametrize("more", [["--mask_ratio", "0.4"], ["--span", "10"], ["--fs", "16000"]])
def test_options_that_the_config_says_are_refused(mini, config, more):
    with pytest.raises(UserError, match=f"{more[0]}: is in --ssl_config .*leave it out"):
        main(mini + config(ssl_conf={"masker": "atm"}) + more)


@pytest.mark.parametrize(
    "conf, message",
    [
        ({}, "train.yaml: has no ssl_conf: nothing is guided"),
        ({"ssl_conf": {"masker": "best"}}, "train.yaml: ssl_conf.masker: 'best'"),
        (
            {"ssl_conf": {"masker": "atm"}, "frontend_conf": {"fs": "8k"}},
            "sampled at 16000 Hz, not at frontend_conf.fs 8000",
        ),
        (
            {"ssl_conf": {"masker": "atm", "masker_conf": {"mask_ratio": 1}}},
            "train.yaml: ssl_conf.masker_conf.mask_ratio: 1.0 teaches nothing",
        ),
    ],
)
def test_configs_that_do_not_fit_are_refused(mini, config, conf, message):
    with pytest.raises(UserError, match=message):
        main(mini + config(**conf))


def test_random_masks_are_told_what_guidance_would_do(mini, config, tmp_path):
    main(mini + config(ssl_conf={"masker": "random"}))
    found = read(tmp_path)
    assert found["guidance_settings"]["strategy"] == "random"
    assert found["guidance_settings"]["mask_ratio"] == 0.49
    assert "use no confidence" in (tmp_path / "report/report.html").read_text()
    assert any("high masks more frames without speech" in x for x in found["warnings"])


def test_impossible_options_are_refused(scored):
    for option, value, message in (
        ("--mask_ratio", "2", "mask_ratio: 2.0 is not in"),
        ("--mask_ratio", "0", "mask_ratio: 0.0 teaches nothing"),
        ("--span", "0", "span: 0 is not a positive number"),
        ("--fs", "0", "fs: 0"),
        ("--max_utterances", "0", "max_utterances: 0"),
    ):
        with pytest.raises(UserError, match=message):
            main([*scored, option, value])

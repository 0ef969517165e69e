import json

import pytest
import yaml
from conftest import SSL_CONFIG

from espnet_atm.bin import summary
from espnet_atm.bin.report import main
from espnet_atm.errors import UserError
from espnet_atm.guidance import measure_weights
from espnet_atm.masking import STRATEGIES


@pytest.fixture
def quick(corpus, tmp_path):
    """Reports on the corpus with its track and made-up utterance confidences."""
    lines = [f"utt{i} 0.{i}" for i in range(10)]
    (corpus / "utt2confidence").write_text("\n".join(lines) + "\n")
    (corpus / "summary.json").unlink(missing_ok=True)
    return [
        *("--confidence_dir", str(corpus), "--wav_scp", str(corpus / "wav.scp")),
        *("--output_dir", str(tmp_path / "report")),
    ]


@pytest.fixture
def command(scored) -> list[str]:
    """Reports on speech and noise."""
    return [
        *("--confidence_dir", str(scored / "scores")),
        *("--wav_scp", str(scored / "wav.scp")),
        *("--utt2category", str(scored / "utt2category")),
        *("--output_dir", str(scored / "report"), "--num_examples", "1"),
    ]


def read(tmp_path) -> dict:
    return json.loads((tmp_path / "scores/summary.json").read_text())


@pytest.fixture
def config(tmp_path):
    """Writes an SSL config."""

    def write(**more):
        file = tmp_path / "train.yaml"
        file.write_text(yaml.safe_dump({**SSL_CONFIG, **more}))
        return ["--ssl_config", str(file)]

    return write


def test_no_page_of_others_is_written_over(quick, tmp_path):
    page = tmp_path / "report" / "report.html"
    page.parent.mkdir()
    page.write_text("<html>mine</html>")
    with pytest.raises(UserError, match="report.html was not made by"):
        main(quick)
    assert page.read_text() == "<html>mine</html>"
    page.unlink()
    main(quick)
    main(quick)


def test_another_sampling_rate_is_refused(quick):
    with pytest.raises(ValueError, match="utt0: sampled at 16000 Hz, not at --fs 8000"):
        main(quick + ["--fs", "8000"])


def test_the_summary_says_how_strong_the_guidance_is(command, tmp_path, capsys):
    summary.main(["--confidence_dir", str(tmp_path / "scores")])
    before = read(tmp_path)
    main(command)
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
    main(command)
    assert read(tmp_path) == found
    # Summarised again, the scores have lost it, as stage 7 sees.
    summary.main(["--confidence_dir", str(tmp_path / "scores")])
    assert read(tmp_path) == before


def test_a_summary_of_others_is_not_written_over(command, tmp_path):
    file = tmp_path / "scores/summary.json"
    file.write_text("mine")
    with pytest.raises(UserError, match="summary.json was not made by"):
        main(command)
    assert file.read_text() == "mine" and not (tmp_path / "report").exists()


def test_the_settings_of_a_run(command, config, tmp_path):
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
    main(command + config(ssl_conf=conf))
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


@pytest.mark.parametrize("more", [["--mask_ratio", "0.4"], ["--span", "10"], ["--fs", "16000"]])
def test_options_that_the_config_says_are_refused(command, config, more):
    with pytest.raises(UserError, match=f"{more[0]}: is in --ssl_config .*leave it out"):
        main(command + config(ssl_conf={"masker": "atm"}) + more)


@pytest.mark.parametrize(
    "conf, message",
    [
        ({}, "train.yaml: has no ssl_conf: nothing is guided"),
        (
            {"ssl_conf": {"masker": "atm"}, "frontend_conf": {"fs": "8k"}},
            "sampled at 16000 Hz, not at frontend_conf.fs 8000",
        ),
    ],
)
def test_configs_that_do_not_fit_are_refused(command, config, conf, message):
    with pytest.raises(UserError, match=message):
        main(command + config(**conf))


def test_impossible_options_are_refused(quick):
    for option, value, message in (
        ("--mask_ratio", "2", "mask_ratio: 2.0 is not in"),
        ("--mask_ratio", "0", "mask_ratio: 0.0 teaches nothing"),
        ("--span", "0", "span: 0 is not a positive number"),
        ("--fs", "0", "fs: 0"),
        ("--max_utterances", "0", "max_utterances: 0"),
    ):
        with pytest.raises(UserError, match=message):
            main([*quick, option, value])

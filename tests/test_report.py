import json
from pathlib import Path

from espnet_atm.config import SSLConf
from espnet_atm.corpus import Corpus, Settings
from espnet_atm.report import make_report


def report(scored: Path, ssl_conf=None, num_examples=1) -> None:
    """Make it, for these settings or the default ones."""
    categories = scored / "utt2category"
    corpus = Corpus(
        scored / "scores",
        scored / "wav.scp",
        Settings(SSLConf.parse(ssl_conf or {}), 16000),
        categories if categories.exists() else None,
    )
    make_report(corpus, scored / "report/report.html", 1000, num_examples)


def read(scored: Path) -> dict:
    return json.loads((scored / "scores/summary.json").read_text())


def test_report_has_its_plots(scored):
    report(scored, num_examples=2)
    names = {x.name for x in (scored / "report").glob("*.png")}
    assert names == {
        *("frame_confidence.png", "utterance_confidence.png"),
        *("example_1.png", "example_2.png"),
    }
    page = (scored / "report/report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "<td>purenoise</td><td>3</td><td>0.949</td>" in page
    assert "<td>utterances scored</td><td>15</td>" in page


def test_without_conditions(scored):
    (scored / "utt2category").unlink()
    report(scored)
    assert "<td>all</td><td>15</td>" in (scored / "report/report.html").read_text()


def test_without_a_summary_one_is_made(scored):
    report(scored)
    assert read(scored)["utterances"] == 15 and "guidance" in read(scored)


def test_an_old_summary_is_made_anew(scored):
    old = {"utterances": 3, "deciles": [], "mean": 2}
    (scored / "scores/summary.json").write_text(json.dumps(old))
    report(scored)
    assert read(scored)["utterances"] == 15 and read(scored)["mean"] < 1


def test_gated_scores_are_not_told_to_be_gated(scored):
    (scored / "scores/scorer").write_text(
        json.dumps({"model": "x", "config": "y", "speech_gate": "silero-vad 6"})
    )
    report(scored)
    found = read(scored)
    assert found["guidance_settings"]["speech_gate"] is True
    assert found["warnings"] and not any("--speech_gate" in x for x in found["warnings"])


def test_random_masks_are_told_what_guidance_would_do(scored):
    report(scored, {"masker": "random"})
    found = read(scored)
    assert found["guidance_settings"]["strategy"] == "random"
    assert found["guidance_settings"]["mask_ratio"] == 0.49
    assert "use no confidence" in (scored / "report/report.html").read_text()
    assert any("high masks more frames without speech" in x for x in found["warnings"])

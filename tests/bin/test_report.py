import numpy as np
import pytest

from espnet_atm.bin.report import get_parser, main, read_corpus
from espnet_atm.errors import UserError


@pytest.fixture
def scored(corpus, tmp_path):
    """The corpus with its track and made-up utterance confidences."""
    lines = [f"utt{i} 0.{i}" for i in range(10)]
    (corpus / "utt2confidence").write_text("\n".join(lines) + "\n")
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
    expected = read_corpus(get_parser().parse_args(scored))
    (tmp_path / "confidence.scp").write_text((corpus / "confidence.scp").read_text())
    for name, value in (
        ("frame_shift", "320"),
        ("frame_offset", "239.75"),
        ("sampling_rate", "8000"),
    ):
        (tmp_path / name).write_text(value)
    scored[1] = str(tmp_path)
    found = read_corpus(get_parser().parse_args(scored))
    assert all(np.array_equal(a.energy, b.energy) for a, b in zip(found, expected))


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

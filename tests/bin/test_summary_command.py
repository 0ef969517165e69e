import json

import pytest

from espnet_atm.bin.summary import main
from espnet_atm.errors import UserError
from espnet_atm.summary import summarize


@pytest.fixture
def folder(corpus, tmp_path):
    """Scores of ten utterances."""
    (tmp_path / "confidence.scp").write_text((corpus / "confidence.scp").read_text())
    (tmp_path / "frame_shift").write_text("640\n")
    return tmp_path


def test_what_is_printed_is_written(folder, capsys):
    main(["--confidence_dir", str(folder)])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == summarize(folder, 16000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}:" and f"  deciles: {summary['deciles']}" in lines


def test_nothing_skipped(folder, capsys):
    (folder / "skipped").write_text("\n")
    main(["--confidence_dir", str(folder)])
    assert "skipped: none" in capsys.readouterr().out


def test_no_file_of_others_is_written_over(folder):
    for text in ("mine", "{}", "[1]"):
        (folder / "summary.json").write_text(text)
        with pytest.raises(UserError, match="summary.json was not made by"):
            main(["--confidence_dir", str(folder)])
        assert (folder / "summary.json").read_text() == text
    (folder / "summary.json").unlink()
    main(["--confidence_dir", str(folder)])
    main(["--confidence_dir", str(folder)])

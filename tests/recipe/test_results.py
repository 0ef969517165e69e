import re

import numpy as np
import pytest
import results

SCLITE = """
     | SPKR   | # Snt # Wrd | Corr    Sub    Del    Ins    Err  S.Err |
     | Sum/Avg|    2      4 | 50.0   25.0   25.0   25.0   75.0  100.0 |

id: (s-b)
Scores: (#C #S #D #I) 1 1 0 0
REF:  three FOUR
HYP:  three FIVE
Eval:       S

id: (s-a)
Scores: (#C #S #D #I) 1 0 1 1
"""


class Folder:
    """A corpus of two utterances, and RESULTS.md."""

    def __init__(self, path):
        self.path = path
        self.results = path / "RESULTS.md"
        self.write("data/test/text", "a one two\nb three four\n")

    def write(self, name: str, text: str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def decode(self, run: str, text: str = "b three four\na one too\n") -> str:
        """How to tell of a model, once it has said so."""
        self.write(f"{run}/test/text", text)
        return f"{run},0,{self.path}/{run}"

    def __call__(self, *options: str) -> None:
        common = ["--corpus", "mini", "--results", str(self.results)]
        common += ["--data_dir", str(self.path / "data")]
        results.main([*common, *options, "--", "test"])

    def put(self, run: str, **text: str) -> None:
        self("--put", self.decode(run, **text))

    def rows(self) -> list[str]:
        return [x for x in self.results.read_text().splitlines() if "| mini |" in x]


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_without_sclite_by_jiwer(folder):
    folder.put("first")
    # 1 of 4 words; 1 of 17 characters, spaces within an utterance included
    assert folder.rows() == ["| mini | first | 0 | test | 2 | 25.0 | 5.9 | jiwer |"]


def test_with_sclite(folder):
    told = folder.decode("first")
    for kind in ("wer", "cer"):
        folder.write(f"first/test/score_{kind}/result.txt", SCLITE)
    folder("--put", told)
    assert folder.rows() == ["| mini | first | 0 | test | 2 | 75.0 | 75.0 | sclite |"]
    counts, by = results.count(folder.path / "data/test/text", folder.path / "first/test")
    assert by == "sclite" and counts["wer"].errors.tolist() == [2, 1]
    assert counts["wer"].lengths.tolist() == [2, 2]
    # Counts that are not of every utterance are none.
    folder.write("first/test/score_wer/result.txt", SCLITE.replace("id: (s-a)", ""))
    assert results.count(folder.path / "data/test/text", folder.path / "first/test")[1] == (
        "jiwer"
    )


def test_jiwer_counts_what_jiwer_does():
    rng = np.random.default_rng(0)
    refs, hyps = (
        [" ".join(rng.choice(list("abcd"), rng.integers(least, 9))) for _ in range(50)]
        for least in (1, 0)
    )
    for what, rate in (("wer", results.jiwer.wer), ("cer", results.jiwer.cer)):
        found = results.jiwer_counts(refs, hyps, what)
        assert found.rate == pytest.approx(100 * rate(refs, hyps))
    empty = results.jiwer_counts(["", "a b"], ["a b", "a b"], "wer")
    assert empty.errors.tolist() == [2, 0] and empty.rate == 100


def test_runs_live_side_by_side_and_replace_themselves(folder):
    for run in ("first", "second", "first"):
        folder.put(run)
    assert [x.split(" | ")[1] for x in folder.rows()] == ["first", "second"]


def test_seeds_have_a_mean(folder):
    for seed, text in ((10, "a x x\nb x x\n"), (2, "a one two\nb three four\n")):
        told = folder.decode("first", text)
        folder("--put", told.replace(",0,", f",{seed},"))
    for _ in range(2):  # a mean is not counted in
        first, second, mean = folder.rows()
        assert "| 2 | test | 2 | 0.0 | 0.0 |" in first and "| 10 | test |" in second
        assert "| first | mean of 2 | test | 2 | 50.0 ± 70.7 | " in mean
        folder("--put", told.replace(",0,", ",2,"))


def test_rows_of_an_earlier_version_are_of_the_default_seed(folder):
    old = ["corpus", "run", "test set", "utterances", "WER %", "CER %", "scored by"]
    row = "| mini | old | test | 2 | 1.0 | 2.0 | sclite |"
    folder.write("RESULTS.md", f"| {' | '.join(old)} |\n|---|\n{row}\n\n## A section\n")
    folder.put("first")
    assert "| mini | old | 0 | test | 2 | 1.0 | 2.0 | sclite |" in folder.rows()
    assert "## A section" in folder.results.read_text()


def test_missing_hypotheses_are_refused(folder):
    with pytest.raises(ValueError, match="no hypothesis for b and 0 more of 2"):
        folder.put("first", text="a one two\n")


def test_a_run_against_the_baseline(folder, capsys):
    utts = [f"u{n:02d}" for n in range(40)]
    folder.write("data/test/text", "".join(f"{x} a b c d\n" for x in utts))
    wrong = ["a b c d", "a b c x", "x x x x"]
    worse = "".join(f"{x} {wrong[n % 3]}\n" for n, x in enumerate(utts))
    better = "".join(f"{x} {wrong[n % 2]}\n" for n, x in enumerate(utts))
    told = [folder.decode("ours", better), folder.decode("scorer", worse)]
    for x in told:
        folder("--put", x)
    folder.put("another", text=worse)
    folder("--show", told[0], "--baseline", told[1])
    said = capsys.readouterr().out
    assert "another" not in said and len(re.findall(r"^\| (ours|scorer)", said, re.M)) == 2
    (found,) = re.findall(r"test: WER (\S+) \[(\S+), (\S+)\], CER", said)
    change, low, high = map(float, found)
    assert change == pytest.approx(100 * (20 - 65) / 160, abs=0.06)
    assert low < change < high < 0 and "too few" not in said


def test_the_interval_covers_and_pairs():
    """In 95 of 100 corpora of one kind the true difference is within; and what is hard
    for both says nothing of either."""
    inside, widths = 0, []
    rng = np.random.default_rng(0)
    for _ in range(100):
        lengths = rng.integers(1, 20, 200)
        hard = rng.random(200) * 0.5
        one, other = (rng.binomial(lengths, hard + x) for x in (0.1, 0.15))
        _, low, high = results.paired_interval(
            results.Counts(one, lengths), results.Counts(other, lengths)
        )
        inside += low <= -5 <= high
        widths.append(high - low)
    assert 88 <= inside <= 100
    same = results.Counts(one, lengths)
    assert results.paired_interval(same, same) == (0, 0, 0)


def test_few_utterances_are_called_so(folder, capsys):
    told = [folder.decode("ours"), folder.decode("scorer")]
    for x in told:
        folder("--put", x)
    folder("--show", told[0], "--baseline", told[1])
    assert "2 utterances are too few to tell" in capsys.readouterr().out


def test_speakers_are_drawn_where_there_are_enough(folder):
    """What errs together makes the interval wider."""

    def units(speakers: int) -> results.Units:
        utts = [f"u{n:03d}" for n in range(200)]
        folder.write("data/test/text", "".join(f"{x} a b\n" for x in reversed(utts)))
        lines = "".join(f"{x} s{n % speakers}\n" for n, x in enumerate(utts))
        folder.write("data/test/utt2spk", lines)
        return results.read_units(folder.path / "data/test")

    assert str(units(19)) == "200 utterances" == str(units(200))
    found = units(20)
    assert str(found) == "20 speakers" and not found.too_few
    numbers = np.arange(200)
    one = results.Counts(numbers % 2, np.full(200, 2))
    together = found.together(one)
    assert together.errors.tolist() == [0, 10] * 10 and set(together.lengths) == {20}
    assert together.rate == one.rate
    other = results.Counts(np.zeros(200, int), np.full(200, 2))
    narrow = results.paired_interval(one, other)
    wide = results.paired_interval(together, found.together(other))
    assert narrow[0] == wide[0] == 25
    assert wide[2] - wide[1] > 2 * (narrow[2] - narrow[1])
    (folder.path / "data/test/utt2spk").unlink()
    assert str(results.read_units(folder.path / "data/test")) == "200 utterances"


def test_models_are_counted_by_the_same_program(folder):
    text, folders = folder.path / "data/test/text", []
    for run in ("first", "second"):
        folder.decode(run)
        folders.append(folder.path / run / "test")
    for kind in ("wer", "cer"):
        folder.write(f"second/test/score_{kind}/result.txt", SCLITE)
    first, second = results.count_alike(text, folders)
    assert first["wer"].rate == second["wer"].rate == 25  # sclite would say 75
    (second,) = results.count_alike(text, folders[1:])
    assert second["wer"].rate == 75

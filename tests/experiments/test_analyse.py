"""The figures of the experiment: how they come from the stored results."""

import json
import re
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
import analyse  # noqa: E402
from arms import (  # noqa: E402
    ARMS,
    COMPARISONS,
    DESCRIBED,
    RATIO,
    further_runs,
    main_runs,
)

LEVELS = ["a", "b", "a", "c"]
CHARACTERS = [10, 20, 30, 40]


def made(errors: dict) -> analyse.Results:
    """Results of ``{arm: {seed: errors of each utterance}}``, the same in every test.

    Losses are half of them.
    """
    sets = {x: {"levels": LEVELS, "characters": CHARACTERS} for x in analyse.TESTS}
    results = analyse.Results("hubert", sets)
    for arm, seeds in errors.items():
        for seed, found in seeds.items():
            results.runs[arm][seed] = {
                "errors": {x: dict.fromkeys(analyse.TESTS, found) for x in analyse.LABELLED},
                "losses": {
                    x: dict.fromkeys(analyse.TESTS, [n / 2 for n in found])
                    for x in analyse.LABELLED
                },
            }
    return results


def test_a_rate_is_of_all_characters():
    results = made({"A": {0: [1, 2, 3, 4], 1: [0, 0, 0, 10]}})
    assert results.rates("A", "train30", "test_clean") == pytest.approx([10.0, 10.0])


def test_losses_are_compared_as_errors_are():
    results = made({"A": {0: [1, 2, 3, 4], 1: [5, 5, 5, 5]}, "B": {0: [0, 1, 2, 3], 1: [4] * 4}})
    errors = analyse.difference(results, ("B", "A"), "train30", "test_clean")
    results.measure = "losses"
    losses = analyse.difference(results, ("B", "A"), "train30", "test_clean")
    assert losses.mean == pytest.approx(errors.mean / 2)
    assert losses.low == pytest.approx(errors.low / 2)
    assert losses.p == errors.p


def test_errors_are_summed_by_level():
    results = made({"A": {0: [1, 2, 3, 4]}})
    found = results.totals("A", [0], "train30", "test_clean")
    assert found.tolist() == [[4, 2, 4]]
    assert results.characters("test_clean").tolist() == [40, 20, 40]


def test_results_of_another_test_set_are_refused():
    results = made({"A": {0: [1, 2, 3]}})
    with pytest.raises(ValueError, match="3 values for 4 utterances"):
        results.rates("A", "train30", "test_clean")


def test_arms_are_compared_over_the_seeds_that_both_have():
    results = made({
        "A": {0: [1, 2, 3, 4], 1: [5, 5, 5, 5], 3: [9, 9, 9, 9]},
        "B": {0: [0, 1, 2, 3], 1: [4, 4, 4, 4], 2: [0, 0, 0, 0]},
    })
    found = analyse.difference(results, ("B", "A"), "train30", "test_clean")
    assert found.seeds == 2
    assert found.mean == pytest.approx(-4.0)
    assert found.high < 0 and found.p < 0.001
    assert found.t_low == pytest.approx(-4.0)


def test_no_common_seed_is_no_comparison():
    results = made({"A": {0: [1, 2, 3, 4]}, "B": {1: [1, 2, 3, 4]}})
    assert analyse.difference(results, ("B", "A"), "train30", "test_clean") is None


def test_equal_arms_do_not_differ():
    results = made({x: {0: [1, 2, 3, 4], 1: [2, 2, 2, 2]} for x in "AB"})
    found = analyse.difference(results, ("B", "A"), "train30", "test_clean")
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Levels and seeds are drawn from normal distributions whose difference is known."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        of_seeds = rng.normal(0, 1, (20, 1)) + rng.normal(0, 1, (1, 30))
        errors = 5 + of_seeds + rng.normal(0, 1, (20, 30))
        draws = analyse.bootstrap(errors, np.full(30, 100.0))
        low, high = np.percentile(draws, [2.5, 97.5])
        held += low <= 5 <= high
    assert 88 <= held <= 100


@pytest.mark.parametrize("seeds, share", [(3, 0.75), (5, 0.846)])
def test_where_seeds_decide_the_interval_holds_less_than_it_says(seeds, share):
    """As README.md says: Student's t at 1.96 sqrt((n - 1) / n)."""
    n = seeds
    assert 1 - 2 * analyse.student.sf(1.96 * ((n - 1) / n) ** 0.5, n - 1) == pytest.approx(
        share, abs=0.001
    )
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        draws = analyse.bootstrap(np.repeat(rng.normal(0, 1, (n, 1)), 4, axis=1), np.ones(4))
        low, high = np.percentile(draws, [2.5, 97.5])
        held += low <= 0 <= high
    assert held / 200 == pytest.approx(share, abs=0.08)


def test_holm():
    """Worked by hand: 3 x 0.01, 2 x 0.02, and 0.03, which may not fall behind."""
    assert analyse.holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert analyse.holm([0.9, 0.8]) == pytest.approx([1, 1])


def test_the_comparisons_are_of_arms():
    assert {x for pair in COMPARISONS for x in pair} <= set(ARMS)
    assert analyse.arm_key("A", RATIO) == "A"
    assert analyse.arm_key("A", 0.49) == "A 0.49"


def write_results(folder, runs):
    """What `experiment.py` leaves, of errors that are drawn."""
    rng = np.random.default_rng(1)
    sets = {x: {"levels": LEVELS, "characters": CHARACTERS} for x in analyse.TESTS}
    epochs = {x: rng.random(3).tolist() for x in ("loss", "hubert_acc_m_3", "mask_ratio")}
    for run in runs:
        trained = run.arm != "N"
        found = {
            "objective": run.objective if trained else None,
            "arm": run.arm,
            "ratio": run.ratio if trained else None,
            "seed": run.seed,
            "cpu_seconds": {"pretrain": 600.0, "train30": 300.0},
            "wall_seconds": {"pretrain": 660.0, "train30": 330.0},
            "processor": "a CPU",
            "inputs": {"plain scores": f"of seed {run.seed}"},
            "versions": {"torch": "2"},
            "curves": {"ssl": {"train": epochs, "valid": epochs}} if trained else {},
            "errors": {
                x: {y: rng.integers(0, 9, 4).tolist() for y in analyse.TESTS}
                for x in analyse.LABELLED
            },
            "losses": {
                x: {y: rng.random(4).tolist() for y in analyse.TESTS}
                for x in analyse.LABELLED
            },
        }
        (folder / f"{run.name}.json").write_text(json.dumps(found))
    shared = {
        "utterances": sets,
        "setup": {"objective": "hubert", "second": "best_rq"},
        "pool": {"dutch": {
            "third": "target", "minutes": 35.0, "plain": 0.5, "gated": 0.4, "chosen": 0.9,
        }},
        "guidance": {"B": {"gap": 0.1, "weights_spread": 0.0}},
    }
    for name, content in shared.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_tables_and_plots_of_all_runs_and_of_some(tmp_path, monkeypatch):
    monkeypatch.setattr(analyse, "DRAWS", 100)
    runs = main_runs("hubert") + further_runs("hubert", "best_rq")
    readme = tmp_path / "README.md"
    readme.write_text("above\n" + "".join(analyse.MARKS) + "below\n")
    for chosen, missing in ((runs[:20], "A (seeds 2 3 4), A 0.49 (seeds 2 3 4), B"), (runs, "none")):
        write_results(tmp_path, chosen)
        analyse.main(["--results", str(tmp_path)])
        text = readme.read_text()
        assert text.startswith("above\n") and text.endswith("below\n")
        assert "| A 0.49 | random masks |" in text
        assert f"Runs of arms A to N that are missing: {missing}" in text
        assert f"a CPU ({len(chosen)} runs)" in text
        assert f"Different files that runs were made with: plain scores {2 if len(chosen) == 20 else 5}." in text
        left = {
            20: "hubert: A 0.20 (seeds 0), A 0.30 (seeds 0), A 0.50 (seeds 0), A 0.60 (seeds 0), "
            "B 0.20 (seeds 0), B 0.30 (seeds 0), B 0.50 (seeds 0), B 0.60 (seeds 0); "
            "best_rq: A (seeds 0 1 2), B (seeds 0 1 2), E (seeds 0 1 2), H (seeds 0 1 2)",
        }.get(len(chosen), "hubert: none; best_rq: none")
        assert f"\nFurther runs that are missing: {left}.\n" in text
    assert "### CER by arm, best_rq" in text
    for labelled in analyse.LABELLED.values():
        heading = f"### Comparisons, best_rq, fine-tuned on {labelled}\n\n| comparison |"
        assert text.count(heading) == 1
    rows = [x for x in text.splitlines() if x.startswith("| 0.")]
    assert len(rows) == 11  # A at 0.49 besides A and B at five fractions
    images = {x.name for x in (tmp_path / "images").iterdir()}
    names = ("cer_by_arm", "comparisons", "masked_fraction", "masked_prediction")
    assert images == {f"{name}.png" for name in names}


@pytest.mark.parametrize("arms", ["N", "B", "K", "NK"])
def test_tables_and_plots_of_the_first_runs(tmp_path, monkeypatch, arms):
    """Whatever was first: an experiment may be stopped at any moment."""
    monkeypatch.setattr(analyse, "DRAWS", 100)
    write_results(tmp_path, [x for x in main_runs("hubert") if x.arm in arms and x.seed == 0])
    analyse.main(["--results", str(tmp_path)])
    text = (tmp_path / "README.md").read_text()
    assert all(text.count(f"\n| {arm} | {ARMS[arm].what} | 1 |") == 2 for arm in arms)
    assert "A (seeds 0 1 2 3 4)" in text


def test_what_is_described_has_no_p(tmp_path, monkeypatch):
    monkeypatch.setattr(analyse, "DRAWS", 100)
    write_results(tmp_path, main_runs("hubert"))
    analyse.main(["--results", str(tmp_path)])
    rows = (tmp_path / "README.md").read_text().splitlines()
    for names, p in ((COMPARISONS, r"[01]\.\d{3}"), (DESCRIBED, "-")):
        for pair in names:
            found = [x for x in rows if x.startswith(f"| {' - '.join(pair)} | ")]
            assert len(found) == 8  # two measures, two labelled sets, two tests
            assert all(re.search(rf"\| {p} \| {p} \|$", x) for x in found)


@pytest.mark.parametrize("seeds, tested", [(1, False), (2, False), (3, True)])
def test_few_seeds_have_no_p(tmp_path, monkeypatch, seeds, tested):
    monkeypatch.setattr(analyse, "DRAWS", 100)
    runs = [x for x in main_runs("hubert") if x.seed < seeds or x.arm in "AC"]
    write_results(tmp_path, runs)
    analyse.main(["--results", str(tmp_path)])
    rows = (tmp_path / "README.md").read_text().splitlines()
    found = [x for x in rows if re.match(rf"\| (B - A|H - E) \| \w+ \| {seeds} \|", x)]
    assert len(found) == 16  # two comparisons, two measures, two labelled sets, two tests
    assert all(x.endswith("| - | - |") != tested for x in found)


def test_holm_is_over_the_six_from_the_beginning(tmp_path, monkeypatch):
    """The one comparison that is there is the first of six, not of one."""
    monkeypatch.setattr(analyse, "DRAWS", 100)
    write_results(tmp_path, [x for x in main_runs("hubert") if x.arm in "AB"])
    analyse.main(["--results", str(tmp_path)])
    rows = (tmp_path / "README.md").read_text().splitlines()
    found = [x.split(" | ")[-2:] for x in rows if x.startswith("| B - A |")]
    assert len(found) == 8
    for p, corrected in found:
        assert float(corrected.rstrip(" |")) == pytest.approx(min(1, 6 * float(p)), abs=0.004)


def test_what_the_scorer_reads_is_beside_the_arms(tmp_path, monkeypatch):
    monkeypatch.setattr(analyse, "DRAWS", 100)
    write_results(tmp_path, main_runs("hubert")[:3])
    (tmp_path / "scorer.json").write_text(json.dumps({
        "errors": {"scorer": {"test_clean": [1, 2, 3, 4], "test_degraded": [5, 5, 5, 5]}},
        "losses": {"scorer": {"test_clean": [10.0] * 4, "test_degraded": [20.0] * 4}},
    }))
    analyse.main(["--results", str(tmp_path)])
    text = (tmp_path / "README.md").read_text()
    told = re.findall(r"not trained again: ([\d.]+) \[.*\] clean, ([\d.]+) \[.*\] degraded", text)
    assert told == [("10.00", "20.00"), ("40.00", "80.00")]


def test_a_statistic_that_was_no_number_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(analyse, "DRAWS", 100)
    write_results(tmp_path, main_runs("hubert")[1:2])
    (file,) = tmp_path.glob("*_seed0.json")
    run = json.loads(file.read_text())
    run["curves"]["ssl"]["valid"]["loss"][-1] = None
    file.write_text(json.dumps(run))
    analyse.main(["--results", str(tmp_path)])
    assert "| A | random masks | nan |" in (tmp_path / "README.md").read_text()


def test_a_page_is_whole_or_as_it_was(tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("above\n" + "".join(analyse.MARKS) + "below\n")
    before = page.read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(analyse.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        analyse.write_tables(page, "tables\n")
    assert page.read_text() == before


def test_a_page_without_marks_is_refused(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="README.md: no line '<!-- tables"):
        analyse.write_tables(page, "tables")
    assert page.read_text() == "no marks\n"


def test_a_page_is_made_where_there_is_none(tmp_path):
    for tables in ("first\n", "second\n"):
        analyse.write_tables(tmp_path / "README.md", tables)
    found = (tmp_path / "README.md").read_text()
    assert found == f"{analyse.MARKS[0]}second\n{analyse.MARKS[1]}"


def test_published_figures_are_of_the_stored_results():
    folder = ROOT / "experiments/results"
    if not (folder / "setup.json").is_file():
        pytest.skip("no run is there yet")
    text = (ROOT / "experiments/README.md").read_text(encoding="utf-8")
    between = text.split(analyse.MARKS[0])[1].split(analyse.MARKS[1])[0]
    assert between == analyse.tables(folder)


def test_results_are_small():
    def refuse(name):
        raise ValueError(f"{name} is not in JSON")

    for file in (ROOT / "experiments/results").rglob("*.json"):
        json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
        assert file.stat().st_size < 60_000, file.name

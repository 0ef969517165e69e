"""Tables and figures of the paper: local/paper.py."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import make_ssl_config
import paper
import pytest
import results
from conftest import RECIPE

NAMES = [
    *(f"table {x}" for x in ("I", "II", "III", "IV", "V", "VIII", "IX")),
    *(f"figure {x}" for x in ("4", "5", "6")),
]


def row_name(run: paper.Run) -> str:
    """What the recipe calls the fine-tuned model."""
    config = RECIPE / "conf/tuning"
    config /= f"train_{run.objective}_conformer_{run.model_size}_{run.masker}.yaml"
    args = make_ssl_config.get_parser().parse_args(
        ["--config", str(config), "--output_dir", "unused"]
    )
    given = Namespace(**vars(args))
    options = run.options()
    for name, value in zip(options[::2], options[1::2]):
        if hasattr(given, name[2:]):
            setattr(given, name[2:], value)
    return f"{make_ssl_config.make_config(given)[0]}_{run.finetune}"


def write_results(file: Path, rows: list[tuple[str, str, float]]) -> None:
    cells = [["librilight", a, b, "3", f"{wer}", "9.9", "sclite"] for a, b, wer in rows]
    results.write_parts(file, [results.TITLE + results.table(cells)])


def plan(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "local/paper.py", "--dry_run", *options],
        cwd=RECIPE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_papers_tables_are_known():
    assert set(paper.EXPERIMENTS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_plan(name, tmp_path):
    """Complete: every run is in it, with every set. Consistent: no two are the same."""
    experiment = paper.EXPERIMENTS[name]
    kind, number = name.split()
    log = plan(
        f"--{kind}", number, "--results", str(tmp_path / "none"), "--", "--nj", "7"
    )
    commands = [x for x in log.splitlines() if x.startswith("./run.sh")]
    assert len(commands) == len(set(commands)) == len({row.run for row in experiment})
    assert all(x.endswith(" --nj 7") for x in commands)
    assert f"{len(commands)} missing" in log and "GPU hours" in log
    for row in experiment:
        command = paper.command(row.run, experiment, ["--nj", "7"])
        sets = command[command.index("--test_sets") + 1].split()
        assert {paper.SETS[x] for x in row.paper} <= set(sets)
        config = f"train_{row.run.objective}_conformer_{row.run.model_size}"
        assert (RECIPE / f"conf/tuning/{config}_{row.run.masker}.yaml").exists()


def test_each_run_finds_its_own_row_and_no_other(tmp_path):
    runs = {row.run for rows in paper.EXPERIMENTS.values() for row in rows}
    names = {run: row_name(run) for run in runs}
    assert len(set(names.values())) == len(runs)
    for run in runs:
        assert [x for x in runs if run.matches(names[x])] == [run]


def test_what_is_done_is_not_run_again(tmp_path):
    file = tmp_path / "RESULTS.md"
    atm = row_name(paper.atm())
    write_results(file, [(atm, "ami_ihm_eval", 12.6), (atm, "ami_sdm1_eval", 27.5)])
    log = plan("--table", "I", "--results", str(file))
    assert "3 runs, 2 missing" in log and "--strategy low" in log
    table = paper.table(paper.EXPERIMENTS["table I"], file)
    assert "| high | 12.6 | 12.52 | 27.5 | 27.34 |" in table
    assert "| low |  |  |  |  |" in table


def test_sections_live_beside_the_rows(tmp_path):
    file = tmp_path / "RESULTS.md"
    write_results(file, [("a", "b", 1.0)])
    results.put_section(file, "Table I of the paper", "| x |\n|---|\n| 1 |")
    results.put_section(file, "Table I of the paper", "| x |\n|---|\n| 2 |")
    results.put_section(file, "Figure 4 of the paper", "| y |\n|---|\n| 3 |")
    text = file.read_text()
    assert text.count("## Table I of the paper") == 1 and "| 2 |" in text
    assert text.index("## Figure 4") < text.index("## Table I")
    assert [row[1] for row in results.read_rows(file)] == ["a"]


def test_unknown_tables_are_refused():
    done = subprocess.run(
        [sys.executable, "local/paper.py", "--table", "XII"],
        cwd=RECIPE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "invalid choice: 'XII'" in done.stderr

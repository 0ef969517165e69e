#!/usr/bin/env python3
"""Every table and plot of the experiment, from the stored results, in seconds.

Writes the tables between the marks of README.md, and the plots into images/; of results that
are not the repository's own, into their folder.
"""

import argparse
import json
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np
from arms import (
    ARMS,
    COMPARISONS,
    DESCRIBED,
    PAPER_RANDOM,
    RATIO,
    SEEDS,
    Run,
    further_runs,
    main_runs,
)
from scipy.stats import t as student

HERE = Path(__file__).resolve().parent
OWN = HERE / "results"
MARKS = ("<!-- tables: experiments/analyse.py -->\n", "<!-- end of tables -->\n")
LABELLED = {"train30": "30 min", "train10": "10 min"}
TESTS = {"test_clean": "clean", "test_degraded": "degraded"}
UNITS = {"errors": "CER points", "losses": "nats per 100 characters"}  # of differences
DRAWS = 10000
TESTED_SEEDS = 3  # of fewer, drawing seeds says too little of how they differ for a p
PAPER_A = "A 0.49"  # arm A at the paper's masked fraction


def arm_key(arm: str, ratio: float | None) -> str:
    """An arm's name in the tables: with its ratio where that is not the common one."""
    return arm if ratio in (None, RATIO) else f"{arm} {ratio:.2f}"


@dataclass
class Results:
    """What the runs of one objective left.

    Args:
        utterances: for each set the game level and the characters of each utterance.
        measure: ``errors`` in characters, or ``losses`` of CTC in nats.
        runs: by arm and seed.
    """

    objective: str
    utterances: dict[str, dict[str, list]]
    measure: str = "errors"
    runs: dict[str, dict[int, dict[str, Any]]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    @classmethod
    def read(cls, folder: Path, objective: str, measure: str = "errors") -> "Results":
        """All runs of an objective, and those without pre-training."""
        utterances = json.loads((folder / "utterances.json").read_text(encoding="utf-8"))
        found = cls(objective, utterances, measure)
        for file in sorted(folder.glob("*_seed*.json")):
            run = json.loads(file.read_text(encoding="utf-8"))
            if run["objective"] in (None, objective) and run["seed"] in SEEDS:
                found.runs[arm_key(run["arm"], run["ratio"])][run["seed"]] = run
        return found

    def seeds(self, *arms: str) -> list[int]:
        """Those that all arms have."""
        return sorted(set.intersection(*(set(self.runs.get(a, {})) for a in arms)))

    def totals(self, arm: str, seeds: Sequence[int], labelled: str, test: str) -> np.ndarray:
        """Errors or losses by seed and game level: (seeds, levels)."""
        return np.array([
            self.by_level(test, self.runs[arm][s][self.measure][labelled][test])
            for s in seeds
        ])

    def characters(self, test: str) -> np.ndarray:
        """Of the references, by game level: (levels,)."""
        return self.by_level(test, self.utterances[test]["characters"])

    def by_level(self, test: str, values: list[int]) -> np.ndarray:
        """Sums by game level, of values of each utterance.

        Raises:
            ValueError: when there is not one value an utterance.
        """
        levels = self.utterances[test]["levels"]
        if len(values) != len(levels):
            raise ValueError(f"{test}: {len(values)} values for {len(levels)} utterances")
        _, index = np.unique(levels, return_inverse=True)
        return np.bincount(index, weights=values)

    def rates(self, arm: str, labelled: str, test: str) -> np.ndarray:
        """Of each seed, per hundred characters: CER in percent, or nats."""
        totals = self.totals(arm, self.seeds(arm), labelled, test)
        return 100 * totals.sum(axis=1) / self.characters(test).sum()


def bootstrap(totals: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """Draws of what is per hundred characters, or of a difference of two.

    Game levels and seeds are drawn with replacement, crossed.

    Args:
        totals: (seeds, levels), of a difference possibly negative.
        characters: (levels,).

    Returns:
        (DRAWS,).
    """
    rng = np.random.default_rng(0)
    seeds, levels = totals.shape
    of_levels = rng.multinomial(levels, np.full(levels, 1 / levels), DRAWS)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    drawn = np.einsum("ds,sl,dl->d", of_seeds, totals, of_levels)
    return 100 * drawn / (of_levels @ characters)


def holm(p: Iterable[float]) -> np.ndarray:
    """Holm's step-down correction."""
    p = np.array(list(p))
    order = np.argsort(p)
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(scaled, 1)
    return corrected


@dataclass(frozen=True)
class Difference:
    """A comparison of two arms: the first less the second, per hundred characters."""

    names: tuple[str, str]
    seeds: int
    mean: float
    low: float
    high: float
    p: float
    t_low: float
    t_high: float


def difference(
    results: Results, names: tuple[str, str], labelled: str, test: str
) -> Difference | None:
    """None where no seed has both arms."""
    seeds = results.seeds(*names)
    if not seeds:
        return None
    first, second = (results.totals(arm, seeds, labelled, test) for arm in names)
    characters = results.characters(test)
    draws = bootstrap(first - second, characters)
    low, high = np.percentile(draws, [2.5, 97.5])
    share = min((draws <= 0).sum(), (draws >= 0).sum())
    by_seed = 100 * (first - second).sum(axis=1) / characters.sum()
    half = np.nan
    if len(seeds) > 1:
        half = student.ppf(0.975, len(seeds) - 1) * by_seed.std(ddof=1) / len(seeds) ** 0.5
    return Difference(
        names, len(seeds), by_seed.mean(), low, high, min(1, 2 * (share + 1) / (DRAWS + 1)),
        by_seed.mean() - half, by_seed.mean() + half,
    )


# ------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------
def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all but the first two columns to the right."""
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def arm_rows(results: Results) -> list[str]:
    """The arms that have a run, in the order of the design."""
    keys = []
    for arm in ARMS:
        keys += [arm, f"{arm} {PAPER_RANDOM:.2f}"]
    return [key for key in keys if results.runs.get(key)]


def arm_table(results: Results) -> str:
    """CER or CTC loss of each arm: mean over seeds, its interval, and the seeds' deviation."""
    header = ["arm", "what", "seeds"]
    columns = [(labelled, test) for labelled in LABELLED for test in TESTS]
    header += [f"{LABELLED[labelled]}, {TESTS[test]}" for labelled, test in columns]
    rows = []
    for key in arm_rows(results):
        seeds = results.seeds(key)
        cells = [key, ARMS[key.split()[0]].what, str(len(seeds))]
        for labelled, test in columns:
            totals = results.totals(key, seeds, labelled, test)
            low, high = np.percentile(
                bootstrap(totals, results.characters(test)), [2.5, 97.5]
            )
            rates = results.rates(key, labelled, test)
            spread = f" ±{rates.std(ddof=1):.2f}" if len(rates) > 1 else ""
            cells.append(f"{rates.mean():.2f}{spread} [{low:.1f}, {high:.1f}]")
        rows.append(cells)
    return markdown(header, rows)


def scorer_line(folder: Path, results: Results) -> str:
    """What the model that all begin with reads by itself; empty if that is not there."""
    file = folder / "scorer.json"
    if not file.is_file():
        return ""
    read = json.loads(file.read_text(encoding="utf-8"))[results.measure]["scorer"]
    cells = []
    for test, name in TESTS.items():
        totals = results.by_level(test, read[test])[None]
        characters = results.characters(test)
        low, high = np.percentile(bootstrap(totals, characters), [2.5, 97.5])
        cells.append(f"{100 * totals.sum() / characters.sum():.2f} [{low:.1f}, {high:.1f}] {name}")
    return f"The scorer itself, not trained again: {', '.join(cells)}."


def comparison_table(results: Results, labelled: str) -> str:
    """The six comparisons on both tests, corrected within each; then those described."""
    header = ["comparison", "test", "seeds", UNITS[results.measure], "95 %", "t, by seed"]
    header += ["p", "Holm"]
    tested, described = [], []
    for test in TESTS:
        found = [difference(results, names, labelled, test) for names in COMPARISONS]
        enough = [x is not None and x.seeds >= TESTED_SEEDS for x in found]
        # Those that are missing count as well: the six were decided beforehand.
        corrected = holm(x.p if ok else 1.0 for x, ok in zip(found, enough))
        for x, ok, p in zip(found, enough, corrected):
            if x is not None:
                cells = [f"{x.p:.3f}", f"{p:.3f}"] if ok else ["-", "-"]
                tested.append([*difference_cells(x, test), *cells])
        for names in DESCRIBED:
            x = difference(results, names, labelled, test)
            if x is not None:
                described.append([*difference_cells(x, test), "-", "-"])
    return markdown(header, tested + described)


def difference_cells(found: Difference, test: str) -> list[str]:
    """Of a table's row: arms, test, seeds, the mean and both intervals."""
    by_seed = f"[{found.t_low:+.2f}, {found.t_high:+.2f}]" if found.seeds > 1 else "-"
    return [
        " - ".join(found.names), TESTS[test], str(found.seeds), f"{found.mean:+.2f}",
        f"[{found.low:+.2f}, {found.high:+.2f}]", by_seed,
    ]


def last_of(results: Results, key: str, statistic: str) -> np.ndarray:
    """A statistic of validation after the last epoch of pre-training, of each seed."""
    runs = results.runs[key].values()
    last = [run["curves"]["ssl"]["valid"][statistic][-1] for run in runs]
    return np.array(last, float)  # NaN for None


def statistics_of(results: Results) -> list[str]:
    """The statistics of masked prediction that the runs have: losses and accuracies."""
    trained = (x for k, runs in results.runs.items() if k != "N" for x in runs.values())
    names = next((run["curves"]["ssl"]["valid"] for run in trained), ["loss"])
    return [x for x in names if x == "loss" or "_acc" in x or x.endswith("_m")]


def prediction_table(results: Results) -> str:
    """Masked prediction on held-out Dutch, by one validation masker."""
    names = statistics_of(results)
    rows = []
    for key in arm_rows(results):
        if key != "N":
            cells = [key, ARMS[key.split()[0]].what]
            for name in names:
                values = last_of(results, key, name)
                cells.append(f"{values.mean():.4f}")
            rows.append(cells)
    return markdown(["arm", "what", *names], rows)


def sweep_table(results: Results) -> str:
    """A and B by masked fraction, seed 0."""
    rows = []
    for key in sorted(results.runs):
        arm, _, ratio = key.partition(" ")
        if arm in "AB" and 0 in results.runs[key]:
            cells = [f"{float(ratio or RATIO):.2f}", arm]
            for labelled in LABELLED:
                for test in TESTS:
                    errors = results.totals(key, [0], labelled, test)
                    cells.append(f"{100 * errors.sum() / results.characters(test).sum():.2f}")
            rows.append(cells)
    header = ["masked", "arm"]
    header += [f"{LABELLED[x]}, {TESTS[y]}" for x in LABELLED for y in TESTS]
    return markdown(header, sorted(rows))


def cost_table(runs: list[dict[str, Any]]) -> str:
    """Minutes of a run by step."""
    spent = defaultdict(list)
    for run in runs:
        for step, cpu in run["cpu_seconds"].items():
            spent[step].append((cpu, run["wall_seconds"][step]))
        times = (sum(run[f"{x}_seconds"].values()) for x in ("cpu", "wall"))
        spent["all"].append(tuple(times))
    spent["all"] = spent.pop("all")  # last
    rows = []
    for step, seconds in spent.items():
        cpu, wall = np.array(seconds).T / 60
        rows.append([
            step, f"{len(seconds)} runs", f"{np.median(cpu):.1f}", f"{np.median(wall):.1f}",
            f"{cpu.sum() / 60:.1f}",
        ])
    return markdown(
        ["step", "of", "CPU minutes, median", "wall minutes, median", "CPU hours, all"], rows
    )


def missing(runs: Iterable[Run], results: Results) -> str:
    """Those that have left no results, by arm."""
    seeds = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.arm, run.ratio, run.seed)):
        key = arm_key(run.arm, None if run.arm == "N" else run.ratio)
        if run.seed not in results.runs.get(key, {}):
            seeds[key].append(str(run.seed))
    return ", ".join(f"{key} (seeds {' '.join(x)})" for key, x in seeds.items()) or "none"


def made_with(runs: list[dict[str, Any]]) -> str:
    """Versions, processors, and how many scorers, clusterings and scores the runs are of."""
    found = Counter(f"{k} {v}" for run in runs for k, v in run["versions"].items())
    lines = ["Versions: " + ", ".join(sorted(found)) + "."]
    found = Counter(run["processor"] for run in runs)
    lines.append("Processors: " + ", ".join(f"{k} ({n} runs)" for k, n in found.items()) + ".")
    made = defaultdict(set)
    for run in runs:
        for name, checksum in run["inputs"].items():
            made[name].add(checksum)
    found = ", ".join(f"{name} {len(sums)}" for name, sums in sorted(made.items()))
    lines.append(f"Different files that runs were made with: {found}.")
    return "\n".join(lines)


def tables(folder: Path) -> str:
    """All tables, as they stand in README.md."""
    setup = json.loads((folder / "setup.json").read_text(encoding="utf-8"))
    results, other = (Results.read(folder, setup[x]) for x in ("objective", "second"))
    runs = [x for runs in results.runs.values() for x in runs.values()]
    runs += [x for key, runs in other.runs.items() for x in runs.values() if key != "N"]
    parts = [
        f"### CER by arm, {results.objective}",
        "In percent: mean over seeds, ± their standard deviation, and the 95 % interval of "
        "the mean.", arm_table(results), scorer_line(folder, results),
    ]
    for labelled in LABELLED:
        parts += [
            f"### Comparisons, fine-tuned on {LABELLED[labelled]}",
            comparison_table(results, labelled),
        ]
    losses = Results.read(folder, setup["objective"], "losses")
    parts += [
        f"### CTC loss by arm, {results.objective}", "In nats per 100 characters.",
        arm_table(losses), scorer_line(folder, losses),
    ]
    for labelled in LABELLED:
        parts += [
            f"### Comparisons of CTC loss, fine-tuned on {LABELLED[labelled]}",
            comparison_table(losses, labelled),
        ]
    parts += [
        "### Masked prediction on held-out Dutch", prediction_table(results),
        "### Masked fraction, seed 0", sweep_table(results),
    ]
    if any(key != "N" for key in other.runs):
        parts += [f"### CER by arm, {other.objective}", arm_table(other)]
        for labelled in LABELLED:
            parts += [
                f"### Comparisons, {other.objective}, fine-tuned on {LABELLED[labelled]}",
                comparison_table(other, labelled),
            ]
    further = further_runs(results.objective, other.objective)
    parts += [
        "### The pool as the scorer sees it", pool_table(folder),
        "### Strength of guidance", guidance_table(folder),
        "### Cost", cost_table(runs), made_with(runs),
        f"Runs of arms A to N that are missing: {missing(main_runs(results.objective), results)}.",
        "Further runs that are missing: "
        + "; ".join(
            f"{x.objective}: {missing((r for r in further if r.objective == x.objective), x)}"
            for x in (results, other)
        ) + ".",
    ]
    return "\n".join(x if x.endswith("\n") else f"{x}\n" for x in parts if x)


def pool_table(folder: Path) -> str:
    """By kind of audio: hours, mean confidence, and the share in the gate's third."""
    pool = json.loads((folder / "pool.json").read_text(encoding="utf-8"))
    rows = [
        [kind, x["third"], f"{x['minutes']:.1f}", f"{x['plain']:.3f}", f"{x['gated']:.3f}",
         f"{100 * x['chosen']:.0f} %"]
        for kind, x in pool.items()
    ]
    return markdown(
        ["kind", "third", "minutes", "mean s_u, plain", "gated", "of it in I's third"], rows
    )


def guidance_table(folder: Path) -> str:
    """What the report says of the arms that are guided or weighted."""
    guidance = json.loads((folder / "guidance.json").read_text(encoding="utf-8"))
    names = list(next(iter(guidance.values())))
    rows = [
        [arm, ARMS[arm].what, *(f"{values[x]:.3f}" for x in names)]
        for arm, values in guidance.items()
    ]
    return markdown(["arm", "what", *names], rows)


# ------------------------------------------------------------------------------------
# Plots
# ------------------------------------------------------------------------------------
def plot(folder: Path, images: Path) -> None:
    """CER by arm, differences, CER by masked fraction, curves of masked prediction."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images.mkdir(exist_ok=True)
    setup = json.loads((folder / "setup.json").read_text(encoding="utf-8"))
    results = Results.read(folder, setup["objective"])
    keys = arm_rows(results)
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True)
    for row, labelled in zip(axes, LABELLED):
        for axis, test in zip(row, TESTS):
            for i, key in enumerate(keys):
                errors = results.totals(key, results.seeds(key), labelled, test)
                draws = bootstrap(errors, results.characters(test))
                low, high = np.percentile(draws, [2.5, 97.5])
                rates = results.rates(key, labelled, test)
                axis.plot([i, i], [low, high], color="0.7", linewidth=6, zorder=1)
                axis.plot([i] * len(rates), rates, "k.", markersize=4)
                axis.plot(i, rates.mean(), "C3_", markersize=14)
            axis.set_title(f"fine-tuned on {LABELLED[labelled]}, {TESTS[test]} test")
            axis.set_ylabel("CER %")
            axis.set_xticks(range(len(keys)), keys, rotation=45)
    figure.suptitle(f"{results.objective}: each dot a seed; bar: 95 % of the mean")
    figure.tight_layout()
    figure.savefig(images / "cer_by_arm.png", dpi=110)

    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), sharey=True, sharex="row")
    for row, (measure, unit) in zip(axes, UNITS.items()):
        measured = Results.read(folder, setup["objective"], measure)
        for axis, labelled in zip(row, LABELLED):
            for shift, (test, colour) in zip((-0.15, 0.15), zip(TESTS, ("C0", "C3"))):
                for i, names in enumerate(COMPARISONS):
                    found = difference(measured, names, labelled, test)
                    if found is not None:
                        axis.plot([found.low, found.high], [i + shift] * 2, colour)
                        if found.seeds >= TESTED_SEEDS:
                            axis.plot([found.t_low, found.t_high], [i + shift] * 2,
                                      f"{colour}|:", linewidth=1)
                        axis.plot(found.mean, i + shift, f"{colour}o")
                axis.plot([], [], f"{colour}o", label=f"{TESTS[test]} test")
            axis.axvline(0, color="0.7", linewidth=1, zorder=0)
            axis.set_xlabel(unit)
    for axis, labelled in zip(axes[0], LABELLED):
        axis.set_title(f"fine-tuned on {LABELLED[labelled]}")
    named = [f"{' - '.join(names)}: {what}" for names, what in COMPARISONS.items()]
    axes[0][0].set_yticks(range(len(named)), named)
    axes[0][0].invert_yaxis()
    axes[0][0].legend(fontsize=8)
    figure.suptitle(
        f"{results.objective}: pre-registered comparisons, left of 0 the first is better; 95 %\n"
        "intervals: line, of levels and seeds drawn; dotted, t of the seeds' differences"
    )
    figure.tight_layout()
    figure.savefig(images / "comparisons.png", dpi=110)

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, labelled in zip(axes, LABELLED):
        for arm in "AB":
            for test, style in zip(TESTS, "-:"):
                points = []
                for key in results.runs:
                    name, _, ratio = key.partition(" ")
                    if name == arm and 0 in results.runs[key]:
                        errors = results.totals(key, [0], labelled, test).sum()
                        points.append((
                            float(ratio or RATIO),
                            100 * errors / results.characters(test).sum(),
                        ))
                axis.plot(*np.reshape(sorted(points), (-1, 2)).T,
                          f"{'C0' if arm == 'A' else 'C1'}{style}o",
                          label=f"{ARMS[arm].what}, {TESTS[test]}")
        axis.set(xlabel="masked fraction", ylabel="CER %", title=LABELLED[labelled])
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(images / "masked_fraction.png", dpi=110)

    names = statistics_of(results)
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.5), squeeze=False)
    for axis, name in zip(axes[0], names):
        for arm in "ABEHK":
            runs = results.runs.get(arm, {}).values()
            if runs:
                curves = [run["curves"]["ssl"]["valid"][name] for run in runs]
                mean = np.array(curves, float).mean(axis=0)
                axis.plot(range(1, len(mean) + 1), mean, label=f"{arm}: {ARMS[arm].what}")
        axis.set(xlabel="epoch of 200 steps", title=name)
    if any(key != "N" for key in keys):
        axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(images / "masked_prediction.png", dpi=110)
    plt.close("all")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=OWN, help="of experiment.py")
    args = parser.parse_args(argv)
    found = tables(args.results)
    print(found)
    page = args.results / "README.md"
    if args.results.resolve() == OWN:
        page = HERE / "README.md"
    write_tables(page, found)
    plot(args.results, page.parent / "images")


def write_tables(page: Path, found: str) -> None:
    """Put tables between the marks of a page, which is made if it is not there.

    Raises:
        ValueError: when the page has no marks.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else "".join(MARKS)
    for mark in MARKS:
        if mark not in text:
            raise ValueError(f"{page}: no line {mark.strip()!r}")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    partial = page.with_name(f"{page.name}.partial")
    partial.write_text(f"{before}{MARKS[0]}{found}{MARKS[1]}{after}", encoding="utf-8")
    os.replace(partial, page)


if __name__ == "__main__":
    main()

"""What is compared: the arms of the experiment, and the list of its runs."""

from dataclasses import dataclass

PAPER_RANDOM = 0.49  # the paper's masked fraction for random masks
RATIO = 0.40  # achieved, of all others
SEEDS = (0, 1, 2, 3, 4)
SECOND_SEEDS = (0, 1, 2)
SECOND_ARMS = "ABEH"
SWEEP_ARMS = "AB"
SWEEP_RATIOS = (0.20, 0.30, 0.50, 0.60)
SWEEP_SEEDS = (0,)
PILOT_SEED = 100  # of what is decided on dev before the runs
OBJECTIVES = ("hubert", "wav2vec2", "w2v_bert", "best_rq")


@dataclass(frozen=True)
class Arm:
    """One way to use the pool.

    Args:
        what: in a table.
        strategy: of the masks, as in ``ssl_conf.masker_conf``.
        weighted: whether an utterance's loss is weighted by its mean confidence.
        track: the scores, ``plain`` or ``gated`` (times the probability of speech).
        pool: the part of the pool that is trained on: ``all``, ``gate`` (the third of its
            hours whose gated mean confidence is highest), ``random`` (a third, drawn by
            the run's seed), ``dutch`` (the target's third).
    """

    what: str
    strategy: str = "random"
    weighted: bool = False
    track: str = "plain"
    pool: str = "all"

    @property
    def reads_scores(self) -> bool:
        """Whether masks or weights are of the scores."""
        return self.strategy != "random" or self.weighted

    @property
    def needs_scores(self) -> bool:
        """Whether it cannot begin without them."""
        return self.reads_scores or self.pool == "gate"


ARMS = {
    "N": Arm("no pre-training"),
    "A": Arm("random masks"),
    "B": Arm("ATM: guided masks", "high"),
    "C": Arm("confidence shuffled in time", "shuffled"),
    "D": Arm("random masks, utterance weights", weighted=True),
    "E": Arm("ATM, utterance weights (ATM+S)", "high", weighted=True),
    "F": Arm("ATM, speech gate", "high", track="gated"),
    "G": Arm("random masks, gated weights", weighted=True, track="gated"),
    "H": Arm("ATM+S, speech gate", "high", weighted=True, track="gated"),
    "I": Arm("random masks, the third that the gate ranks first", pool="gate"),
    "J": Arm("random masks, a random third", pool="random"),
    "K": Arm("random masks, the Dutch third (oracle)", pool="dutch"),
}
# The pre-registered comparisons, first less second, and of what they show the effect.
COMPARISONS = {
    ("B", "A"): "masks",
    ("B", "C"): "masks, beside shuffled ones",
    ("E", "A"): "ATM+S",
    ("H", "A"): "ATM+S, gated",
    ("H", "E"): "the gate",
    ("I", "J"): "selection by the gate",
}
# Tested by nothing: what helps to read the six. All but the first were decided beforehand.
DESCRIBED = {
    ("C", "A"): "nothing: both masks are random",
    ("A", "N"): "pre-training",
    ("F", "A"): "gated masks",
    ("K", "A"): "the Dutch third in place of all",
    ("K", "J"): "the Dutch third in place of a random one",
}


@dataclass(frozen=True)
class Run:
    """One pre-training, with what is fine-tuned from it."""

    objective: str
    arm: str
    ratio: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and of its results."""
        if self.arm == "N":
            return f"none_N_seed{self.seed}"
        return f"{self.objective}_{self.arm}_{self.ratio:.2f}_seed{self.seed}"


def main_runs(objective: str) -> list[Run]:
    """All arms, seed by seed, so that what is there at any time is balanced."""
    runs = []
    for seed in SEEDS:
        for arm in ARMS:
            runs.append(Run(objective, arm, RATIO, seed))
            if arm == "A":
                runs.append(Run(objective, arm, PAPER_RANDOM, seed))
    return runs


def further_runs(objective: str, second: str) -> list[Run]:
    """If the budget allows: masking ratios, and a second objective."""
    sweep = [
        Run(objective, arm, ratio, seed)
        for seed in SWEEP_SEEDS for ratio in SWEEP_RATIOS for arm in SWEEP_ARMS
    ]
    other = [
        Run(second, arm, RATIO, seed) for seed in SECOND_SEEDS for arm in SECOND_ARMS
    ]
    return sweep + other


def pilot_runs() -> list[Run]:
    """Arm A with each objective, of a seed of its own."""
    return [Run(objective, "A", RATIO, PILOT_SEED) for objective in OBJECTIVES]

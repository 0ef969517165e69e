"""What the benchmarks share: rounds that take turns, peaks of memory, rows and tables.

A benchmark measures one part and can be run by itself:

    rows = Rows("masks", args)
    times = interleave({"stock": a, "ours": b}, args.rounds, device=args.device)
    rows.add("64 x 800", "ours", times["ours"], of="stock's time over ours",
             ratio=ratio(times["stock"], times["ours"], args.device), goal=">= 50")
    rows.finish()  # prints the table; with --out, leaves masks.jsonl for join.py
"""

import argparse
import dataclasses
import gc
import json
import multiprocessing
import os
import re
import resource
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch

MIB = 1 << 20


# --- the command line -------------------------------------------------------------------


def get_parser(doc: str, rounds: int) -> argparse.ArgumentParser:
    """The options of every benchmark; ``rounds`` is the default of ``--rounds``."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--quick", action="store_true", help="the smallest sizes, to see that all runs"
    )
    parser.add_argument("--out", type=Path, help="folder for the rows that join.py reads")
    return parser


def start(args: argparse.Namespace) -> None:
    """One thread, one seed; refuses a device that is not there."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.quick:
        args.rounds = 1


# --- time -------------------------------------------------------------------------------


@dataclasses.dataclass
class Times:
    """Seconds of each round, in the order of the rounds."""

    wall: List[float] = dataclasses.field(default_factory=list)
    cpu: List[float] = dataclasses.field(default_factory=list)  # its children's too

    @property
    def median(self) -> float:
        """Wall seconds."""
        return statistics.median(self.wall)

    @property
    def spread(self) -> Tuple[float, float]:
        """Lower and upper quartile of the wall seconds."""
        return quartiles(self.wall)

    def __truediv__(self, other: "Times") -> float:
        """Median over the rounds of this one's wall seconds over the other's.

        What slows the machine for a while hits both of a round.
        """
        return statistics.median(a / b for a, b in zip(self.wall, other.wall))


def ratio(times: Times, other: Times, device: str) -> float:
    """Median over the rounds of one's time over the other's.

    On a CPU of the process's own seconds, which on an idle machine are all that pass: on a
    busy one the wall's are more, and the more so the longer a call takes.
    """
    if device != "cpu":
        return times / other
    return statistics.median(a / b for a, b in zip(times.cpu, other.cpu))


def quartiles(values: List[float]) -> Tuple[float, float]:
    """Lower and upper."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def interleave(
    functions: Dict[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 1,
    device: str = "cpu",
    before: Callable[[str], Any] = lambda name: None,
) -> Dict[str, Times]:
    """Time functions in turns, each once a round, the device's work included.

    The order turns by one place each round, and is backwards every other time around.

    Args:
        functions: by name.
        rounds: that count.
        warm_up: rounds before them that do not.
        device: that they work on.
        before: is called with a name before that function's time is taken.
    """
    names = list(functions)
    times = {name: Times() for name in names}
    for round_ in range(warm_up + rounds):
        first = round_ % len(names)
        order = names[first:] + names[:first]
        gc.collect()
        for name in order[:: -1 if round_ // len(names) % 2 else 1]:
            before(name)
            synchronize(device)
            wall, cpu = time.perf_counter(), _cpu_seconds()
            functions[name]()
            synchronize(device)
            if round_ >= warm_up:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(_cpu_seconds() - cpu)
    return times


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def host_syncs(function: Callable[[], Any], device: str) -> Optional[int]:
    """How often a call waits for the GPU, as torch tells; None on a CPU."""
    if device == "cpu":
        return None
    function()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(x.message) for x in caught)


# --- memory -----------------------------------------------------------------------------


def peak_memory(
    make: Callable[..., Callable[[], Any]],
    *args: Any,
    device: str = "cpu",
    warm_up: int = 0,
) -> int:
    """Bytes by which a call's peak is above what was there before it.

    Args:
        make: a function of a module that makes the call; it runs, with ``args``, in a
            process of its own.
        device: of which the memory is; on a CPU it is what the process holds in RAM.
        warm_up: calls before the one that counts. On a CPU what they freed may be used
            again without being seen.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        threads = torch.get_num_threads()
        return pool.submit(_peak, make, args, device, warm_up, threads).result()


def _peak(make: Callable, args: Tuple, device: str, warm_up: int, threads: int) -> int:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    call = make(*args)
    for _ in range(warm_up):
        call()
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _kilobytes("/proc/self/status", "VmRSS")
    call()
    return max(0, _kilobytes("/proc/self/status", "VmHWM") - before)


def free_memory(device: str) -> int:
    """Bytes that may be taken."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    return _kilobytes("/proc/meminfo", "MemAvailable")


def _kilobytes(file: str, name: str) -> int:
    """A line of a file of /proc, in bytes."""
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path(file).read_text())[1])


# --- peers ------------------------------------------------------------------------------


def find_peers(
    loaders: Dict[str, Callable[[], Any]],
) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """What loads, and why the others do not, by name.

    Args:
        loaders: import and return what is measured.
    """
    found, missing = {}, {}
    for name, load in loaders.items():
        try:
            found[name] = load()
        except Exception as e:  # what a peer of another version may raise
            missing[name] = f"{type(e).__name__}: {e}".splitlines()[0]
    return found, missing


# --- rows -------------------------------------------------------------------------------


@dataclasses.dataclass
class Row:
    """One measurement; what was not measured is None or empty."""

    part: str
    case: str
    name: str
    median: Optional[float] = None  # in ``unit``
    low: Optional[float] = None  # quartiles
    high: Optional[float] = None
    unit: str = "ms"
    cpu: Optional[float] = None  # ms
    memory: Optional[float] = None  # MiB
    syncs: Optional[int] = None  # of the host with the device
    ratio: Optional[float] = None
    of: str = ""  # what the ratio is of
    goal: str = ""  # of the ratio, as ">= 50"
    note: str = ""  # why it is missing, for one

    @property
    def met(self) -> str:
        """Whether the goal is."""
        if not self.goal or self.ratio is None:
            return ""
        sign, bound = self.goal.split()
        room = self.ratio - float(bound)
        return "yes" if (room if sign == ">=" else -room) >= 0 else "no"

    def columns(self) -> Dict[str, str]:
        """As the table shows them."""

        def told(value: Optional[float]) -> str:
            return "" if value is None else f"{value:.4g}"

        spread = "" if self.low is None else f"{told(self.low)} .. {told(self.high)}"
        return {
            "part": self.part,
            "case": self.case,
            "what": self.name,
            "median": f"{told(self.median)} {self.unit}" if self.median is not None else "",
            "quartiles": spread,
            "CPU ms": told(self.cpu),
            "peak MiB": told(self.memory),
            "syncs": "" if self.syncs is None else str(self.syncs),
            "ratio": "" if self.ratio is None else f"{self.ratio:.3g}",
            "of": self.of,
            "goal": self.goal,
            "met": self.met,
            "note": self.note,
        }


class Rows:
    """The rows of one part.

    Args:
        part: its name, and that of its file.
        args: the benchmark's command line.
    """

    def __init__(self, part: str, args: argparse.Namespace):
        self.part, self.args = part, args
        self.rows: List[Row] = []

    def add(
        self,
        case: str,
        name: str,
        times: Optional[Times] = None,
        per: Optional[float] = None,
        **columns: Any,
    ) -> None:
        """Add a row.

        Args:
            times: gives it median and quartiles, in ms.
            per: what is done in these times; then it has so much a second instead.
            columns: fields of :class:`Row`.
        """
        row = Row(self.part, case, name, **columns)
        if times is not None:
            found = (times.median, *times.spread)
            if per is None:
                row.median, row.low, row.high = (1000 * x for x in found)
            else:
                row.median, row.high, row.low = (per / x for x in found)
            if times.cpu:
                row.cpu = 1000 * statistics.median(times.cpu)
        self.rows.append(row)

    def add_missing(self, missing: Dict[str, str], case: str = "") -> None:
        """Name the peers that do not load, with the reason."""
        for name, reason in missing.items():
            self.add(case, name, note=f"missing: {reason}")

    def finish(self) -> None:
        """Print the table and leave the rows where ``--out`` says."""
        print(markdown(self.rows))
        if self.args.out is not None:
            self.args.out.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(dataclasses.asdict(row)) + "\n" for row in self.rows]
            file = self.args.out / f"{self.part}.jsonl"
            temporary = file.with_suffix(f".{os.getpid()}")
            temporary.write_text("".join(lines))
            temporary.replace(file)


def read_rows(file: Path) -> List[Row]:
    """What :meth:`Rows.finish` left."""
    return [Row(**json.loads(line)) for line in file.read_text().splitlines()]


def markdown(rows: Iterable[Row]) -> str:
    """A table of the columns that any row has something in."""
    told = [row.columns() for row in rows]
    names = [name for name in (told[0] if told else ()) if any(x[name] for x in told)]
    table = [names, *([row[name].replace("|", "\\|") for name in names] for row in told)]
    widths = [max(map(len, column)) for column in zip(*table)]
    right = {"median", "CPU ms", "peak MiB", "syncs", "ratio"}
    lines = []
    for number, cells in enumerate(table):
        padded = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(names, cells, widths)
        )
        lines.append(f"| {' | '.join(padded)} |")
        if number == 0:
            rule = (
                "-" * (width + 1) + ":" if name in right else "-" * (width + 2)
                for name, width in zip(names, widths)
            )
            lines.append(f"|{'|'.join(rule)}|")
    return "\n".join(lines)

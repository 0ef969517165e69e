"""What a corpus of the size of Libri-Light costs, and how that grows.

    . tools/activate_python.sh; python benchmarks/scale.py --utterances 38000

Makes the metadata of a corpus of so many segments (3,800,000 are 60,000 h): recordings of
half an hour, which are links to one, and segments of 57 s. Then measures, each in a process
of its own:

- cuts: ``local/cuts.py``, from segments to the data directory that scoring and training
  read; beside it ESPnet's ``format_wav_scp.sh`` on a few of the segments, and
  ``local/cuts.py`` where it writes audio too, by their cost for each;
- lists: one of training's lists in a process, as it is opened and after an utterance in
  38 was looked up, beside ESPnet's own type ``text``: CPU seconds, and MiB more than
  before;
- batches: the list of them in a process, of 8,000 s, beside ESPnet's;
- crop: 32 s out of the recording of half an hour, and of a file of 57 s, as
  ``espnet_atm.audio`` reads them.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs2" / "atm_librilight" / "ssl1"
RATE = 16000
SEGMENT, RECORDING = 57, 1800  # seconds
SPEAKERS = 7000
MIB = 1 << 20


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, default=38000)
    parser.add_argument("--stock", type=int, default=60, help="segments for ESPnet's way")
    parser.add_argument("--nj", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dir", help="where to work; some GB for 3,800,000 utterances")
    return parser


def make_corpus(folder: Path, utterances: int) -> None:
    """A data directory as stage 2 leaves it."""
    recording = folder / "recording.flac"
    rng = np.random.default_rng(0)
    noise = (300 * rng.standard_normal(RATE * 60)).astype(np.int16)
    with soundfile.SoundFile(recording, "w", RATE, 1, "PCM_16") as f:
        for _ in range(RECORDING // 60):
            f.write(noise)
    data, audio = folder / "data", folder / "audio"
    data.mkdir()
    each = RECORDING // SEGMENT
    recordings = -(-utterances // each)
    with (
        open(data / "wav.scp", "w") as wav_scp,
        open(data / "segments", "w") as segments,
        open(data / "utt2spk", "w") as utt2spk,
    ):
        for number in range(recordings):
            speaker = f"{number * SPEAKERS // recordings:05}"
            name = f"{speaker}-{number:07}"
            file = audio / f"{number // 1000:04}" / f"{name}.flac"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to(recording)
            wav_scp.write(f"{name} {file}\n")
            for part in range(min(each, utterances - number * each)):
                start = part * SEGMENT + 0.123
                utt = f"{name}-{part:03}"
                segments.write(f"{utt} {name} {start:.3f} {start + SEGMENT - 0.5:.3f}\n")
                utt2spk.write(f"{utt} {speaker}\n")


def run(command: list, cwd: Path = ROOT) -> tuple[float, float, float]:
    """CPU seconds, peak MiB of the largest process, and seconds, of a command."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(output.decode()[-3000:])
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, time.perf_counter() - begin


def size_of(folder: Path) -> int:
    """Bytes of the files in it."""
    return sum(x.lstat().st_size for x in folder.rglob("*") if x.is_file())


def measure_cuts(folder: Path, nj: int) -> None:
    """Stages 3 and 4 of the pool."""
    cuts = [sys.executable, RECIPE / "local/cuts.py"]
    one = run([*cuts, "make", "--fs", RATE, "--nj", nj, folder / "data", folder / "org"])
    bounds = ["--least", RATE, "--most", 65 * RATE]
    two = run([*cuts, "select", *bounds, folder / "org", folder / "pool"])
    cpu, memory = one[0] + two[0], max(one[1], two[1])
    disk = size_of(folder / "org") + size_of(folder / "pool")
    print(
        f"from segments to what training reads: {cpu:.1f} CPU s, {memory:.0f} MiB, "
        f"{disk / 1e9:.3f} GB of tables, {len(list(folder.glob('org/**/*.flac')))} of audio"
    )


def measure_stock(folder: Path, utterances: int, some: int) -> None:
    """ESPnet's stage 3, of the first segments."""
    data = folder / "few"
    data.mkdir()
    for name in ("segments", "wav.scp"):
        with open(folder / "data" / name) as f:
            (data / name).write_text("".join(line for line, _ in zip(f, range(some))))
    words = ["scripts/audio/format_wav_scp.sh", "--nj", 1, "--fs", "16k"]
    words += ["--audio-format", "flac", "--segments", data / "segments"]
    words += [data / "wav.scp", folder / "stock"]
    shell = f". ./path.sh; . ./cmd.sh; exec {' '.join(map(str, words))}"
    cpu, memory, _ = run(["bash", "-c", shell], RECIPE)
    disk = size_of(folder / "stock")
    print(
        f"  ESPnet's format_wav_scp.sh: {1000 * cpu / some:.0f} CPU ms and "
        f"{disk / some / 1000:.0f} kB a segment (of {some}); {utterances} of them "
        f"{cpu / some * utterances:.0f} CPU s and {disk / some * utterances / 1e9:.0f} GB"
    )


def measure_write(folder: Path, some: int) -> None:
    """The audio of the first cuts, as --write_segments true has it."""
    few, cuts, cpu = folder / "few", [sys.executable, RECIPE / "local/cuts.py"], 0
    few.joinpath("utt2spk").write_text(
        "".join(f"{line.split()[0]} x\n" for line in open(few / "segments"))
    )
    run([*cuts, "make", "--fs", RATE, few, folder / "few_cuts"])
    for what in ("write", "join"):
        cpu += run([*cuts, what, folder / "few_cuts", folder / "written"])[0]
    print(f"  local/cuts.py, audio written: {1000 * cpu / some:.0f} CPU ms a segment")


MEMORY = """
import sys, time
from espnet_atm.batches import numel_batches
from espnet_atm.data import Lines
from espnet2.fileio.read_text import read_2columns_text
from espnet2.samplers.num_elements_batch_sampler import NumElementsBatchSampler
file, way = sys.argv[1:]
def memory():
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith("VmRSS")) / 1024
"""
LISTS = """
begin, before = time.process_time(), memory()
found = {"ours": Lines, "stock": read_2columns_text}[way](file)
opened, used = time.process_time() - begin, memory() - before
utts = [line.split()[0] for number, line in enumerate(open(file)) if number % 38 == 0]
before = memory()
begin = time.process_time()
for utt in utts:
    found[utt]
print(opened, used, 1e6 * (time.process_time() - begin) / len(utts), memory() - before)
"""


def measure_lists(folder: Path) -> None:
    """What a list of training takes in each process."""
    for way, name in (("ours", "a list of training"), ("stock", "  ESPnet's type text")):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY + LISTS, folder / "pool/wav.scp", way],
            capture_output=True,
            text=True,
            check=True,
        )
        opened, used, each, more = map(float, done.stdout.split())
        print(
            f"{name}: {opened:.1f} CPU s and {used:.0f} MiB to open, {each:.0f} us and "
            f"{more:.0f} MiB more to look up"
        )


BATCHES = """
begin, before = time.process_time(), memory()
if way == "ours":
    found = numel_batches(file, 8000 * 16000)
else:
    found = list(NumElementsBatchSampler(8000 * 16000, [file]))
print(time.process_time() - begin, memory() - before, len(found))
"""


def measure_batches(folder: Path) -> None:
    """What the list of batches takes in each process."""
    shapes = folder / "pool/utt2num_samples"
    for way, name in (("ours", "the list of batches"), ("stock", "  ESPnet's")):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY + BATCHES, shapes, way],
            capture_output=True,
            text=True,
            check=True,
        )
        used, more, count = map(float, done.stdout.split())
        print(f"{name}: {used:.1f} CPU s and {more:.0f} MiB, {count:.0f} batches")


def measure_crop(folder: Path) -> None:
    """32 s out of half an hour, and out of a segment's own file."""
    # Last: what a process has been counts as the peak of those that it starts.
    from espnet_atm.audio import read_audio

    short = folder / "short.flac"
    audio, _ = read_audio(f"{folder / 'recording.flac'}:0:{SEGMENT * RATE}")
    soundfile.write(short, audio, RATE, subtype="PCM_16")
    rng = np.random.default_rng(1)
    for name, file, seconds in (
        ("half an hour", folder / "recording.flac", RECORDING),
        ("a file of 57 s", short, SEGMENT),
    ):
        firsts = rng.integers(0, (seconds - 32) * RATE, 100)
        begin = resource.getrusage(resource.RUSAGE_SELF)
        for first in firsts:
            read_audio(f"{file}:{first}:{first + 32 * RATE}")
        end = resource.getrusage(resource.RUSAGE_SELF)
        cpu = end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime
        print(f"a crop of 32 s out of {name}: {1000 * cpu / len(firsts):.1f} CPU ms")


def main(cmd=None) -> None:
    """Make, measure, print."""
    args = get_parser().parse_args(cmd)
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        make_corpus(folder, args.utterances)
        print(f"{args.utterances} utterances, {args.nj} jobs")
        measure_cuts(folder, args.nj)
        measure_stock(folder, args.utterances, args.stock)
        measure_write(folder, args.stock)
        measure_lists(folder)
        measure_batches(folder)
        measure_crop(folder)


if __name__ == "__main__":
    main()

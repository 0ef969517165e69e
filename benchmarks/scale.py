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
- training: HuBERT with guided masks, of a pool of so many utterances of 2 s, beside one of
  1,000: what ``check_ssl_conf`` takes, when the first batch is there, what is in memory
  then, and by how much a reading process has grown after ``--read`` utterances more;
- labels: ``espnet_atm.bin.label`` on 2,000 and 8,000 utterances of 5 s, and the bytes that
  60,000 h would take; ESPnet's ``dump_km_label.py`` on the same;
- k-means: its memory, as a multiple of the features that it is learned from;
- summary, report: of scores of all, whose tracks are short but for the 1000 utterances
  that the report listens to; beside it a report that listens to one;
- crop: 32 s out of the recording of half an hour, and of a file of 57 s, as
  ``espnet_atm.audio`` reads them.
"""

import argparse
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs2" / "atm_librilight" / "ssl1"
RATE = 16000
SEGMENT, RECORDING = 57, 1800  # seconds
SPEAKERS = 7000
MIB = 1 << 20
SHIFT, LISTENED = 640, 1000  # of the scorer, in samples; by the report, unless told


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, default=38000)
    parser.add_argument("--stock", type=int, default=60, help="segments for ESPnet's way")
    parser.add_argument(
        "--read", type=int, default=20000, help="utterances that a training process reads"
    )
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


def make_pool(folder: Path, recording: Path, utterances: int) -> None:
    """What a training reads of a pool: lists, scores, labels; 2 s of audio each."""
    from espnet_atm.audio import checksum, read_audio

    folder.mkdir()
    frames = (2 * RATE // 160 // 2 - 1) // 2
    track = b"\0BCM3 " + struct.pack("<ffii", 0, 1, frames, 1) + b"\x80" * frames
    labels = np.arange(frames, dtype="<u2").tobytes()
    # Places in the recording: lengths differ, as those of a corpus do.
    audio, _ = read_audio(str(recording))
    places = []
    for first in range(0, (RECORDING - 4) * RATE, 2 * RATE):
        last = first + 2 * RATE + first // RATE % 7
        places.append((first, last, checksum(audio[first:last])))
    names = ("wav.scp", "shape", "utt2confidence", "utt2audio", "confidence.scp")
    names += ("confidence.ark", "labels.scp", "labels.bin")
    files = [open(folder / name, "wb") for name in names]
    wav_scp, shape, means, audio, scores, score_ark, label_scp, label_bin = files
    for number in range(utterances):
        first, last, found = places[number % len(places)]
        utt = f"{number // len(places):06}-{number % len(places):04}"
        wav_scp.write(f"{utt} {recording}:{first}:{last}\n".encode())
        shape.write(f"{utt} {last - first}\n".encode())
        means.write(f"{utt} {128 / 255:.6f}\n".encode())
        line = f"{utt} {last - first} {RATE} {found} 0 {zlib.crc32(track):08x}\n"
        audio.write(line.encode())
        audio_sum = int(found, 16)
        record = struct.pack("<III", frames, zlib.crc32(labels, audio_sum), audio_sum) + labels
        for scp, ark, content in (
            (scores, score_ark, track),
            (label_scp, label_bin, record),
        ):
            ark.write(f"{utt} ".encode())
            scp.write(f"{utt} {ark.name}:{ark.tell()}\n".encode())
            ark.write(content)
    for file in files:
        file.close()
    for name, value in (("frame_shift", 640), ("frame_offset", 479.5)):
        (folder / name).write_text(f"{value}\n")
    grid = {"frame_shift": 640, "frame_offset": 479.5, "sampling_rate": RATE}
    (folder / "labeller").write_text(json.dumps({**grid, "num_classes": 64}))


TRAINING = """
import contextlib, multiprocessing, sys, time
from pathlib import Path
from espnet2.train.distributed_utils import DistributedOption
from espnet_atm.task import ATMSSLTask, ssl_conf
folder, small, config, wanted = sys.argv[1:]
options = ["--config", config, "--output_dir", folder, "--num_workers", "1"]
options += ["--batch_bins", str(280 * 16000)]
streams = ("wav.scp,speech,sound", "labels.scp,text,pseudo_labels")
streams += ("confidence.scp,confidence,kaldi_ark",)
for mode, place in (("train", folder), ("valid", small)):
    options += [f"--{mode}_shape_file", f"{place}/shape"]
    for stream in streams:
        options += [f"--{mode}_data_path_and_name_and_type", f"{place}/{stream}"]
def memory(pid="self"):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) / 1024
args = ATMSSLTask.get_parser().parse_args(options)
args.token_list = []
args.ssl_conf["crop_seconds"] = 1.5
args.ssl_conf = dict(args.ssl_conf)
conf = ssl_conf(args)
begin, before = time.process_time(), memory()
ATMSSLTask.check_ssl_conf(args, conf)
check = time.process_time() - begin, memory() - before
begin = time.time()
factory = ATMSSLTask.build_iter_factory(args, DistributedOption(), "train")
batches = iter(factory.build_iter(1))
read = len(next(batches)[0])
first = time.time() - begin, memory()
(worker,) = multiprocessing.active_children()
own = memory(worker.pid)
grown, half = 0, 0
while read < int(wanted) and (batch := next(batches, None)):
    read += len(batch[0])
    with contextlib.suppress(FileNotFoundError):  # it has read all
        grown = memory(worker.pid) - own
    half = half if 2 * read > int(wanted) else grown
print(*check, *first, grown, grown - half, read)
"""


def measure_training(folder: Path, utterances: int, read: int) -> None:
    """A pool of so many utterances beside one of 1,000."""
    config = RECIPE / "conf/tuning/train_hubert_conformer_mini_atm.yaml"
    found = []
    valid = folder / "valid"
    make_pool(valid, folder / "recording.flac", 1000)
    for number in (1000, utterances):
        pool = folder / f"pool{number}"
        make_pool(pool, folder / "recording.flac", number)
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, pool, valid, config, str(read)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        found.append(list(map(float, done.stdout.split())))
        shutil.rmtree(pool)
    small, large = found
    exponent = np.log(large[3] / small[3]) / max(np.log(utterances / 1000), 1e-9)
    print(
        f"check_ssl_conf, labels included: {large[0]:.2f} CPU s and {large[1]:.0f} MiB "
        f"(of 1,000 utterances {small[0]:.2f} and {small[1]:.0f})\n"
        f"first batch: {large[2] - small[2]:.1f} s later than that of 1,000 utterances "
        f"({small[2]:.1f} s), {large[3] - small[3]:+.0f} MiB of {small[3]:.0f}, exponent "
        f"{exponent:.3f}\n"
        f"a process that reads for training: {large[4]:+.1f} MiB with its batches, "
        f"{large[5]:+.1f} of it in the second half of {large[6]:.0f} utterances"
    )


def measure_labels(folder: Path, some: tuple = (2000, 8000)) -> None:
    """Pseudo-labels, of one file again and again; and ESPnet's way."""
    from espnet_atm.audio import read_audio

    short = folder / "label.flac"
    audio, _ = read_audio(f"{folder / 'recording.flac'}:0:{5 * RATE}")
    soundfile.write(short, audio, RATE, subtype="PCM_16")
    config = RECIPE / "conf/tuning/train_hubert_conformer_mini_atm.yaml"
    ours, stock = [], []
    for number in some:
        own = folder / f"labels{number}"
        own.mkdir()
        utts = [f"{x:06}" for x in range(number)]
        for name, value in (("wav.scp", short), ("samples", len(audio))):
            (own / name).write_text("".join(f"{utt} {value}\n" for utt in utts))
        program = [sys.executable, "-m", "espnet_atm.bin.learn_kmeans", "--portion", 0.1]
        program += ["--wav_scp", own / "wav.scp", "--num_clusters", 64]
        run([*program, "--km_path", own / "km.mdl"])
        program = [sys.executable, "-m", "espnet_atm.bin.label", "--ssl_config", config]
        program += ["--wav_scp", own / "wav.scp", "--km_path", own / "km.mdl"]
        ours.append(run([*program, "--output_dir", own / "out"]))
        # What it takes beside 25 labels a second.
        more = (size_of(own / "out") - number * 2 * 5 * 25) / number
        program = [sys.executable, "pyscripts/feats/dump_km_label.py"]
        program += ["--online_feature_extract", "true", "--feature_conf", "{type=mfcc}"]
        program += ["--in_filetype", "sound", "--km_path", own / "km.mdl"]
        program += ["--utt2num_samples", own / "samples"]
        program += [f"scp:{own / 'wav.scp'}", f"ark,t:{own / 'labels.txt'}"]
        stock.append(run(program, RECIPE))
    whole = 3_789_000
    size = whole * (2 * 25 * SEGMENT + more)
    text = (own / "labels.txt").stat().st_size / some[1] / 5 * SEGMENT * whole
    print(
        f"labels: {ours[1][0]:.0f} CPU s for {some[1]} utterances, "
        f"{ours[1][0] / ours[0][0]:.1f} times those of {some[0]}, {ours[1][1]:.0f} MiB; "
        f"{size / 1e9:.1f} GB for {whole} of {SEGMENT} s\n"
        f"  ESPnet's dump_km_label.py: {stock[1][0]:.0f} CPU s, "
        f"{stock[1][0] / stock[0][0]:.1f} times, {stock[1][1]:.0f} MiB; "
        f"{text / 1e9:.0f} GB"
    )


KMEANS = """
import resource, sys, time
from pathlib import Path
import numpy as np
from espnet_atm.kmeans import learn_kmeans
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
features = np.memmap(sys.argv[1], np.float32, "r").reshape(-1, 39)
before, begin = peak(), time.process_time()
learn_kmeans(features, 100, Path(sys.argv[1] + ".mdl"))
print(time.process_time() - begin, (peak() - before) * 2**20 / features.nbytes)
"""


def measure_kmeans(folder: Path, frames: int = 8_000_000) -> None:
    """Clusters of so many frames of MFCC."""
    rng = np.random.default_rng(0)
    file = folder / "features"
    with open(file, "wb") as f:
        for _ in range(frames // 100_000):
            f.write(rng.standard_normal((100_000, 39), np.float32).data)
    done = subprocess.run(
        [sys.executable, "-c", KMEANS, file], capture_output=True, text=True, check=True
    )
    used, ratio = map(float, done.stdout.split())
    print(
        f"k-means: {used:.0f} CPU s for {frames} frames, {ratio:.2f} times the bytes of "
        "their features in memory"
    )
    file.unlink()


def make_scores(folder: Path, utterances: int) -> Path:
    """Scores as ``espnet_atm.bin.score`` leaves them, of the cuts in the pool."""
    scores = folder / "scores"
    scores.mkdir()
    (scores / "frame_shift").write_text(f"{SHIFT}\n")
    (scores / "scorer").write_text('{"model": "x", "config": "y"}\n')
    checksums = {}  # by first sample: recordings are links to one
    rng = np.random.default_rng(2)
    offset, listened = 0, max(utterances // LISTENED, 1)
    with (
        open(folder / "pool/wav.scp") as pool,
        open(scores / "confidence.ark", "wb") as ark,
        open(scores / "confidence.scp", "w") as scp,
        open(scores / "utt2confidence", "w") as means,
        open(scores / "utt2audio", "w") as audio,
        open(folder / "utt2category", "w") as categories,
    ):
        for number, line in enumerate(pool):
            utt, source = line.split()
            first, last = map(int, source.split(":")[1:])
            if first not in checksums:
                recording = folder / "recording.flac"
                part, _ = soundfile.read(recording, last - first, first, dtype="int16")
                checksums[first] = zlib.crc32(part.astype("<i4").tobytes())
            frames = (last - first) // SHIFT if number % listened == 0 else 10
            steps = rng.integers(rng.integers(256), 256, frames, dtype=np.uint8)
            head = struct.pack("<6sffii", b"\0BCM3 ", 0, 1, frames, 1)
            record = head + steps.tobytes()
            ark.write(f"{utt} ".encode() + record)
            scp.write(f"{utt} {scores}/confidence.ark:{offset + len(utt) + 1}\n")
            means.write(f"{utt} {steps.astype(np.float32).mean() / 255:.6f}\n")
            audio.write(
                f"{utt} {last - first} {RATE} {checksums[first]:08x} {'0' * 16} "
                f"{zlib.crc32(record):08x}\n"
            )
            categories.write(f"{utt} {('read', 'spoken')[number % 2]}\n")
            offset += len(utt) + 1 + len(record)
    return scores


def measure_report(folder: Path, utterances: int) -> None:
    """The end of stage 6 and stage 7, of the pool."""
    scores = make_scores(folder, utterances)
    begin = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m"]  # as path.sh has it
    cpu, memory, _ = run([*begin, "espnet_atm.bin.summary", "--confidence_dir", scores])
    print(f"summary: {cpu:.1f} CPU s, {memory:.0f} MiB")
    report = [*begin, "espnet_atm.bin.report", "--confidence_dir", scores]
    report += ["--wav_scp", folder / "pool/wav.scp"]
    report += ["--utt2category", folder / "utt2category"]
    report += ["--output_dir", folder / "report", "--max_utterances"]
    cpu, memory, _ = run([*report, LISTENED])
    one, _, _ = run([*report, 1])
    print(
        f"report: {cpu:.1f} CPU s, {memory:.0f} MiB; {one:.1f} CPU s where it listens to "
        "one utterance"
    )


class Counted(io.FileIO):
    """A file that counts the bytes that are read of it."""

    count = 0

    def readinto(self, buffer) -> int:
        found = super().readinto(buffer)
        self.count += found
        return found


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
        used = cpu_of(lambda: [read_audio(f"{file}:{x}:{x + 32 * RATE}") for x in firsts])
        read = 0
        for first in firsts:
            with Counted(file) as counted, soundfile.SoundFile(counted) as f:
                f.seek(first)
                f.read(32 * RATE, dtype="float32")
            read += counted.count
        own = file.stat().st_size / seconds * 32
        print(
            f"a crop of 32 s out of {name}: {1000 * used / len(firsts):.1f} CPU ms, "
            f"{read / len(firsts) / 1000:.0f} kB, {read / len(firsts) / own:.2f} times what "
            "32 s of it take"
        )
    used = cpu_of(lambda: [soundfile.read(short, dtype="float32") for _ in firsts])
    print(
        f"  ESPnet reads all of a file: {1000 * used / len(firsts):.1f} CPU ms, "
        f"{short.stat().st_size / 1000:.0f} kB"
    )


def cpu_of(work) -> float:
    """CPU seconds of a function in this process."""
    begin = resource.getrusage(resource.RUSAGE_SELF)
    work()
    end = resource.getrusage(resource.RUSAGE_SELF)
    return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


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
        measure_training(folder, args.utterances, args.read)
        measure_labels(folder)
        measure_kmeans(folder)
        measure_report(folder, args.utterances)
        measure_crop(folder)


if __name__ == "__main__":
    main()

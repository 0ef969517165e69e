import functools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from conftest import LOSSES, ROOT
from espnet2.iterators.sequence_iter_factory import worker_init_fn
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter
from test_model import config
from torch.utils._python_dispatch import TorchDispatchMode

from espnet_atm.masking import GuidedMasking
from espnet_atm.model import ATMSSLModel
from espnet_atm.task import ATMSSLTask
from espnet_atm.trainer import ATMTrainer, seed_process
from espnet_atm.weighting import SCALES

OBJECTIVES = ["hubert", *LOSSES]
ROWS = 2  # of each process
FRAMES = 24
SAMPLES = 16000
OPTIONS = ["--ngpu", "0", "--multiprocessing_distributed", "false"]
OPTIONS += ["--dist_backend", "gloo", "--log_interval", "1"]


class Draws(TorchDispatchMode):
    """Records what is drawn at random, or gives what others drew, joined.

    All that the model draws has utterances, or their masked frames, in its first
    dimension, in their order.
    """

    def __init__(self, given=None):
        super().__init__()
        self.given = given and [torch.cat(x) for x in zip(*given)]
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return made
        if self.given is not None:
            made.copy_(self.given[len(self.made)])  # of the same shape, or it fails
        self.made.append(made.clone())
        return made


class Keeping(torch.optim.SGD):
    """Keeps the gradients that it is given."""

    @torch.no_grad()
    def step(self, closure=None):
        self.kept = [p.grad.clone() for x in self.param_groups for p in x["params"]]


def rows(first: int, last: int) -> dict:
    """Utterances of a batch; every other one is shorter than the longest."""
    g = torch.Generator().manual_seed(5)
    shorter = (14000, 7000, 9000, 15000)
    lengths = torch.tensor([x for n in shorter for x in (SAMPLES, n)])
    data = dict(
        speech=torch.randn(8, SAMPLES, generator=g),
        speech_lengths=lengths,
        text=torch.randint(4, (8, FRAMES), generator=g),
        text_lengths=torch.full((8,), FRAMES),
        confidence=torch.rand(8, FRAMES, generator=g),
        confidence_lengths=torch.full((8,), FRAMES),
    )
    return {name: value[first:last] for name, value in data.items()}


def gradients(command, batch, rank=0, distributed=False, given=None):
    """Of one step of the trainer, and what was drawn at random for it."""
    args = ATMSSLTask.get_parser().parse_args(command)
    torch.manual_seed(0)
    model = ATMSSLTask.build_model(args).train()
    # Its own statistics, and what is dropped, are each process's own affair.
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.Dropout)):
            module.train = lambda mode, module=module: module
            module.eval()
            module.training = False
    optimizer = Keeping(model.parameters(), lr=1)
    if distributed:
        model = torch.nn.parallel.DistributedDataParallel(model)
    args.grad_clip = 1e9
    torch.manual_seed(100 + rank)
    with Reporter(1).observe("train") as reporter, Draws(given) as draws:
        ATMTrainer.train_one_epoch(
            model=model,
            iterator=[(["utt"] * len(batch["speech"]), batch)],
            optimizers=[optimizer],
            schedulers=[None],
            scaler=None,
            reporter=reporter,
            summary_writer=None,
            options=ATMTrainer.build_options(args),
            distributed_option=DistributedOption(distributed=distributed),
        )
    return optimizer.kept, draws.made


def work(rank, world, commands, folder) -> None:
    """One of several processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", world_size=world, rank=rank
    )
    batch = rows(ROWS * rank, ROWS * (rank + 1))
    found = [gradients(command, batch, rank, distributed=True) for command in commands]
    torch.save(found, f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes():
    """Makes processes that need not import anything any more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["espnet_atm.task", "espnet_atm.transducer"])
    return context


@pytest.mark.parametrize("world", [2, 4])
def test_processes_give_the_gradients_of_one(ssl_command, processes, tmp_path, world):
    """For every objective and loss scale; of batch norm each has its own statistics."""
    cases = [(objective, scale) for objective in OBJECTIVES for scale in SCALES]
    commands = []
    for objective, scale in cases:
        conf = {
            "masker": "atm",
            "loss_scale": scale,
            "loss_scale_conf": {"frame_prob": 0.5},
        }
        commands.append(ssl_command(ssl_conf=conf, **config(objective)))
    started = [
        processes.Process(target=work, args=(rank, world, commands, str(tmp_path)))
        for rank in range(world)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
    assert [x.exitcode for x in started] == [0] * world
    found = [torch.load(tmp_path / f"{rank}.pth") for rank in range(world)]
    for number, (case, command) in enumerate(zip(cases, commands)):
        draws = [found[rank][number][1] for rank in range(world)]
        expected, _ = gradients(command, rows(0, ROWS * world), given=draws)
        assert any(x.abs().max() > 1e-3 for x in expected)
        for rank in range(world):
            for got, want in zip(found[rank][number][0], expected):
                torch.testing.assert_close(
                    got, want, rtol=1e-3, atol=2e-6, msg=lambda x: f"{case}: {x}"
                )


class Seen:
    """What a process of a training masks, and hears, in each step of training."""

    def __init__(self):
        self.masks, self.speech = [], []
        forward, encode = GuidedMasking.forward, ATMSSLModel.encode

        def mask(module, *args, **more):
            x, info = forward(module, *args, **more)
            if module.training:
                self.masks.append(info["mask_m"].clone())
            return x, info

        def hear(model, speech, *args, **more):
            if model.training:
                self.speech.append(speech.clone())
            return encode(model, speech, *args, **more)

        GuidedMasking.forward, ATMSSLModel.encode = mask, hear


def train(rank, world, port, command, seen) -> None:
    """One of several processes of a training; all of it when there is one."""
    torch.set_num_threads(1)
    if world > 1:
        environ = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, MASTER_PORT=port)
        os.environ.update({k: str(v) for k, v in environ.items()})
        os.environ["MASTER_ADDR"] = "localhost"
    found = Seen()
    ATMSSLTask.main(cmd=[*command, *OPTIONS])
    torch.save((found.masks, found.speech), seen)


@pytest.fixture
def alike(tmp_path, ssl_command):
    """Makes the command of a training whose batches are all alike: the same audio."""
    audio = torch.randn(32000, generator=torch.Generator().manual_seed(0))
    soundfile.write(tmp_path / "x.wav", 0.1 * audio.numpy(), 16000)
    utts = [f"utt{number}" for number in range(8)]
    track = np.linspace(0.1, 0.9, 49, dtype=np.float32)[:, None]
    kaldiio.save_ark(
        str(tmp_path / "confidence.ark"),
        {utt: track for utt in utts},
        scp=str(tmp_path / "confidence.scp"),
    )
    (tmp_path / "frame_shift").write_text("640")
    (tmp_path / "wav.scp").write_text("".join(f"{x} {tmp_path}/x.wav\n" for x in utts))
    (tmp_path / "shape").write_text("".join(f"{x} 32000\n" for x in utts))

    def make(output: str, **more) -> list:
        conf = {"masker": "atm", "crop_seconds": 1}
        loss = [{"name": "wav2vec2", "conf": LOSSES["wav2vec2"]}]
        command = ssl_command(
            ("speech", "confidence"),
            **{"ssl_conf": conf, "loss": loss, "max_epoch": 2, "batch_size": 4, **more},
        )
        at = command.index("--token_list")
        del command[at : at + 4]
        own = ("wav.scp", "confidence.scp", "shape")
        command = [
            f"{tmp_path}/{Path(x).name}" if Path(x.split(",")[0]).name in own else x
            for x in command
        ]
        command[command.index("--output_dir") + 1] = str(tmp_path / output)
        return command

    return make


def run_all(processes, world, command, tmp_path) -> list:
    """What each process saw."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    files = [tmp_path / f"seen{rank}.pth" for rank in range(world)]
    started = [
        processes.Process(target=train, args=(rank, world, port, command, file))
        for rank, file in enumerate(files)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
    assert [x.exitcode for x in started] == [0] * world
    return [torch.load(file) for file in files]


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_draw_masks_and_crops_of_their_own(alike, processes, tmp_path, workers):
    """Though all of their batches are alike; and, in a second run, the same ones."""
    runs = []
    for name in ("first", "second")[: 1 if workers else 2]:  # reading processes are slow
        command = alike(name, num_workers=workers)
        runs.append(run_all(processes, 2, command, tmp_path))
        runs[-1].append(torch.load(tmp_path / name / "latest.pth", weights_only=True))
    (masks, speech), (other_masks, other_speech), _ = runs[0]
    assert len(masks) == len(other_masks) == 4  # two steps in each of two epochs
    for a, b in ((masks, other_masks), (speech, other_speech)):
        assert all(x.shape == y.shape for x, y in zip(a, b))
        assert not any(torch.equal(x, y) for x in a for y in b)
        drawn = [*a, *b]
        assert not any(
            torch.equal(x, y) for n, x in enumerate(drawn) for y in drawn[:n]
        )
    for run in runs[1:]:
        for first, second in zip(runs[0][:2], run[:2]):
            for a, b in zip(first, second):
                assert all(torch.equal(x, y) for x, y in zip(a, b))
        assert all(torch.equal(x, run[2][name]) for name, x in runs[0][2].items())


def test_one_process_gives_the_same_parameters_twice(alike, processes, tmp_path):
    weights = []
    for name in ("first", "second"):
        run_all(processes, 1, alike(name), tmp_path)
        weights.append(torch.load(tmp_path / name / "latest.pth", weights_only=True))
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())


def test_the_other_processes_are_seeded_each_its_own_way():
    """And what NumPy draws in reading processes is another process's own, too."""
    iterator = torch.utils.data.DataLoader(
        list(range(4)), worker_init_fn=functools.partial(worker_init_fn, base_seed=3)
    )
    seeds = set()
    for seed, epoch, rank in ((0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 1, 1), (2**32, 1, 1)):
        seed_process(seed, epoch, rank, iterator)
        own = iterator.worker_init_fn.keywords["base_seed"]
        assert iterator.worker_init_fn.func is worker_init_fn and 0 <= own < 2**31
        assert torch.initial_seed() == own
        seeds.add(own)
        iterator.worker_init_fn(1)
        first = np.random.rand()
        seed_process(seed, epoch, rank, iterator)
        iterator.worker_init_fn(1)
        assert np.random.rand() == first
    assert len(seeds) == 5


def ranks_of(pid: int) -> dict[int, int]:
    """The training processes that torchrun started, by rank."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        environ = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found.update({int(x[5:]): int(child) for x in environ if x.startswith(b"RANK=")})
    return found


MODULE = ["-m", "espnet_atm", "-m", "espnet2.bin.ssl_train"]


def wait_for(words: str, log: Path, processes) -> None:
    until = time.monotonic() + 300
    while words not in log.read_text():
        alive = all(x.poll() is None for x in processes)
        assert alive and time.monotonic() < until, log.read_text()
        time.sleep(0.2)


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("world, victim", [(2, 1), (4, 2)])
def test_a_killed_process_ends_torchruns_others(ssl_command, tmp_path, world, victim):
    command = ssl_command(ssl_conf={"masker": "atm"}, max_epoch=10**6, batch_size=5)
    log = tmp_path / "log"
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run += ["--nproc_per_node", str(world), *MODULE, *command, *OPTIONS]
    with log.open("w") as f:
        training = subprocess.Popen(run, cwd=ROOT, stderr=f, stdout=f)
    try:
        wait_for("2epoch results", log, [training])
        ranks = ranks_of(training.pid)
        assert sorted(ranks) == list(range(world))
        os.kill(ranks[victim], signal.SIGKILL)
        assert training.wait(120) != 0
    finally:
        training.terminate()
    assert not any(exists(pid) for pid in ranks.values())
    assert re.search(r"Signal 9 \(SIGKILL\)", log.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("world, victim", [(2, 0), (2, 1), (4, 2)])
def test_a_killed_process_ends_the_others_in_words(
    ssl_command, tmp_path, world, victim
):
    """Without a launcher that looks after them."""
    command = ssl_command(ssl_conf={"masker": "atm"}, max_epoch=10**6, batch_size=5)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    logs = [tmp_path / f"log{rank}" for rank in range(world)]
    started = []
    for rank, log in enumerate(logs):
        environ = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, MASTER_PORT=port)
        environ = {k: str(v) for k, v in environ.items()}
        environ = {**os.environ, **environ, "MASTER_ADDR": "localhost"}
        with log.open("w") as f:
            run = [sys.executable, *MODULE, *command, *OPTIONS]
            started.append(
                subprocess.Popen(run, cwd=ROOT, stderr=f, stdout=f, env=environ)
            )
    try:
        wait_for("2epoch results", logs[0], started)
        started[victim].kill()
        until = time.monotonic() + 120
        others = [x for rank, x in enumerate(started) if rank != victim]
        codes = [x.wait(max(until - time.monotonic(), 0)) for x in others]
    finally:
        for process in started:
            process.kill()
    assert all(codes)
    for rank, log in enumerate(logs):
        if rank != victim:
            *_, said = log.read_text().strip().splitlines()
            assert "another process of this training has died" in said, log.read_text()
            assert "Traceback" not in log.read_text()

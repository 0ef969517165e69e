import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ASR_CONFIG, CNN, ROOT
from espnet2.tasks.asr import ASRTask
from espnet2.tasks.ssl import SSLTask
from espnet2.train.trainer import Trainer

from espnet_atm.errors import UserError
from espnet_atm.task import ATMSSLTask
from espnet_atm.trainer import PARTIAL, ATMTrainer, read_state
from espnet_atm.transducer import ATMASRTask

EPOCHS = dict(
    max_epoch=3,
    keep_nbest_models=[1, 2],
    nbest_averaging_interval=2,
    best_model_criterion=[["valid", "loss", "min"], ["train", "loss", "min"]],
)
# As stock ESPnet trains it.
STOCK = dict(
    frontend="wav2vec_cnn",
    frontend_conf=CNN,
    preencoder="linear",
    preencoder_conf={"output_size": 16},
    collate_fn_conf={"label_downsampling": 2},
)
ATM = {"ssl_conf": {"masker": "atm"}}


def folder_of(command) -> Path:
    return Path(command[command.index("--output_dir") + 1])


def contents(folder: Path) -> dict:
    """What a run's folder holds: weights, where links lead, names of what else."""
    found = {}
    for file in folder.glob("*.pth*"):
        if file.is_symlink():
            found[file.name] = os.readlink(file)
        else:
            state = torch.load(file, weights_only=True)
            if file.name == "checkpoint.pth":
                state = {
                    **state["model"],
                    **{
                        f"{row}.{name}": value
                        for row, values in state["optimizers"][0]["state"].items()
                        for name, value in values.items()
                    },
                    "epoch": torch.tensor(state["reporter"]["epoch"]),
                }
            found[file.name] = state
    return found


def assert_same(folder: Path, expected: dict) -> None:
    got = contents(folder)
    assert got.keys() == expected.keys()
    for name, state in expected.items():
        if isinstance(state, str):
            assert got[name] == state, name
        else:
            assert got[name].keys() == state.keys(), name
            for key in state:
                assert torch.equal(got[name][key], state[key]), (name, key)


def train(command, kill_at=None, file_size=None, counter=None, log=None) -> None:
    """Train in a process of its own.

    Args:
        command: of ``ssl_train``.
        kill_at: which change of the files ``*.pth*`` (opened for writing, renamed,
            linked, removed) is not lived to see; counted from 0.
        file_size: bytes that a file may have, as on a disk that is full then.
        counter: gets the number of the changes.
        log: gets what is printed as an error.
    """
    if log is not None:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as for a command
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    seen = [0]

    def watch(event, args):
        if event not in ("open", "os.rename", "os.remove", "os.symlink"):
            return
        names = [x for x in args[:2] if isinstance(x, (str, Path))]
        if not any(".pth" in os.path.basename(x) for x in names):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if seen[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1
        if counter is not None:
            counter.value = seen[0]

    if kill_at is not None or counter is not None:
        sys.addaudithook(watch)
    ATMSSLTask.main(cmd=command)


@pytest.fixture(scope="module")
def processes():
    """Makes processes that need not import anything any more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["espnet_atm.task", "espnet_atm.transducer"])
    first = context.Process(target=time.time)  # waits for the imports
    first.start()
    first.join()
    return context


def finish(processes, *args, **kwargs) -> int:
    process = processes.Process(target=train, args=args, kwargs=kwargs)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture
def undisturbed(ssl_command, processes):
    """A command, what its run leaves, and how often its files change."""

    def make(**config):
        command = ssl_command(**{**ATM, **EPOCHS, **config})
        folder = folder_of(command)
        before = folder.with_name(f"{folder.name}.before")
        shutil.copytree(folder, before)
        counter = processes.Value("i", 0)
        assert finish(processes, command, counter=counter) == 0
        expected = contents(folder)

        def again() -> None:
            shutil.rmtree(folder)
            shutil.copytree(before, folder)

        again()
        return command, expected, counter.value, again

    return make


# ---------------------------------------------------------------- the same results


@pytest.mark.parametrize("workers", [0, 1])
def test_results_are_stock_espnets_to_the_bit(ssl_command, workers):
    config = {**EPOCHS, **STOCK, "num_workers": workers, "max_epoch": 4}
    stock = ssl_command(("speech", "text"), **config)
    SSLTask.main(cmd=stock)
    ours = ssl_command(("speech", "text"), **config)
    ATMSSLTask.main(cmd=ours)
    expected = contents(folder_of(stock))
    assert {"latest.pth", "valid.loss.ave_2best.pth"} < expected.keys()
    assert_same(folder_of(ours), expected)


@pytest.mark.parametrize("kept", [0, 1, 2, [], [2, 3], [5]])
def test_the_same_epochs_are_kept_and_averaged(ssl_command, kept):
    config = {**EPOCHS, **STOCK, "keep_nbest_models": kept, "max_epoch": 4}
    stock = ssl_command(("speech", "text"), **config)
    SSLTask.main(cmd=stock)
    ours = ssl_command(("speech", "text"), **config)
    ATMSSLTask.main(cmd=ours)
    assert_same(folder_of(ours), contents(folder_of(stock)))


@pytest.fixture
def asr_command(corpus, tmp_path):
    """Makes the arguments of ``asr_train`` for the corpus."""

    def make(name, **options) -> list[str]:
        config = {
            **{k: v for k, v in ASR_CONFIG.items() if k != "token_list"},
            **dict(batch_type="unsorted", batch_size=5, optim="adam", max_epoch=2),
            **dict(num_workers=0, use_tensorboard=False, use_matplotlib=False),
            **options,
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        tokens = ["<blank>", "<unk>", "a", "b", "<sos/eos>"]
        (tmp_path / "tokens.txt").write_text("\n".join(tokens) + "\n")
        (tmp_path / "text").write_text("".join(f"utt{n} a b a\n" for n in range(10)))
        command = ["--config", str(tmp_path / f"{name}.yaml"), "--token_type", "word"]
        command += ["--token_list", str(tmp_path / "tokens.txt")]
        command += ["--output_dir", str(tmp_path / name)]
        for mode in ("train", "valid"):
            command += [f"--{mode}_shape_file", str(corpus / "shape")]
            for data in (f"{corpus}/wav.scp,speech,sound", f"{tmp_path}/text,text,text"):
                command += [f"--{mode}_data_path_and_name_and_type", data]
        return command

    return make


def test_asr_training_is_stock_espnets_to_the_bit(asr_command):
    stock, ours = asr_command("stock"), asr_command("ours")
    ASRTask.main(cmd=stock)
    ATMASRTask.main(cmd=ours)
    assert_same(folder_of(ours), contents(folder_of(stock)))


def test_deepspeed_keeps_espnets_trainer(ssl_command, monkeypatch):
    monkeypatch.setattr(ATMSSLTask, "trainer", ATMTrainer)
    ATMSSLTask.main(cmd=[*ssl_command(**ATM), "--use_deepspeed", "true"])
    assert ATMSSLTask.trainer is Trainer


# ---------------------------------------------------------------- killed


def killed_at_each(processes, undisturbed, moments, **config):
    command, expected, changes, again = undisturbed(**config)
    for moment in moments(changes):
        again()
        assert finish(processes, command, kill_at=moment) == -signal.SIGKILL
        assert finish(processes, command) == 0
        assert_same(folder_of(command), expected)


def test_a_kill_between_any_two_changes_of_files_is_mended(processes, undisturbed):
    """Some of them, in the last epochs: before, between and after the renames."""
    killed_at_each(processes, undisturbed, lambda n: range(n // 3, n, n // 5))


@pytest.mark.slow
def test_a_kill_before_each_change_of_files_is_mended(processes, undisturbed):
    killed_at_each(processes, undisturbed, range)


LARGE = dict(
    preencoder_conf={"output_size": 128},
    encoder_conf=dict(
        output_size=128,
        attention_heads=2,
        linear_units=512,
        num_blocks=4,
        rel_pos_type="latest",
        macaron_style=True,
        input_layer=None,
    ),
)


def kill_while_writing(processes, command, name) -> bool:
    """SIGKILL while ``name`` is written; whether it was not yet whole."""
    partial = folder_of(command) / f"{name}{PARTIAL}"
    process = processes.Process(target=train, args=(command,))
    process.start()
    while process.is_alive():
        if partial.exists() and partial.stat().st_size > 0:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.join()
    return process.exitcode == -signal.SIGKILL and not zipfile.is_zipfile(partial)


def test_a_kill_while_a_checkpoint_is_written_is_mended(processes, undisturbed):
    command, expected, _, _ = undisturbed(**LARGE, max_epoch=2)
    assert kill_while_writing(processes, command, "checkpoint.pth")
    assert not (folder_of(command) / "checkpoint.pth").exists()
    assert finish(processes, command) == 0
    assert_same(folder_of(command), expected)


@pytest.mark.slow
def test_twenty_kills_change_nothing(processes, undisturbed):
    """Five while a checkpoint is written, the others at any moment."""
    command, expected, _, again = undisturbed(**LARGE, max_epoch=4, num_workers=1)
    again()
    start = time.perf_counter()
    assert finish(processes, command) == 0
    duration = time.perf_counter() - start
    rng = random.Random(0)
    while_writing = sum(
        (again(), kill_while_writing(processes, command, "checkpoint.pth"))[1]
        and finish(processes, command) == 0
        and assert_same(folder_of(command), expected) is None
        for _ in range(5)
    )
    assert while_writing == 5
    kills = 0
    again()
    while kills < 15:
        process = processes.Process(target=train, args=(command,))
        process.start()
        process.join(rng.uniform(0.3, 0.9) * duration)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if process.exitcode == 0:  # several kills on the way to the end, then anew
            assert_same(folder_of(command), expected)
            again()
        else:
            assert process.exitcode == -signal.SIGKILL
    assert finish(processes, command) == 0
    assert_same(folder_of(command), expected)


def test_what_killed_runs_left_is_removed(ssl_command):
    command = ssl_command(**ATM)
    left = folder_of(command) / f"3epoch.pth{PARTIAL}"
    left.write_bytes(b"x")
    ATMSSLTask.main(cmd=command)
    assert not left.exists()


# ---------------------------------------------------------------- folders of stock ESPnet


@pytest.fixture
def stocks_folder(ssl_command):
    """A command whose first two epochs stock ESPnet has trained, and the whole run."""
    config = {**EPOCHS, **STOCK, "max_epoch": 2, "nbest_averaging_interval": 0}
    whole = ssl_command(("speech", "text"), **config)
    SSLTask.main(cmd=whole)
    command = ssl_command(("speech", "text"), **config)
    SSLTask.main(cmd=[*command, "--max_epoch", "1"])
    first = folder_of(command).with_name("first")
    shutil.copytree(folder_of(command), first, symlinks=True)
    SSLTask.main(cmd=command)
    return command, first, contents(folder_of(whole))


@pytest.mark.parametrize("left", [None, b"", b"PK\x03\x04" + bytes(500)])
def test_a_checkpoint_ahead_of_its_weights_is_mended(stocks_folder, left):
    """Stock ESPnet, killed after its checkpoint: all other files are of epoch 1."""
    command, first, expected = stocks_folder
    folder = folder_of(command)
    checkpoint = (folder / "checkpoint.pth").read_bytes()
    shutil.rmtree(folder)
    shutil.copytree(first, folder, symlinks=True)
    (folder / "checkpoint.pth").write_bytes(checkpoint)
    if left is not None:
        (folder / "2epoch.pth").write_bytes(left)
    ATMSSLTask.main(cmd=command)
    assert os.readlink(folder / "latest.pth") == "2epoch.pth"
    assert_same(folder, expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: b"",
        lambda x: x[:1],
        lambda x: x[: len(x) // 2],
        lambda x: x[:-1],
        lambda x: bytes(len(x)),
        lambda x: x[: len(x) // 2] + bytes(len(x) - len(x) // 2),
        lambda x: x[: len(x) // 2] + bytes([x[len(x) // 2] ^ 1]) + x[len(x) // 2 + 1 :],
        lambda x: b"\x80\x02}q\x00.",
    ],
    ids="empty byte half one_less zeros half_zeros bit pickle".split(),
)
def test_a_damaged_checkpoint_is_refused_by_name(ssl_command, damage):
    command = ssl_command(**ATM)
    ATMSSLTask.main(cmd=command)
    file = folder_of(command) / "checkpoint.pth"
    file.write_bytes(damage(file.read_bytes()))
    before = file.read_bytes()
    with pytest.raises(UserError, match="checkpoint.pth: is damaged .* remove it") as e:
        ATMSSLTask.main(cmd=[*command, "--max_epoch", "2", "--resume", "true"])
    assert "unsafe" not in str(e.value).lower() and "\n" not in str(e.value)
    assert file.read_bytes() == before


def test_another_files_contents_are_no_checkpoint(ssl_command):
    command = ssl_command(**ATM)
    ATMSSLTask.main(cmd=command)
    folder = folder_of(command)
    shutil.copy(folder / "1epoch.pth", folder / "checkpoint.pth")
    with pytest.raises(UserError, match="checkpoint.pth: does not hold the trainer's"):
        ATMSSLTask.main(cmd=[*command, "--resume", "true"])


def test_a_folder_in_place_of_the_checkpoint(tmp_path):
    (tmp_path / "checkpoint.pth").mkdir()
    with pytest.raises(IsADirectoryError):
        read_state(tmp_path / "checkpoint.pth", "cpu")


@pytest.mark.parametrize(
    "option", [("--optim", "sgd"), ("--encoder_conf", "num_blocks=3")]
)
def test_a_checkpoint_of_another_model_is_refused_by_name(ssl_command, option):
    command = ssl_command(**ATM)
    ATMSSLTask.main(cmd=command)
    with pytest.raises(UserError, match="checkpoint.pth: is of a run with another model"):
        ATMSSLTask.main(cmd=[*command, *option, "--max_epoch", "2", "--resume", "true"])


@pytest.mark.parametrize("before, after", [("null", "true"), ("true", "null")])
def test_a_resumed_run_makes_its_updates_as_it_is_told_now(ssl_command, before, after):
    """Another kernel than that of the checkpoint gives the same, to rounding."""
    command = ssl_command(**ATM)

    def train(epochs, fused, resume) -> dict:
        more = ["--max_epoch", str(epochs), "--resume", resume]
        ATMSSLTask.main(cmd=[*command, *more, "--optim_conf", f"fused={fused}"])
        return torch.load(folder_of(command) / "checkpoint.pth", weights_only=True)

    expected = train(2, before, "false")
    train(1, before, "false")
    found = train(2, after, "true")
    (group,) = found["optimizers"][0]["param_groups"]
    assert group["fused"] is yaml.safe_load(after)
    losses = [x["reporter"]["stats"][2]["valid"]["loss"] for x in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_without_resume_training_begins_anew(ssl_command):
    command = ssl_command(**ATM, **EPOCHS)
    ATMSSLTask.main(cmd=command)
    expected = contents(folder_of(command))
    (folder_of(command) / "checkpoint.pth").write_bytes(b"")
    ATMSSLTask.main(cmd=[*command, "--resume", "false"])
    assert_same(folder_of(command), expected)


# ---------------------------------------------------------------- disks


def test_a_full_disk_is_named_and_the_next_run_goes_on(
    processes, undisturbed, tmp_path
):
    command, expected, _, _ = undisturbed(**LARGE, max_epoch=2)
    log = tmp_path / "log"
    assert finish(processes, command, file_size=2**20, log=str(log)) == 1
    *_, said = log.read_text().strip().splitlines()
    file = folder_of(command) / "checkpoint.pth"
    assert f"error: {file}: cannot be written: File too large (disk of" in said
    assert not list(folder_of(command).glob("*.pth*"))
    assert finish(processes, command) == 0
    assert_same(folder_of(command), expected)


MOUNTED = """
mount -t tmpfs -o size=2m tmpfs {folder} && cp {config} {folder}/train.yaml
cd {root} && exec {python} -m espnet_atm -m espnet2.bin.ssl_train {command}
"""


def can_mount() -> bool:
    return (
        subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
            capture_output=True,
        ).returncode
        == 0
    )


@pytest.mark.skipif(not can_mount(), reason="needs leave to mount a small disk")
def test_a_disk_that_is_really_full(ssl_command, tmp_path):
    command = ssl_command(**ATM, **LARGE)
    folder = folder_of(command)
    shutil.copy(folder / "train.yaml", tmp_path / "saved.yaml")
    script = MOUNTED.format(
        folder=folder,
        config=tmp_path / "saved.yaml",
        root=ROOT,
        python=sys.executable,
        command=" ".join(command),
    )
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 1
    *_, said = done.stderr.strip().splitlines()
    assert f"error: {folder}/checkpoint.pth: cannot be written: No space left" in said
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- nothing learnt


def test_an_epoch_without_finite_gradients_is_not_saved(ssl_command):
    """Sums of hundredth roots, to the power of a hundred: all norms are infinite."""
    command = ssl_command(**ATM, grad_clip_type=0.01, max_epoch=3)
    with pytest.raises(UserError, match="epoch 1, train: no step had finite gradients"):
        ATMSSLTask.main(cmd=command)
    assert not list(folder_of(command).glob("*.pth*"))


def test_an_epoch_without_an_update_is_refused(ssl_command):
    command = ssl_command(**ATM, accum_grad=3)
    with pytest.raises(UserError, match="2 batches, and accum_grad: 3, so no update"):
        ATMSSLTask.main(cmd=command)


def test_a_validation_that_is_lost_is_refused(ssl_command):
    command = ssl_command(**ATM, optim_conf={"lr": 1e30}, batch_size=10, max_epoch=3)
    with pytest.raises(UserError, match="epoch 1, valid: the loss of all"):
        ATMSSLTask.main(cmd=command)


# ---------------------------------------------------------------- for long


def used(pid: int) -> tuple[float, int, int]:
    """MiB of memory, open files and reading processes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return pages * resource.getpagesize() / 2**20, files, len(children)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_open_files_are_flat_for_2000_steps(
    ssl_command, processes, tmp_path, workers
):
    command = ssl_command(
        **ATM, batch_size=2, num_iters_per_epoch=400, max_epoch=5, num_workers=workers
    )
    log = tmp_path / "log"
    process = processes.Process(target=train, args=(command,), kwargs={"log": str(log)})
    process.start()
    most = {}  # of each epoch
    while process.is_alive():
        epoch = log.read_text().count("epoch results") if log.exists() else 0
        try:
            now = used(process.pid)
        except OSError:
            break
        most[epoch] = tuple(map(max, zip(now, most.get(epoch, now))))
        time.sleep(0.1)
    process.join()
    assert process.exitcode == 0
    print(most)
    (memory, files, children), (first_memory, first_files, _) = most[4], most[1]
    assert memory < first_memory + 8
    # Batches on their way between processes; of a leak there would be hundreds.
    assert files <= first_files + 10
    assert children <= 2 * workers  # of training and, next to them, of validation

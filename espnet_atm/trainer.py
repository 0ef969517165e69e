"""ESPnet's trainer, whose files are whole whatever ends it."""

import argparse
import contextlib
import functools
import logging
import multiprocessing
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.schedulers.abs_scheduler import AbsScheduler
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.abs_espnet_model import AbsESPnetModel
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter, SubReporter
from espnet2.train.trainer import Trainer, TrainerOptions
from torch.amp import GradScaler
from typeguard import typechecked

from espnet_atm import sharing
from espnet_atm.errors import FULL_DISK, UserError, one_line_errors
from espnet_atm.health import check_epoch
from espnet_atm.weights import check_init_param

CHECKPOINT = "checkpoint.pth"
PARTIAL = ".partial"  # ends the name of a file that is being written
STATE = ("model", "reporter", "optimizers", "schedulers", "scaler")

# More epochs than anyone trains: as one more of keep_nbest_models it keeps every epoch's
# weights, and changes no average, because ESPnet averages no more epochs than there are.
ALL_EPOCHS = 10**9


class _Watched:
    """A file for ``torch.save``, which forgets what the system said of a write."""

    def __init__(self, file):
        self.file = file
        self.error = None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as e:
            self.error = e
            raise

    def flush(self) -> None:
        self.file.flush()


def full_disk(file: Union[str, Path], error: OSError) -> UserError:
    """What to say when there is no room for ``file``."""
    folder = Path(file).parent
    try:
        free = f", {shutil.disk_usage(folder).free / 2**20:.1f} MiB free"
    except OSError:
        free = ""
    return UserError(
        f"{file}: cannot be written: {error.strerror} (disk of {folder.resolve()}"
        f"{free}); make room and start the same command again: it goes on from the last "
        "whole checkpoint"
    )


@contextlib.contextmanager
def naming_full_disk(file: Union[str, Path]) -> Iterator[None]:
    """Name what was written when the system only says that there is no room."""
    try:
        yield
    except OSError as e:
        if e.errno not in FULL_DISK:
            raise
        raise full_disk(e.filename or file, e) from None


def _sync(folder: Path) -> None:
    """Have a folder's entries on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(link: Path, name: str) -> None:
    """Have ``link`` lead to ``name``, in one step."""
    if link.is_symlink() and os.readlink(link) == name:
        return
    partial = link.with_name(link.name + PARTIAL)
    partial.unlink(missing_ok=True)
    partial.symlink_to(name)
    os.replace(partial, link)


class RunFiles:
    """The files of a training run, each of them whole at any moment.

    What ``torch.save`` writes goes beside its file and is renamed. ``checkpoint.pth``
    is renamed last, by :meth:`commit`, when the weights of its epoch and the links to
    them are there, and weights that are no longer wanted go after that. So whatever
    the moment of a kill, the checkpoint that is there finds all the files of its
    epoch, and what was written after it is written again, to the bit.

    Args:
        folder: of the run.
        options: the trainer's; every epoch's weights are kept until :meth:`commit`.
        writes: whether this is the process that writes.
    """

    def __init__(self, folder: Path, options: TrainerOptions, writes: bool):
        self.folder = folder
        self.criteria = options.best_model_criterion
        nbest = options.keep_nbest_models
        nbest = [nbest] if isinstance(nbest, int) else list(nbest) or [1]
        self.kept = max(nbest)
        options.keep_nbest_models = [*nbest, ALL_EPOCHS]
        self.writes = writes
        self.reporter: Optional[Reporter] = None  # as in the checkpoint
        self.held: Optional[Path] = None  # a checkpoint that is not yet published

    def remove_partial(self) -> None:
        """Remove what killed runs were writing."""
        if self.writes and self.folder.is_dir():
            for file in self.folder.glob(f"*.pth{PARTIAL}"):
                logging.info(f"Removing {file}, which a killed run left behind")
                file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Have ``torch.save`` write this folder's files as the class says."""
        stock = torch.save

        def save(obj, f, *args, **kwargs):
            if not isinstance(f, (str, Path)) or Path(f).parent != self.folder:
                return stock(obj, f, *args, **kwargs)
            file = Path(f)
            partial = file.with_name(file.name + PARTIAL)
            watched = None
            try:
                with open(partial, "wb") as opened:
                    watched = _Watched(opened)
                    stock(obj, watched, *args, **kwargs)
                    opened.flush()
                    os.fsync(opened.fileno())
            except (OSError, RuntimeError) as e:
                said = watched.error if watched and watched.error else e
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                if not isinstance(said, OSError):
                    raise
                raise full_disk(file, said) from None
            if file.name == CHECKPOINT:
                self.held = partial
                self.reporter = Reporter()
                self.reporter.load_state_dict(obj["reporter"])
            else:
                os.replace(partial, file)

        torch.save = save
        try:
            yield
        finally:
            torch.save = stock

    def commit(self) -> None:
        """Publish the checkpoint of the epoch that is over, if one was written."""
        if self.held is None:
            return
        _sync(self.folder)
        os.replace(self.held, self.folder / CHECKPOINT)
        _sync(self.folder)
        self.held = None
        self.remove_epochs()

    def remove_epochs(self) -> None:
        """Remove the weights of all epochs but the n best and the last, as ESPnet does."""
        reporter = self.reporter
        wanted = {reporter.get_epoch()}
        for phase, key, mode in self.criteria:
            if reporter.has(phase, key):
                wanted.update(reporter.sort_epochs(phase, key, mode)[: self.kept])
        removed = []
        for epoch in range(1, reporter.get_epoch()):
            file = self.folder / f"{epoch}epoch.pth"
            if epoch not in wanted and file.exists():
                file.unlink()
                removed.append(str(file))
        if removed:
            logging.info("The model files were removed: " + ", ".join(removed))

    def mend(self, weights: Dict[str, torch.Tensor], reporter: Reporter) -> None:
        """Have the weights of the checkpoint's epoch, the links to them, and no others.

        Stock ESPnet writes its checkpoint first.

        Args:
            weights: in the checkpoint.
            reporter: as in the checkpoint.
        """
        name = f"{reporter.get_epoch()}epoch.pth"
        file = self.folder / name
        if not zipfile.is_zipfile(file):  # missing, or cut off
            logging.warning(
                f"{file}: is not there or not whole; written from {CHECKPOINT}"
            )
            with self.saving():
                torch.save(weights, file)
        _link(self.folder / "latest.pth", name)
        for phase, key, mode in self.criteria:
            if reporter.has(phase, key):
                best = f"{reporter.get_best_epoch(phase, key, mode)}epoch.pth"
                if (self.folder / best).is_file():
                    _link(self.folder / f"{phase}.{key}.best.pth", best)
        self.reporter = reporter
        self.remove_epochs()


def read_state(checkpoint: Union[str, Path], map_location: str) -> dict:
    """The trainer's state.

    Raises:
        UserError: naming the file, when it is damaged or holds something else.
        OSError: when it cannot be opened.
    """
    with open(checkpoint, "rb"):
        pass  # a folder is told as one
    unsafe = os.environ.get("ESPNET_ALLOW_UNSAFE_TORCH_LOAD") == "1"
    try:
        with zipfile.ZipFile(checkpoint) as f:
            bad = f.testzip()  # torch does not look at the check sums
        if bad is not None:
            raise zipfile.BadZipFile(f"check sum of {bad}")
        if unsafe:
            states = safe_torch_load(checkpoint, map_location=map_location)
        else:
            states = torch.load(checkpoint, map_location, weights_only=True)
    except torch.cuda.OutOfMemoryError:
        raise
    except (
        *(zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError),
        *(ValueError, TypeError, KeyError, AttributeError, IndexError),
    ) as e:
        folder = Path(checkpoint).parent
        raise UserError(
            f"{checkpoint}: is damaged ({_first_line(e)}): put a whole copy in its place, "
            "or remove it to train from the first epoch (--init_param "
            f"{folder}/latest.pth then begins with the weights of the last epoch, if "
            "they are whole)"
        ) from None
    if not isinstance(states, dict) or not states.keys() >= set(STATE):
        raise UserError(
            f"{checkpoint}: does not hold the trainer's state ({', '.join(STATE)}): it is "
            "not the checkpoint.pth that ESPnet's training writes; remove it to train "
            "from the first epoch"
        )
    return states


def _check_options(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Refuse the state of another kind of optimizer, which torch would take."""
    kinds = [set(x[0]) for x in (optimizer.param_groups, state["param_groups"])]
    differ = [kinds[0] - kinds[1] - {"initial_lr"}, kinds[1] - kinds[0] - {"initial_lr"}]
    if all(differ):  # one alone may come from another release of torch
        raise ValueError(
            f"options {', '.join(sorted(differ[1]))} instead of "
            f"{', '.join(sorted(differ[0]))}"
        )


def _keep_kernels(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Have a saved state updated as this optimizer is told to, not as the saved one was.

    A scaler of gradients trusts what the optimizer was told, torch what is saved.
    """
    for group, saved in zip(optimizer.param_groups, state["param_groups"]):
        saved.update({k: group[k] for k in ("foreach", "fused") if k in group})


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def draws_masks(model: torch.nn.Module) -> bool:
    """Whether it is ours, with ``ssl_conf``; else ESPnet is to behave as stock."""
    from espnet_atm.model import ATMSSLModel  # not for other tasks' trainings

    return isinstance(getattr(model, "module", model), ATMSSLModel)


def seed_process(seed: int, epoch: int, rank: int, iterator: Iterable) -> None:
    """Let a process that is not the first draw other numbers than the others.

    ESPnet seeds all alike at each epoch, and where their batches have one shape they
    would draw the same masks, crops, negatives and noise. The first process keeps
    ESPnet's seed, so that one alone trains as ever.

    Args:
        seed: of the run.
        epoch: from 1 on.
        rank: from 1 on.
        iterator: of the epoch's batches; the processes that a ``DataLoader`` begins
            for it are seeded alike.
    """
    # 31 bits, so that NumPy takes it with the number of a reading process added.
    own = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]) >> 1
    set_all_random_seed(own)
    begin = getattr(iterator, "worker_init_fn", None)
    if isinstance(begin, functools.partial) and "base_seed" in begin.keywords:
        iterator.worker_init_fn = functools.partial(begin.func, base_seed=own)


class ATMTrainer(Trainer):
    """ESPnet's trainer with the same results, and files that a kill leaves whole.

    In addition, an epoch that taught nothing is refused (:func:`check_epoch`) before
    it is saved, and of several processes each draws its own masks
    (:func:`seed_process`).
    """

    files: Optional[RunFiles] = None  # of the run that goes on in this process

    @classmethod
    @typechecked
    def run(
        cls,
        model: AbsESPnetModel,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Optional[AbsScheduler]],
        train_iter_factory: AbsIterFactory,
        valid_iter_factory: AbsIterFactory,
        plot_attention_iter_factory: Optional[AbsIterFactory],
        trainer_options,
        distributed_option: DistributedOption,
    ) -> None:
        """Train; arguments as in ESPnet's."""
        folder = Path(trainer_options.output_dir)
        writes = (
            not distributed_option.distributed or distributed_option.dist_rank == 0
        )
        files = cls.files = RunFiles(folder, trainer_options, writes)
        try:
            files.remove_partial()
            with files.saving(), naming_full_disk(folder):
                super().run(
                    model=model,
                    optimizers=optimizers,
                    schedulers=schedulers,
                    train_iter_factory=train_iter_factory,
                    valid_iter_factory=valid_iter_factory,
                    plot_attention_iter_factory=plot_attention_iter_factory,
                    trainer_options=trainer_options,
                    distributed_option=distributed_option,
                )
                files.commit()
        finally:
            cls.files = None

    @classmethod
    def resume(
        cls,
        checkpoint: Union[str, Path],
        model: torch.nn.Module,
        reporter: Reporter,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Optional[AbsScheduler]],
        scaler: Optional[GradScaler],
        ngpu: int = 0,
        strict: bool = True,
    ):
        """Go on from a checkpoint; arguments as in ESPnet's.

        Raises:
            UserError: naming the checkpoint, when it is damaged or of another model.
        """
        states = read_state(
            checkpoint, f"cuda:{torch.cuda.current_device()}" if ngpu > 0 else "cpu"
        )
        try:
            model.load_state_dict(states["model"], strict=strict)
            reporter.load_state_dict(states["reporter"])
            for optimizer, state in zip(optimizers, states["optimizers"]):
                _check_options(optimizer, state)
                _keep_kernels(optimizer, state)
                optimizer.load_state_dict(state)
            for scheduler, state in zip(schedulers, states["schedulers"]):
                if scheduler is not None:
                    scheduler.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(
                f"{checkpoint}: is of a run with another model or optimizer "
                f"({' '.join(str(e).split())[:300]}): give the options of that run, or "
                "another --output_dir"
            ) from None
        if scaler is not None:
            if states["scaler"] is None:
                logging.warning("scaler state is not found")
            else:
                scaler.load_state_dict(states["scaler"])
        if cls.files is not None and cls.files.writes:
            cls.files.mend(states["model"], reporter)
        logging.info(f"The training was resumed using {checkpoint}")

    @classmethod
    @typechecked
    def train_one_epoch(
        cls,
        model: torch.nn.Module,
        iterator: Iterable[Tuple[List[str], Dict[str, torch.Tensor]]],
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Optional[AbsScheduler]],
        scaler: Optional[GradScaler],
        reporter: SubReporter,
        summary_writer,
        options: TrainerOptions,
        distributed_option: DistributedOption,
    ) -> bool:
        """Train; arguments as in ESPnet's.

        Raises:
            UserError: when nothing was learnt; the checkpoint of the epoch before stays.
        """
        if cls.files is not None:
            cls.files.commit()
        rank = distributed_option.dist_rank if distributed_option.distributed else 0
        if rank and draws_masks(model):
            seed_process(options.seed, reporter.get_epoch(), rank, iterator)
        all_invalid = super().train_one_epoch(
            model=model,
            iterator=iterator,
            optimizers=optimizers,
            schedulers=schedulers,
            scaler=scaler,
            reporter=reporter,
            summary_writer=summary_writer,
            options=options,
            distributed_option=distributed_option,
        )
        if all_invalid and reporter.count < options.accum_grad:
            raise UserError(
                f"epoch {reporter.get_epoch()}, train: {reporter.count} batches, and "
                f"accum_grad: {options.accum_grad}, so no update was made; lower "
                "accum_grad or the size of batches, or give more data"
            )
        check_epoch(reporter, all_invalid)
        return all_invalid

    @classmethod
    @torch.no_grad()
    @typechecked
    def validate_one_epoch(
        cls,
        model: torch.nn.Module,
        iterator: Iterable[Dict[str, torch.Tensor]],
        reporter: SubReporter,
        options: TrainerOptions,
        distributed_option: DistributedOption,
    ) -> None:
        """Validate; arguments as in ESPnet's.

        Raises:
            UserError: when the losses of all batches are 0 or not finite.
        """
        super().validate_one_epoch(
            model=model,
            iterator=iterator,
            reporter=reporter,
            options=options,
            distributed_option=distributed_option,
        )
        check_epoch(reporter)


class WholeFiles:
    """A mix-in for ESPnet's tasks: train with :class:`ATMTrainer`, end in words.

    DeepSpeed has a trainer and checkpoints of its own, and takes no other: with
    ``--use_deepspeed`` ESPnet's trainer is left as it is, and so are its faults.
    """

    trainer = ATMTrainer

    @classmethod
    def check_args(cls, args: argparse.Namespace) -> None:
        """Refuse what cannot train, before anything is built or written."""

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> List[torch.optim.Optimizer]:
        """ESPnet's; there is a model here, and ``init_param`` is not loaded yet."""
        if not args.collect_stats and not args.dry_run:
            check_init_param(model, args.init_param, args.ignore_init_mismatch)
        return super().build_optimizers(args, model)

    @classmethod
    @typechecked
    def main_worker(cls, args: argparse.Namespace):
        """Train in this process, which may be one of several."""
        if args.use_deepspeed:
            cls.trainer = Trainer
        sharing.install()
        with contextlib.ExitStack() as stack:
            if multiprocessing.parent_process() is not None:
                # ESPnet has started it, and would print its traceback.
                stack.enter_context(one_line_errors(f"{cls.__name__}"))
            stack.enter_context(naming_full_disk(args.output_dir))
            handlers = list(logging.root.handlers)
            cls.check_args(args)
            # A warning has set up the log, where ESPnet's own set-up would do nothing.
            logging.root.handlers[:] = handlers
            super().main_worker(args)
        # ESPnet leaves it open, and one in ten runs on CPUs then aborts at its exit.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

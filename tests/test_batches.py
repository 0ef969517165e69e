import pickle

import numpy as np
import pytest
import torch
from espnet2.samplers.num_elements_batch_sampler import NumElementsBatchSampler
from espnet2.train.distributed_utils import DistributedOption
from test_task import arguments

from espnet_atm.batches import Batch, numel_batches
from espnet_atm.errors import UserError
from espnet_atm.task import ATMSSLTask


def write(file, lengths) -> str:
    lines = (f"utt{number:05} {length}\n" for number, length in enumerate(lengths))
    file.write_text("".join(lines))
    return str(file)


@pytest.mark.parametrize("seed", range(40))
def test_they_are_espnets(tmp_path, seed):
    rng = np.random.default_rng(seed)
    count = int(rng.choice([1, 2, 7, 100, 3000]))
    longest = int(rng.choice([1, 3, 50, 100_000]))
    file = write(tmp_path / "shape", rng.integers(1, longest + 1, count))
    options = dict(
        batch_bins=int(rng.choice([1, 10, 1000, 10**6, 10**9])),
        min_batch_size=int(rng.choice([1, 2, 8])),
        sort_in_batch=str(rng.choice(["ascending", "descending"])),
        sort_batch=str(rng.choice(["ascending", "descending"])),
        drop_last=bool(rng.integers(2)),
    )
    expected = list(NumElementsBatchSampler(shape_files=[file], **options))
    found = numel_batches(file, **options)
    assert [tuple(x) for x in found] == expected
    for ours, theirs in zip(found, expected):
        assert len(ours) == len(theirs)
        assert tuple(ours[1::3]) == theirs[1::3]  # as ranks share a batch
        assert pickle.loads(pickle.dumps(ours)) == theirs


def test_shapes_of_features_are_espnets_business(tmp_path):
    (tmp_path / "shape").write_text("a 100,80\nb 90,80\n")
    assert numel_batches(str(tmp_path / "shape"), 1000) is None


def test_bad_lines(tmp_path):
    (tmp_path / "shape").write_text("a 100\na 90\n")
    with pytest.raises(UserError, match="shape:2: a is in line 1 already"):
        numel_batches(str(tmp_path / "shape"), 1000)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sort_in_batch": "ascending", "sort_batch": "descending"},
        {"num_iters_per_epoch": 2},
        {"shuffle_within_batch": True},
    ],
)
def test_training_takes_espnets_batches(ssl_command, monkeypatch, workers, options):
    """In its order, epoch by epoch."""
    config = {"batch_type": "numel", "batch_bins": 50_000, "num_workers": workers}
    args = arguments(ssl_command(ssl_conf={"masker": "atm"}, **config, **options))

    def epochs() -> list:
        found = []
        for mode in ("train", "valid"):
            factory = ATMSSLTask.build_iter_factory(args, DistributedOption(), mode)
            kinds = {type(x) for x in factory.sampler.batches}
            for epoch in (1, 2, 5):
                found.append([utts for utts, _ in factory.build_iter(epoch)])
        return found, kinds

    ours, kinds = epochs()
    assert kinds == {Batch} and sum(map(len, ours[-1])) == 10
    monkeypatch.setattr("espnet_atm.task.numel_batches", lambda *args: None)
    theirs, kinds = epochs()
    assert kinds == {tuple} and ours == theirs


def test_ranks_share_each_batch(ssl_command, monkeypatch):
    config = {"batch_type": "numel", "batch_bins": 80_000}
    args = arguments(ssl_command(ssl_conf={"masker": "atm"}, **config))
    option = DistributedOption()
    option.distributed = True
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        factory = ATMSSLTask.build_iter_factory(args, option, "train")
        shares.append([list(x) for x in factory.sampler.batches])
    assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(*shares))
    assert sorted(utt for x in shares for batch in x for utt in batch) == [
        f"utt{x}" for x in range(10)
    ]
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 20)
    with pytest.raises(UserError, match="a batch has 10 utterances, fewer than the 20"):
        ATMSSLTask.build_iter_factory(args, option, "train")

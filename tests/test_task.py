import argparse
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CNN, LOSSES, ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from espnet_atm.frames import FrameGrid
from espnet_atm.model import ATMSSLModel
from espnet_atm.task import ATMSSLTask, encoder_grid

ATM = {"masker": "atm"}
# ESPnet's own options, with labels as its collate function wants them.
WAV2VEC = dict(
    frontend="wav2vec_cnn",
    frontend_conf=CNN,
    preencoder="linear",
    preencoder_conf={"output_size": 16},
    collate_fn_conf={"label_downsampling": 2},
)


def arguments(command) -> argparse.Namespace:
    return ATMSSLTask.get_parser().parse_args(command)


def trained(command) -> dict:
    """Train and return the parameters."""
    ATMSSLTask.main(cmd=command)
    return checkpoint(command)


def checkpoint(command) -> dict:
    folder = Path(command[command.index("--output_dir") + 1])
    return torch.load(folder / "1epoch.pth", weights_only=True)


@pytest.mark.parametrize("path, shift", [({}, 640), (WAV2VEC, 320)])
def test_encoder_grid_of_a_config(ssl_command, path, shift):
    grid = encoder_grid(arguments(ssl_command(**path)))
    assert grid == FrameGrid(shift, 479.5 if shift == 640 else 199.5, grid.layers)


@pytest.mark.parametrize("path", [{}, WAV2VEC], ids=["conv2d", "wav2vec_cnn"])
@pytest.mark.parametrize(
    "ssl_conf",
    [
        ATM,
        {
            "masker": "atm",
            "masker_conf": {"strategy": "mixed"},
            "loss_scale": "utterance",
        },
        {
            "masker": "random",
            "loss_scale": "frame",
            "loss_scale_conf": {"frame_prob": 0.5},
        },
    ],
    ids=["atm", "atm+s", "frame"],
)
def test_trains_with_confidence(ssl_command, ssl_conf, path):
    command = ssl_command(ssl_conf=ssl_conf, **path)
    before = ATMSSLTask.build_model(arguments(command)).state_dict()
    after = trained(command)
    assert set(before) == set(after)
    moved = [k for k in after if not torch.equal(before[k], after[k])]
    assert any(k.startswith("encoder") for k in moved)
    assert "util_modules.mask.mask_embedding" in moved
    # The run's config names the settings, and builds the same model again.
    folder = Path(command[command.index("--output_dir") + 1])
    model, _ = ATMSSLTask.build_model_from_file(
        folder / "config.yaml", folder / "1epoch.pth"
    )
    assert isinstance(model, ATMSSLModel)


def without(command: list, option: str) -> list:
    """The command less an option and its value."""
    at = command.index(option)
    return command[:at] + command[at + 2 :]


@pytest.mark.parametrize("name", LOSSES)
def test_other_losses_need_no_labels_and_no_token_list(ssl_command, name):
    command = without(
        ssl_command(
            streams=("speech", "confidence"),
            loss=[{"name": name, "conf": LOSSES[name]}],
            ssl_conf={"masker": "atm", "loss_scale": "utterance"},
        ),
        "--token_list",
    )
    moved = trained(command)
    assert any(k.startswith("losses.0.") for k in moved)
    folder = Path(command[command.index("--output_dir") + 1])
    model, _ = ATMSSLTask.build_model_from_file(
        folder / "config.yaml", folder / "1epoch.pth"
    )
    assert isinstance(model, ATMSSLModel)


def test_the_health_of_the_training_is_in_tensorboard(ssl_command):
    conf = dict(
        loss=[{"name": "w2v_bert", "conf": LOSSES["w2v_bert"]}],
        ssl_conf={"masker": "atm", "loss_scale": "utterance"},
        use_tensorboard=True,
    )
    command = without(ssl_command(("speech", "confidence"), **conf), "--token_list")
    trained(command)
    folder = Path(command[command.index("--output_dir") + 1]) / "tensorboard"
    expected = {f"w2v_bert_{x}" for x in ("acc_m", "acc_contrastive", "codes_used")}
    expected |= {"w2v_bert_code_perplexity", "w2v_bert_gumbel_temperature", "weight"}
    expected |= {"loss", "mask_ratio", "confidence_masked", "confidence_unmasked"}
    for mode in ("train", "valid"):
        found = EventAccumulator(str(folder / mode)).Reload()
        assert expected <= set(found.Tags()["scalars"])
        assert found.Scalars("mask_ratio")[-1].value >= 0.40


def test_ssl_sh_without_a_token_list(ssl_command):
    """It passes an empty one on."""
    conf = dict(loss=[{"name": "best_rq", "conf": LOSSES["best_rq"]}], ssl_conf=ATM)
    command = without(ssl_command(("speech", "confidence"), **conf), "--token_list")
    trained(command + ["--token_list", ""])


def test_updates_go_on_counting_after_a_restart(ssl_command):
    conf = dict(loss=[{"name": "wav2vec2", "conf": LOSSES["wav2vec2"]}], ssl_conf=ATM)
    command = without(ssl_command(("speech", "confidence"), **conf), "--token_list")
    before = trained(command)["global_step"]
    ATMSSLTask.main(cmd=command + ["--max_epoch", "2", "--resume", "true"])
    folder = Path(command[command.index("--output_dir") + 1])
    after = torch.load(folder / "2epoch.pth", weights_only=True)["global_step"]
    assert int(before) > 0 and int(after) == 2 * int(before)


def test_two_processes_train_without_unused_parameters(ssl_command):
    conf = dict(loss=[{"name": "w2v_bert", "conf": LOSSES["w2v_bert"]}], ssl_conf=ATM)
    command = without(ssl_command(("speech", "confidence"), **conf), "--token_list")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    options = ["--dist_backend", "gloo", "--multiprocessing_distributed", "false"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "espnet_atm", "-m", "espnet2.bin.ssl_train"]
        + command
        + options,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert int(checkpoint(command)["global_step"]) > 0


def test_random_masks_need_no_confidence(ssl_command):
    trained(ssl_command(streams=("speech", "text"), ssl_conf={"masker": "random"}))


def test_trains_with_a_scorer_instead_of_a_track(ssl_command, asr):
    scorer = {"asr_train_config": str(asr[0]), "asr_model_file": str(asr[1])}
    conf = {"masker": "atm", "loss_scale": "utterance", "scorer": scorer}
    command = ssl_command(streams=("speech", "text"), ssl_conf=conf)
    before = ATMSSLTask.build_model(arguments(command)).state_dict()
    assert set(trained(command)) == set(before)
    with pytest.raises(ValueError, match="ssl_conf.scorer and --train_data.*leave one"):
        ATMSSLTask.main(cmd=ssl_command(ssl_conf=conf))
    conf["scorer"] = {**scorer, "asr_model_file": "nothing.pth"}
    with pytest.raises(ValueError, match="asr_model_file: no such file: nothing.pth"):
        ATMSSLTask.main(cmd=ssl_command(streams=("speech", "text"), ssl_conf=conf))


def test_collects_statistics(ssl_command):
    command = ssl_command(ssl_conf=ATM) + ["--collect_stats", "true"]
    ATMSSLTask.main(cmd=command)
    folder = Path(command[command.index("--output_dir") + 1]) / "train"
    assert len((folder / "speech_shape").read_text().splitlines()) == 10
    assert len((folder / "confidence_shape").read_text().splitlines()) == 10


def test_without_ssl_conf_it_is_espnet_to_the_bit(ssl_command):
    config = dict(WAV2VEC, util=[{"name": "mask", "conf": {"mask_prob": 0.6}}])
    streams = ("speech", "text")
    stock = ssl_command(streams=streams, **config)
    subprocess.run(
        [sys.executable, "-m", "espnet2.bin.ssl_train", *stock],
        check=True,
        cwd="/",
        capture_output=True,
    )
    ours = ssl_command(streams=streams, **config)
    subprocess.run(
        [sys.executable, "-m", "espnet_atm", "-m", "espnet2.bin.ssl_train", *ours],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    expected, got = checkpoint(stock), checkpoint(ours)
    assert set(expected) == set(got)
    assert all(torch.equal(expected[k], got[k]) for k in expected)


@pytest.mark.parametrize(
    "config, streams, message",
    [
        (
            dict(ssl_conf=ATM),
            ("speech", "text"),
            "add --train_data_path_and_name_and_type",
        ),
        (
            dict(ssl_conf={"masker": "random", "loss_scale": "utterance"}),
            ("speech", "text"),
            "needs frame confidences",
        ),
        (
            dict(ssl_conf={"masker_conf": {"mask_ratio": 1.5}}),
            ("speech", "text", "confidence"),
            r"mask_ratio: 1.5 is not in \[0, 1\]",
        ),
        (
            dict(ssl_conf={"masker_conf": {"strategy": "best"}}),
            ("speech", "text", "confidence"),
            "strategy: 'best' is not known",
        ),
        (
            dict(ssl_conf=ATM, preencoder="sinc", preencoder_conf={}),
            ("speech", "text", "confidence"),
            "preencoder: sinc has frame times that are not known",
        ),
        (
            dict(
                ssl_conf=ATM, encoder="transformer", encoder_conf={"input_layer": None}
            ),
            ("speech", "text", "confidence"),
            "encoder: transformer adds no positions after preencoder: conv2d",
        ),
        (
            dict(ssl_conf=ATM, preencoder_conf={"output_size": 8}),
            ("speech", "text", "confidence"),
            "write preencoder_conf: output_size: 16",
        ),
        (
            dict(ssl_conf="atm"),
            ("speech", "text", "confidence"),
            "ssl_conf: 'atm' is not a mapping",
        ),
        (
            dict(loss=[{"name": "wav2vec2", "conf": {}}]),
            ("speech",),
            "the loss wav2vec2 needs ssl_conf.* write ssl_conf: masker: random",
        ),
        (
            dict(ssl_conf=ATM),
            ("speech", "confidence"),
            "the loss hubert reads labels, and --train_data_path_and_name_and_type "
            "names none",
        ),
        (
            dict(ssl_conf=ATM, input_size=80),
            ("speech", "text", "confidence"),
            "input_size: 80 reads features",
        ),
    ],
)
def test_impossible_configs_are_refused_at_the_start(
    ssl_command, config, streams, message
):
    command = ssl_command(streams=streams, **config)
    with pytest.raises(ValueError, match=message):
        ATMSSLTask.main(cmd=command)
    assert not (
        Path(command[command.index("--output_dir") + 1]) / "config.yaml"
    ).exists()


def test_a_missing_token_list_is_refused_where_labels_are_read(ssl_command):
    command = without(ssl_command(ssl_conf=ATM), "--token_list")
    with pytest.raises(ValueError, match="hubert reads labels: give their --token_li"):
        ATMSSLTask.main(cmd=command)
    loss = [{"name": "best_rq", "conf": LOSSES["best_rq"]}]
    command = without(ssl_command(ssl_conf=ATM, loss=loss), "--token_list")
    with pytest.raises(ValueError, match="names labels, which no loss reads"):
        ATMSSLTask.main(cmd=command)


@pytest.mark.parametrize(
    "shift, message",
    [("64", "a track of .* frames of 64 samples"), ("64000", "too coarse")],
)
def test_a_track_at_an_impossible_rate_is_refused_at_the_start(
    ssl_command, corpus, tmp_path, shift, message
):
    (tmp_path / "frame_shift").write_text(shift)
    scp = tmp_path / "confidence.scp"
    scp.write_text((corpus / "confidence.scp").read_text())
    command = [
        x.replace(f"{corpus}/confidence.scp", str(scp))
        for x in ssl_command(ssl_conf=ATM)
    ]
    with pytest.raises(ValueError, match=message):
        ATMSSLTask.main(cmd=command)
    assert not (
        Path(command[command.index("--output_dir") + 1]) / "config.yaml"
    ).exists()


def test_the_collate_function_can_be_sent_to_other_processes(ssl_command):
    function = ATMSSLTask.build_collate_fn(arguments(ssl_command(ssl_conf=ATM)), True)
    assert pickle.loads(pickle.dumps(function)).grid == function.grid


def test_training_takes_32_seconds_of_all_streams_alike(ssl_command):
    """A contiguous region, another at each step: a slice of the whole utterance's."""
    args = arguments(ssl_command(ssl_conf={**ATM, "crop_seconds": 32}))
    rng = np.random.default_rng(0)
    data = []
    for seconds in (40, 64, 50):
        samples = seconds * 16000
        speech = rng.standard_normal(samples).astype(np.float32)
        labels = np.arange((samples - 400) // 160 + 1)
        track = rng.random((encoder_grid(args).length(samples), 1), dtype=np.float32)
        streams = dict(speech=speech, text=labels, confidence=track)
        data.append((f"{seconds}s", streams))
    whole = [ATMSSLTask.build_collate_fn(args, False)([x])[1] for x in data]
    assert [x["speech"].size(1) for x in whole] == [x * 16000 for x in (40, 64, 50)]
    crop = ATMSSLTask.build_collate_fn(args, True)
    samples, frames = 32 * 16000, encoder_grid(args).length(32 * 16000)
    starts = []
    for _ in range(8):
        utts, batch = crop(data)
        assert utts == ["40s", "64s", "50s"]
        assert set(batch["speech_lengths"].tolist()) == {samples}
        for name in ("text", "confidence"):
            assert set(batch[f"{name}_lengths"].tolist()) == {frames}
        for row, utterance in enumerate(whole):
            # Its first label tells the frame at which it begins.
            found = utterance["text"][0] == batch["text"][row, 0]
            (start,) = found.nonzero()[:, 0].tolist()
            for name, begin, length in (
                ("speech", start * 640, samples),
                ("text", start, frames),
                ("confidence", start, frames),
            ):
                expected = utterance[name][0, begin : begin + length]
                assert torch.equal(batch[name][row], expected), name
            starts.append(start)
    for row, seconds in enumerate((40, 64, 50)):
        assert len(set(starts[row::3])) > 4
        assert max(starts[row::3]) <= (seconds - 32) * 25
    assert max(starts) > 400  # the end of the longest is reached, too


def test_the_config_of_a_run_keeps_what_the_user_wrote(ssl_command):
    command = ssl_command(ssl_conf=ATM) + ["--dry_run", "true"]
    ATMSSLTask.main(cmd=command)
    folder = Path(command[command.index("--output_dir") + 1])
    assert yaml.safe_load((folder / "config.yaml").read_text())["ssl_conf"] == ATM


def test_tracks_of_different_measures_are_refused_at_the_start(
    ssl_command, corpus, tmp_path
):
    """Though their frames are alike."""
    command = ssl_command(ssl_conf=ATM)
    for mode, measure in (("train", "max"), ("valid", "entropy")):
        folder = tmp_path / mode
        folder.mkdir()
        for name in ("confidence.scp", "frame_shift", "frame_offset"):
            (folder / name).write_text((corpus / name).read_text())
        scorer = {"model": "x", "measure": measure}
        (folder / "scorer").write_text(json.dumps(scorer))
        option = f"--{mode}_data_path_and_name_and_type"
        for at, word in enumerate(command):
            if word == option and "confidence.scp" in command[at + 1]:
                command[at + 1] = f"{folder}/confidence.scp,confidence,kaldi_ark"
    message = "train/scorer.* different scorers or measures: measure; score both alike"
    with pytest.raises(ValueError, match=message):
        ATMSSLTask.main(cmd=command)
    (tmp_path / "valid" / "scorer").unlink()
    assert ATMSSLTask.build_collate_fn(arguments(command), True)

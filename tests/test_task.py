import argparse
import json
import pickle
import subprocess
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import CNN, CONFORMER, LOSSES, ROOT, random_states
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid
from espnet_atm.masking import GuidedMasking
from espnet_atm.model import ATMSSLModel
from espnet_atm.scorer import Scorer
from espnet_atm.speech import _model
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


LINEAR = dict(preencoder="linear", preencoder_conf={"output_size": 16})


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


class Seen:
    """What a training begins with, and the masks that it draws."""

    def __init__(self):
        self.weights, self.masks = None, []

    def begin(self, module, inputs) -> None:
        if isinstance(module, ATMSSLModel) and self.weights is None:
            self.weights = {k: v.clone() for k, v in module.state_dict().items()}

    def end(self, module, inputs, output) -> None:
        if isinstance(module, GuidedMasking):
            self.masks.append(output[1]["mask_m"])

    @classmethod
    def of(cls, command) -> "Seen":
        """Train, and look on."""
        seen = cls()
        hooks = [
            torch.nn.modules.module.register_module_forward_pre_hook(seen.begin),
            torch.nn.modules.module.register_module_forward_hook(seen.end),
        ]
        try:
            ATMSSLTask.main(cmd=command)
        finally:
            for hook in hooks:
                hook.remove()
        return seen


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("masker", ["atm", "random"])
def test_scores_inside_training_are_as_good_as_a_track(
    ssl_command, asr, corpus, tmp_path, masker, gate
):
    """The same start and, of whole utterances, the same masks: loading draws nothing."""
    scorer = Scorer.from_files(*asr)
    tracks = {}
    for line in (corpus / "wav.scp").read_text().splitlines():
        utt, file = line.split()
        speech = torch.from_numpy(soundfile.read(file, dtype="float32")[0])[None]
        length = torch.tensor([speech.size(1)])
        tracks[utt] = scorer.score(speech, length, speech_gate=gate)[0].numpy()[0]
    scp = tmp_path / "confidence.scp"
    kaldiio.save_ark(str(tmp_path / "confidence.ark"), tracks, scp=str(scp))
    (tmp_path / "frame_shift").write_text("640\n")
    (tmp_path / "frame_offset").write_text("479.5\n")
    _model.cache_clear()  # as in a new process

    conf = {"masker": masker, "loss_scale": "utterance"}
    files = {"asr_train_config": str(asr[0]), "asr_model_file": str(asr[1])}
    inside = {**conf, "scorer": {**files, "speech_gate": gate}}
    whole = {"label_downsampling": 4, "pad": True}
    command = ssl_command(ssl_conf=conf, collate_fn_conf=whole)
    command = [x.replace(f"{corpus}/confidence.scp", str(scp)) for x in command]
    stored = Seen.of(command)
    command = ssl_command(("speech", "text"), ssl_conf=inside, collate_fn_conf=whole)
    inside = Seen.of(command)
    assert all(torch.equal(x, inside.weights[k]) for k, x in stored.weights.items())
    assert len(stored.masks) == len(inside.masks) == 4
    assert all(torch.equal(x, y) for x, y in zip(stored.masks, inside.masks))


@pytest.mark.parametrize("path", [{}, WAV2VEC], ids=["conv2d", "wav2vec_cnn"])
def test_what_is_tried_before_training_draws_nothing(ssl_command, asr, path):
    scorer = {"asr_train_config": str(asr[0]), "asr_model_file": str(asr[1])}
    conf = {"masker": "atm", "scorer": scorer}
    args = arguments(ssl_command(("speech", "text"), ssl_conf=conf, **path))
    before = random_states()
    ATMSSLTask.check_args(args)
    ATMSSLTask.build_collate_fn(args, True)
    assert random_states() == before


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
            "input_size: 80 reads features; write .* frontend: wav2vec_cnn with",
        ),
        (
            dict(ssl_conf=ATM, frontend=None),
            ("speech", "text", "confidence"),
            "frontend: null makes none; write .* frontend: wav2vec_cnn with preencoder",
        ),
        (
            dict(ssl_conf=ATM, encoder="rnn"),
            ("speech", "text", "confidence"),
            "encoder: 'rnn' is not known to the SSL task; write one of: transformer, ",
        ),
        (
            dict(ssl_conf=ATM, **{**WAV2VEC, "preencoder": "sinc"}),
            ("speech", "text", "confidence"),
            "preencoder: sinc has frame times that are not known; write linear or null",
        ),
        (
            dict(ssl_conf=ATM, **{**WAV2VEC, "preencoder": None}),
            ("speech", "text", "confidence"),
            "write preencoder: linear and preencoder_conf: output_size: 16",
        ),
        (
            dict(
                ssl_conf=ATM, **{**WAV2VEC, "preencoder": "conv2d"}, encoder="transformer",
                encoder_conf={"input_layer": "wav2vec"},
            ),
            ("speech", "text", "confidence"),
            "encoder: transformer adds no .* write preencoder: linear, or encoder: conf",
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


@pytest.mark.parametrize(
    "config, encoder, layer, advice",
    [
        (WAV2VEC, "conformer", "conv2d", "write preencoder: linear and input_layer: null"),
        (WAV2VEC, "transformer", "conv1d2", "input_layer: wav2vec or linear"),
        (WAV2VEC, "e_branchformer", "conv1d2", "input_layer: null or linear"),
        (LINEAR, "conformer", "conv2d2", "write preencoder: conv2d and input_layer: null"),
        (LINEAR, "transformer", "conv2d", "with encoder: conformer or e_branchformer"),
    ],
)
def test_advice_on_subsampling_fits_the_front_end(
    ssl_command, config, encoder, layer, advice
):
    conf = {x: CONFORMER[x] for x in ("output_size", "attention_heads", "num_blocks")}
    conf["input_layer"] = layer
    command = ssl_command(ssl_conf=ATM, **config, encoder=encoder, encoder_conf=conf)
    with pytest.raises(UserError, match=f"subsamples after the mask; .*{advice}"):
        ATMSSLTask.build_model(arguments(command))


ESPNET_CONFIGS = [
    x
    for name in ("ssl1", "hubert1")
    for x in sorted((ROOT / "egs2/TEMPLATE/..").glob(f"*/{name}/conf/**/*.yaml"))
    if "\nencoder:" in x.read_text()
]


@pytest.mark.parametrize("file", ESPNET_CONFIGS, ids=lambda x: x.stem)
def test_espnets_own_configs_are_built_or_told_what_to_write(
    ssl_command, corpus, tmp_path, file
):
    """With the two lines added."""
    config = yaml.safe_load(file.read_text())
    command = ssl_command()
    own = Path(command[command.index("--config") + 1])
    own.write_text(yaml.safe_dump({**config, "ssl_conf": ATM}))
    args = arguments(command + ["--collate_fn_conf", "label_downsampling=2"])
    try:
        ATMSSLTask.check_args(args)
    except UserError as e:
        assert "train_hubert.yaml, which is HuBERT in the SSL task" in str(e)
        assert config["encoder"] in str(e) and "\n" not in str(e)
    else:
        assert config["encoder"] == "transformer" and config["frontend"] == "wav2vec_cnn"
        with torch.device("meta"):
            ATMSSLTask.build_model(args)


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


@pytest.mark.parametrize("earlier", [{}, {"speech_gate": None}])
def test_gated_tracks_and_others_are_refused_at_the_start(
    ssl_command, corpus, tmp_path, earlier
):
    """Also where the others are of a version without the gate."""
    command = ssl_command(ssl_conf=ATM)
    for mode, gate in (("train", {"speech_gate": "silero-vad 6"}), ("valid", earlier)):
        folder = tmp_path / mode
        folder.mkdir()
        for name in ("confidence.scp", "frame_shift", "frame_offset"):
            (folder / name).write_text((corpus / name).read_text())
        (folder / "scorer").write_text(json.dumps({"model": "x", "config": "y", **gate}))
        option = f"--{mode}_data_path_and_name_and_type"
        for at, word in enumerate(command):
            if word == option and "confidence.scp" in command[at + 1]:
                command[at + 1] = f"{folder}/confidence.scp,confidence,kaldi_ark"
    with pytest.raises(ValueError, match="scorers or measures: speech_gate; score both"):
        ATMSSLTask.main(cmd=command)


NOTHING = {"none at all": {}, "null": {"ssl_conf": None}, "empty": {"ssl_conf": {}}}


@pytest.mark.parametrize("config", NOTHING.values(), ids=NOTHING)
def test_confidences_without_ssl_conf_are_refused(ssl_command, config):
    command = ssl_command(**config, **WAV2VEC)
    with pytest.raises(UserError, match="gives confidences, .*write ssl_conf: {masker:"):
        ATMSSLTask.main(cmd=command)


@pytest.mark.parametrize("config", NOTHING.values(), ids=NOTHING)
def test_nothing_is_stock_without_confidences(ssl_command, config):
    command = ssl_command(("speech", "text"), **config, **WAV2VEC)
    model = ATMSSLTask.build_model(arguments(command))
    assert not isinstance(model, ATMSSLModel)
    trained(command)


@pytest.mark.parametrize("value", [False, [], "x", 3, True, ""])
@pytest.mark.parametrize("streams", [("speech", "text"), ("speech", "text", "confidence")])
def test_ssl_conf_of_another_kind_is_refused(ssl_command, value, streams):
    with pytest.raises(UserError, match="ssl_conf: .* is not a mapping"):
        ATMSSLTask.main(cmd=ssl_command(streams, ssl_conf=value, **WAV2VEC))


HUBERT = {"num_classes": 4, "final_dim": 8}
ENCODER = {**CONFORMER, "input_layer": None}


@pytest.mark.parametrize(
    "loss, message",
    [
        ("hubert", "loss: 'hubert' is not a list"),
        ({"name": "hubert"}, "loss: {'name': 'hubert'} is not a list"),
        (None, "loss: None is not a list"),
        ([], "loss: names none"),
        (["hubert"], "loss: 'hubert' is not a mapping"),
        ([{"conf": HUBERT}], "loss: name: None is not known; write one of .*'hubert'"),
        ([{"name": "hubret", "conf": HUBERT}], "loss: name: 'hubret' is not known"),
        ([{"name": ["hubert"], "conf": HUBERT}], r"loss: name: \['hubert'\] is not known"),
        ([{"name": "hubert", "conf": None}], "loss hubert: conf: is empty"),
        ([{"name": "hubert", "conf": [4]}], r"loss hubert: conf: \[4\] is not a mapping"),
        ([{"name": "hubert", "options": HUBERT}], "loss: unknown 'options'"),
        ([{"name": "hubert"}], "loss hubert: num_classes is missing"),
        ([{"name": "hubert", "conf": {"num_classes": 4}}], "final_dim is missing"),
        (
            [{"name": "hubert", "conf": {**HUBERT, "classes": 5}}],
            "loss hubert: unknown 'classes'; known are num_classes, final_dim, loss_type",
        ),
        (
            [{"name": "w2v_bert", "conf": {"num_code": 5}}],
            "loss w2v_bert: unknown 'num_code'; known are .*num_negatives",
        ),
        (
            [{"name": "w2v_bert", "conf": {"context_layers": 1, "num_groups": 2}}],
            "loss: .*'num_groups'",
        ),
        ([{"name": "hubert", "conf": {**HUBERT, "num_classes": "4"}}], "'4' is not a"),
    ],
)
@pytest.mark.parametrize("ssl_conf", [ATM, None], ids=["atm", "stock"])
def test_a_loss_of_another_shape_is_refused(ssl_command, loss, message, ssl_conf):
    streams = ("speech", "text", "confidence")[: 3 if ssl_conf else 2]
    config = {} if ssl_conf else WAV2VEC
    if ssl_conf is None and "num_groups" in message:
        message = "needs ssl_conf"
    command = ssl_command(streams, loss=loss, ssl_conf=ssl_conf, **config)
    with pytest.raises(UserError, match=message):
        ATMSSLTask.main(cmd=command)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"encoder_conf": {**ENCODER, "output_size": "16"}}, 'encoder_conf: .*"output'),
        ({"encoder_conf": {**ENCODER, "attention_heads": 3}}, "encoder_conf: "),
        ({"encoder_conf": {**ENCODER, "layers": 3}}, "encoder_conf: .*'layers'"),
        ({"encoder_conf": None}, "encoder_conf: is empty"),
        ({"encoder_conf": [16]}, r"encoder_conf: \[16\] is not a mapping"),
        ({"encoder_conf": {**ENCODER, "num_blocks": -2}}, "encoder|num_blocks|hubert"),
        ({"frontend_conf": {"hop_length": "160"}}, "frontend_conf: "),
        ({"frontend_conf": {"hop": 160}}, "frontend_conf: .*'hop'"),
        ({"frontend_conf": "default"}, "frontend_conf: 'default' is not a mapping"),
        ({"frontend_conf": {"fs": True}}, "frontend_conf.fs: True is not a sampling rate"),
        ({"frontend_conf": {"fs": "fast"}}, "frontend_conf.fs: 'fast' is not a sampling"),
        ({"frontend_conf": {"fs": 0}}, "frontend_conf.fs: 0 is not a sampling rate"),
        ({"preencoder_conf": {"output_size": "16"}}, "output_size: '16' is not a whole"),
        ({"preencoder_conf": {"output_size": 10**12}}, "output_size: .* is too large"),
        ({"preencoder_conf": {"output_size": True}}, "output_size: True is not a whole"),
        ({"preencoder_conf": {}}, "preencoder_conf: .*output_size"),
        ({"preencoder_conf": {"output_size": 16, "size": 3}}, "preencoder_conf: .*'size'"),
        ({"preencoder_conf": 16}, "preencoder_conf: 16 is not a mapping"),
        ({"normalize_conf": {"mean": 3}}, "normalize_conf: .*'mean'"),
        ({"specaug": "specaug", "specaug_conf": {"time": 3}}, "specaug_conf: .*'time'"),
        ({"optim_conf": {"lr": "1e-3"}}, "optim_conf: "),
        ({"collate_fn_conf": {"label_downsampling": "4"}}, "label_downsampling"),
        ({"collate_fn_conf": {"label_downsampling": True}}, "downsampling: True is not a"),
        ({"collate_fn_conf": {"label_downsampling": 0}}, "label_downsampling: 0 is not"),
        ({"collate_fn_conf": {"label_downsampling": 4.0}}, "label_downsampling"),
        ({"collate_fn_conf": {"label_downsample": 4}}, "unknown 'label_downsample'"),
        ({"collate_fn_conf": {"pad": "false"}}, "pad: 'false' is not true or false"),
        ({"collate_fn_conf": [4]}, r"collate_fn_conf: \[4\] is not a mapping"),
        ({"util": [{"name": "mask", "conf": {"mask_length": "x", "a": 1}}]}, "util"),
    ],
)
def test_options_that_espnet_fails_on_are_named(ssl_command, config, message):
    with pytest.raises(UserError, match=message):
        ATMSSLTask.main(cmd=ssl_command(ssl_conf=ATM, **config))


@pytest.mark.parametrize(
    "seconds, message",
    [
        (0.06, "crop_seconds: 0.06 is 1 frames, .*span of 10 .*write 0.48 or more"),
        (0.4, "crop_seconds: 0.4 is 9 frames"),
    ],
)
def test_crops_that_a_span_covers_are_refused(ssl_command, seconds, message):
    with pytest.raises(UserError, match=message):
        ATMSSLTask.main(cmd=ssl_command(ssl_conf={**ATM, "crop_seconds": seconds}))
    trained(ssl_command(ssl_conf={**ATM, "crop_seconds": 0.48}))


@pytest.mark.parametrize("ratio", [0, 0.0, 1.0])
@pytest.mark.parametrize("masker", ["atm", "random"])
def test_masks_of_nothing_and_of_everything_do_not_train(ssl_command, masker, ratio):
    conf = {"masker": masker, "masker_conf": {"mask_ratio": ratio}}
    with pytest.raises(UserError, match="mask_ratio: .* teaches nothing"):
        ATMSSLTask.main(cmd=ssl_command(ssl_conf=conf))


@pytest.mark.parametrize("loss_scale", ["utterance", "frame"])
def test_weights_that_are_0_throughout_do_not_train(ssl_command, corpus, loss_scale):
    """As found while training, where nothing beside the tracks tells."""
    conf = {"masker": "random", "loss_scale": loss_scale}
    conf["loss_scale_conf"] = {"frame_prob": 1.0}
    command = ssl_command(ssl_conf=conf)
    folder = Path(command[command.index("--output_dir") + 1])
    tracks = kaldiio.load_scp(str(corpus / "confidence.scp"))
    tracks = {utt: np.zeros_like(track) for utt, track in tracks.items()}
    scp = folder / "confidence.scp"
    kaldiio.save_ark(str(folder / "confidence.ark"), tracks, scp=str(scp))
    for name in ("frame_shift", "frame_offset"):
        (folder / name).write_text((corpus / name).read_text())
    command = [x.replace(f"{corpus}/confidence.scp", str(scp)) for x in command]
    with pytest.raises(UserError, match="epoch 1, train: .*weighs every loss by 0"):
        ATMSSLTask.main(cmd=command)


def run_of(command):
    folder = Path(command[command.index("--output_dir") + 1])
    return folder / "config.yaml", folder / "1epoch.pth"


@pytest.fixture
def trained_run(ssl_command):
    """A run that others begin from: its config.yaml and weights."""
    command = ssl_command(ssl_conf=ATM)
    ATMSSLTask.main(cmd=command)
    return run_of(command)


def lacking(file: Path, *names) -> Path:
    """The weights but those that begin so."""
    state = torch.load(file, weights_only=True)
    left = {k: v for k, v in state.items() if not k.startswith(names)}
    assert len(left) < len(state)
    less = file.with_name(f"less{len(list(file.parent.glob('less*')))}.pth")
    torch.save(left, less)
    return less


def test_a_model_is_not_built_from_weights_that_are_not_its_own(trained_run, asr):
    config, weights = trained_run
    model, _ = ATMSSLTask.build_model_from_file(config, weights)
    state = torch.load(weights, weights_only=True)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for file, message in (
        (weights.with_name("checkpoint.pth"), "checkpoint.pth: is the trainer's state"),
        (asr[1], "is not the model of .*config.yaml"),
        (lacking(weights, "encoder."), r"less\d.pth: .*are not in it: encoder."),
        (lacking(weights, "preencoder."), r"less\d.pth: .*are not in it: preencoder."),
    ):
        with pytest.raises(UserError, match=message):
            ATMSSLTask.build_model_from_file(config, file)
    # Counting updates is not part of what was learnt.
    ATMSSLTask.build_model_from_file(config, lacking(weights, "global_step"))
    with pytest.raises(UserError, match="1epoch.pth: "):
        ATMSSLTask.build_model_from_file(weights, weights)


@pytest.mark.parametrize(
    "options, message",
    [
        (":encodr:encoder", "nothing in .* begins with 'encodr'"),
        (":encoder:encodr", "the model has no part 'encodr'"),
    ],
)
def test_init_param_that_initialises_nothing_is_refused(
    ssl_command, trained_run, options, message
):
    command = ssl_command(ssl_conf=ATM) + ["--init_param", f"{trained_run[1]}{options}"]
    with pytest.raises(UserError, match=message):
        ATMSSLTask.main(cmd=command)


def test_init_param_takes_a_part_and_tells_what_stays_random(
    ssl_command, trained_run, caplog
):
    state = trained_run[1].with_name("checkpoint.pth")
    with pytest.raises(UserError, match="checkpoint.pth: is the trainer's state"):
        ATMSSLTask.main(cmd=ssl_command(ssl_conf=ATM) + ["--init_param", str(state)])
    file = lacking(trained_run[1], "encoder.after_norm")
    command = ssl_command(ssl_conf=ATM) + ["--init_param", f"{file}:encoder:encoder"]
    trained(command)
    assert "as random as before: 2 weights: encoder.after_norm.weight" in caplog.text
    # ESPnet loads nothing for statistics, and so nothing is asked of the file.
    command = ssl_command(ssl_conf=ATM) + ["--init_param", "nothing.pth"]
    ATMSSLTask.main(cmd=command + ["--collect_stats", "true"])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda c, m: (c, m.with_name("x.pth")), "asr_model_file: no such file"),
        (lambda c, m: (c, m.parent), "asr_model_file: is a folder"),
        (lambda c, m: (c, lacking(m, "ctc.")), r"less\d.pth.*: ctc."),
        (lambda c, m: (c, lacking(m, "encoder.")), r"less\d.pth.*: encoder."),
        (lambda c, m: (m, m), "ssl_conf.scorer: .*model.pth"),
        (lambda c, m: (c, c), "ssl_conf.scorer: .*config.yaml"),
    ],
)
def test_a_scorer_that_is_not_there_is_refused_before_training(
    ssl_command, asr, tmp_path, spoil, message
):
    for file in asr:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    files = spoil(*(tmp_path / file.name for file in asr))
    scorer = dict(zip(("asr_train_config", "asr_model_file"), map(str, files)))
    command = ssl_command(("speech", "text"), ssl_conf={**ATM, "scorer": scorer})
    with pytest.raises(UserError, match=message):
        ATMSSLTask.main(cmd=command)
    assert not run_of(command)[0].exists()


def test_a_scorer_of_another_rate_is_refused_before_training(ssl_command, make_asr):
    frontend = {"fs": 8000, "n_fft": 256, "win_length": 200, "hop_length": 80}
    files = map(str, make_asr(frontend_conf=frontend))
    scorer = dict(zip(("asr_train_config", "asr_model_file"), files))
    command = ssl_command(("speech", "text"), ssl_conf={**ATM, "scorer": scorer})
    with pytest.raises(UserError, match="wants audio at 8000 Hz, and .*fs is 16000"):
        ATMSSLTask.main(cmd=command)
    assert not run_of(command)[0].exists()

"""What README.md tells to do, done."""

import inspect
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import yaml
from conftest import LOSSES, ROOT
from espnet2.tasks.ssl import loss_choices

from espnet_atm.bin import score
from espnet_atm.config import OPTIONS, SSLConf
from espnet_atm.confidence import align_track
from espnet_atm.task import ATMSSLTask
from espnet_atm.track import TrackReader, read_track_grid

README = (ROOT / "README.md").read_text()


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of a section, up to the next heading of any depth."""
    section = re.search(rf"^#+ {heading}\n(.*?)^##", README, re.DOTALL | re.MULTILINE)[1]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


(TRACK,) = blocks("A track of your own", "python")[:1]


def test_a_track_of_ones_own(tmp_path, spoken, corpus, ssl_command):
    """The example makes tracks that training takes, in time with the audio."""
    (tmp_path / "dump/raw/train").mkdir(parents=True)
    lines = []
    for utt, speech in spoken.items():
        soundfile.write(tmp_path / f"{utt}.wav", speech.numpy(), 16000)
        lines.append(f"{utt} {tmp_path}/{utt}.wav\n")
    (tmp_path / "dump/raw/train/wav.scp").write_text("".join(lines))
    done = subprocess.run(
        [sys.executable, "-c", TRACK], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    os.chdir(tmp_path)
    scp = tmp_path / "exp/my_track/train/confidence.scp"
    tracks = TrackReader(scp)
    assert set(tracks) == set(spoken)
    grid = read_track_grid(str(scp), 16000)
    for utt, speech in spoken.items():
        shift = 640
        count = len(speech) // shift
        confidence = align_track(tracks[utt], grid.shift, shift, count, grid.offset)
        frames = speech[: count * shift].reshape(-1, shift)
        power = frames.square().mean(dim=1).numpy()
        loud = power > np.quantile(power, 0.6)
        if utt == "clean":
            assert confidence[loud].mean() > confidence[~loud].mean() + 0.2
        assert (confidence.mean() < 0.1) == (utt == "purenoise")

    (tmp_path / "shape").write_text(
        "".join(f"{utt} {len(speech)}\n" for utt, speech in spoken.items())
    )
    loss = [{"name": "best_rq", "conf": LOSSES["best_rq"]}]
    command = ssl_command(("speech", "confidence"), ssl_conf={"masker": "atm"}, loss=loss)
    at = command.index("--token_list")
    del command[at : at + 4]
    own = (tmp_path / "dump/raw/train/wav.scp", scp, tmp_path / "shape")
    for file in own:
        command = [x.replace(f"{corpus}/{file.name}", str(file)) for x in command]
    assert str(corpus) not in " ".join(command)
    ATMSSLTask.main(cmd=command)


def test_masks_for_another_trainer(tmp_path, spoken, make_asr):
    """The example, on stored scores, through a model's gradients."""
    from test_huggingface import save

    save(tmp_path / "MODEL", layout="large")
    (tmp_path / "dump/raw/train").mkdir(parents=True)
    lines = []
    for utt in ("clean", "noise", "room"):
        soundfile.write(tmp_path / f"{utt}.wav", spoken[utt].numpy(), 16000)
        lines.append(f"{utt} {tmp_path}/{utt}.wav\n")
    (tmp_path / "dump/raw/train/wav.scp").write_text("".join(lines))
    config, weights = make_asr()
    score.main(
        [
            *("--asr_train_config", str(config), "--asr_model_file", str(weights)),
            *("--wav_scp", str(tmp_path / "dump/raw/train/wav.scp")),
            *("--output_dir", str(tmp_path / "exp/confidence/train")),
        ]
    )
    (code,) = blocks("Masks for other trainers", "python")
    code += """
import sys
valid = torch.arange(mask.size(1)) < torch.tensor(frames)[:, None]
assert not (mask & ~valid).any()
assert ((mask.sum(1) >= 0.4 * valid.sum(1)) & (mask.sum(1) < 0.4 * valid.sum(1) + 10)).all()
assert torch.isfinite(loss) and model.wav2vec2.masked_spec_embed.grad.abs().sum() > 0
assert not [x for x in sys.modules if x.split(".")[0] in ("espnet", "espnet2")]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["masking", "confidence", "track"])
def test_what_others_import_is_without_espnet(module):
    code = (
        f"import espnet_atm.{module}, sys\n"
        "print([x for x in sys.modules if x.split('.')[0] in ('espnet', 'espnet2')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_all_options_and_their_defaults():
    """What the blocks of options say is what is meant by leaving them out."""
    _, options, losses = (
        yaml.safe_load(x) for x in blocks("In your own ESPnet SSL config", "yaml")
    )
    conf = options["ssl_conf"]
    assert SSLConf.parse(conf) == SSLConf.parse({"masker": "atm"})
    assert set(conf) == set(OPTIONS["ssl_conf"])
    for name, value in conf.items():
        assert not isinstance(value, dict) or set(value) == set(OPTIONS[name])
    assert {x["name"] for x in losses["loss"]} == set(LOSSES) - {"hubert"}
    for loss in losses["loss"]:
        usual = inspect.signature(loss_choices.get_class(loss["name"])).parameters
        for name, value in loss["conf"].items():
            default = usual[name].default
            default = list(default) if isinstance(default, tuple) else default
            # The README says that this one has to be given.
            assert default == value or name == "context_layers", (loss["name"], name)


# ESPnet's configs in a size for tests: numbers only.
BLOCKS = {"attention_heads": 2, "linear_units": 16}
SMALL = {
    "preencoder_conf": {"output_size": 16},
    "encoder_conf": {"output_size": 16, **BLOCKS, "num_blocks": 2},
    "max_epoch": 1,
    "num_workers": 1,
}
SCORER = {
    "encoder": "transformer",
    "encoder_conf": {"output_size": 16, **BLOCKS, "num_blocks": 1},
    "decoder": "transformer",
    "decoder_conf": {**BLOCKS, "num_blocks": 1},
    "model_conf": {"ctc_weight": 0.5},
    **{"batch_type": "unsorted", "batch_size": 4, "max_epoch": 1},
    **{"optim": "adam", "num_att_plot": 0, "num_workers": 1},
}


@pytest.fixture
def stock_recipe(tmp_path):
    """A recipe of ESPnet's own, with data and nothing of this package in it."""
    from recipe import trees  # slow: it loads a synthesizer

    espnet = (ROOT / "egs2" / "TEMPLATE").resolve().parent
    recipe = tmp_path / "egs2" / "mine" / "ssl1"
    recipe.mkdir(parents=True)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "egs2" / "TEMPLATE").symlink_to(espnet / "TEMPLATE")
    for name in ("asr.sh", "path.sh", "db.sh", "scripts", "pyscripts", "steps", "utils"):
        (recipe / name).symlink_to(f"../../TEMPLATE/asr1/{name}")
    (recipe / "ssl.sh").symlink_to("../../TEMPLATE/ssl1/ssl.sh")
    for name in ("cmd.sh", "conf", "local"):
        source = espnet / "TEMPLATE" / "ssl1" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, recipe / name)
    # As the README says: it asks for fairseq.
    assert "fairseq" in (recipe / "local" / "path.sh").read_text()
    (recipe / "local" / "path.sh").write_text("")
    for dset, utterances in (
        *(("train", 8), ("valid", 3)),
        *(("lab_train", 8), ("lab_dev", 3), ("lab_test", 2)),
    ):
        folder = recipe / "data" / dset
        folder.mkdir(parents=True)
        lines = {"wav.scp": "", "text": "", "utt2spk": "", "spk2utt": ""}
        for number in range(utterances):
            utt = f"{dset}{number}"
            words, speech = trees.sentence(dset, number)
            soundfile.write(folder / f"{utt}.wav", speech, trees.RATE)
            lines["wav.scp"] += f"{utt} {folder}/{utt}.wav\n"
            lines["text"] += f"{utt} {words}\n"
            lines["utt2spk"] += f"{utt} {utt}\n"
            lines["spk2utt"] += f"{utt} {utt}\n"
        for name, content in lines.items():
            (folder / name).write_text(content)
    (recipe / "data" / "tokens.txt").write_text("0\n1\n2\n3\n<unk>\n")
    (recipe / "conf" / "train_asr.yaml").write_text(yaml.safe_dump(SCORER))
    (recipe / "conf" / "decode.yaml").write_text("{ctc_weight: 1.0, beam_size: 1}\n")
    hubert = espnet / "librispeech" / "ssl1" / "conf" / "tuning" / "train_hubert.yaml"
    config = yaml.safe_load(hubert.read_text())
    for name, value in SMALL.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (recipe / "conf" / "train_ssl.yaml").write_text(yaml.safe_dump(config))
    return recipe


@pytest.mark.slow
def test_a_stock_recipe_gets_two_lines(stock_recipe):
    """From ESPnet's HuBERT config to an error rate, by what the README says."""

    def bash(command: str, check: bool = True) -> str:
        command = f". ./path.sh; set -e -o pipefail; {command}"
        done = subprocess.run(
            ["bash", "-c", command], cwd=stock_recipe, capture_output=True, text=True
        )
        logs = [x.read_text()[-2000:] for x in stock_recipe.glob("exp/*/*.log")]
        assert not check or done.returncode == 0, "\n".join(
            [done.stdout[-3000:], done.stderr[-3000:], *logs]
        )
        return done.stdout if check else done.stderr

    (two_lines, *_) = blocks("In your own ESPnet SSL config", "yaml")
    _, score, train, *_ = blocks("In your own ESPnet SSL config", "sh")
    (export,) = blocks("A track of your own", "sh")
    assert len(two_lines.splitlines()) == 2
    with (stock_recipe / "conf" / "train_ssl.yaml").open("a") as f:
        f.write(two_lines)
    asr = (
        "./asr.sh --ngpu 0 --nj 2 --inference_nj 1 --use_lm false --token_type char "
        "--train_set lab_train --valid_set lab_dev --test_sets lab_test "
    )
    scorer = "--asr_exp exp/asr --asr_config conf/train_asr.yaml"
    bash(f"{asr} --stage 2 --stop_stage 11 {scorer}")
    here = f"{train.strip()} --ngpu 0 --nj 2"
    bash(f"{here} --stage 2 --stop_stage 4")
    for dset in ("train", "valid"):  # as ESPnet's README of ssl1 wants pseudo-labels
        folder = stock_recipe / "dump" / "raw" / dset
        lengths = [x.split() for x in (folder / "utt2num_samples").read_text().splitlines()]
        labels = (
            [utt, *(str(i // 5 % 4) for i in range((int(n) - 400) // 320 + 1))]
            for utt, n in lengths
        )
        (folder / "text").write_text("".join(" ".join(x) + "\n" for x in labels))
    bash(score)
    assert here.startswith("iter= ")
    said = bash(f"unset iter; {here.removeprefix('iter= ')} --stage 6", check=False)
    assert "iter: unbound variable" in said
    bash(f"{here} --stage 6")
    log = (stock_recipe / "exp/ssl_train_ssl_raw/train.log").read_text()
    assert "Ask2Mask: masker=atm" in log and "confidence_utterance=" in log

    printed = bash(export)
    words = re.search("# and asr.sh: (.*)", printed)[1]
    assert words.count(".pth:") == 3
    tuned = {k: v for k, v in SCORER.items() if not k.startswith(("encoder", "decoder"))}
    tuned.update(yaml.safe_load(printed), decoder=None, model_conf={"ctc_weight": 1.0})
    (stock_recipe / "conf" / "tuned.yaml").write_text(yaml.safe_dump(tuned))
    asr += f"--asr_config conf/tuned.yaml --asr_stats_dir exp/stats_tuned {words} "
    asr += "--inference_config conf/decode.yaml --inference_asr_model latest.pth "
    bash(f"{asr} --stage 10 --stop_stage 12 --asr_tag tuned")
    (text,) = stock_recipe.glob("exp/asr_tuned/decode*/lab_test/text")
    assert len(text.read_text().splitlines()) == 2
    if bash("command -v sclite || true").strip():
        bash(f"{asr} --stage 13 --stop_stage 13 --asr_tag tuned")
        (result,) = stock_recipe.glob("exp/asr_tuned/decode*/lab_test/score_wer/result.txt")
        assert "Sum/Avg" in result.read_text()

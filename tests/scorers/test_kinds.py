"""What holds for a scorer of any kind, from its folder to stored scores."""

import json
import subprocess
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from conftest import CNN, CONFORMER
from test_task import arguments

from espnet_atm.bin.score import main
from espnet_atm.confidence import align_track
from espnet_atm.errors import UserError
from espnet_atm.scorer import Scorer
from espnet_atm.task import ATMSSLTask

GROUP_NORM = dict(
    frontend="wav2vec_cnn",
    frontend_conf={**CNN, "norm_mode": "group_norm"},
    encoder_conf={**CONFORMER, "input_layer": "linear"},
    normalize=None,
)
# Its convolutions look back only: random ones, of the usual 31 frames, would delay an event.
W2V_BERT = {"model_type": "wav2vec2-bert", "conv_depthwise_kernel_size": 1}
# Each with another model of its kind.
KINDS = {
    "asr": ("make_asr", {}, {"token_list": ["<blank>", *"abcdef", "<sos/eos>"]}),
    "asr that leaks": ("make_asr", GROUP_NORM, {}),
    "owsm": ("make_owsm", {}, {"normalize": None}),
    "wav2vec2": ("make_ctc", {}, {"vocab_size": 9}),
    "wav2vec2 that leaks": ("make_ctc", {"feat_extract_norm": "group"}, {}),
    "w2v-bert": ("make_ctc", W2V_BERT, {}),
    "parakeet": ("make_ctc", {"model_type": "parakeet_ctc"}, {}),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request) -> tuple:
    """Folders of two models of a kind."""
    maker, *options = KINDS[request.param]
    make = request.getfixturevalue(maker)
    return tuple(folder_of(make(**x)) for x in options)


def folder_of(found) -> Path:
    return found[0].parent if isinstance(found, tuple) else found


@pytest.fixture
def folder(pair) -> Path:
    return pair[0]


@pytest.fixture
def list_of(corpus, tmp_path) -> Path:
    """A wav.scp of the corpus, of 6 s, and of nothing that could be a frame."""
    speech = [soundfile.read(corpus / f"utt{i}.wav", dtype="int16")[0] for i in range(5)]
    soundfile.write(tmp_path / "long.wav", np.concatenate(speech), 16000)
    soundfile.write(tmp_path / "short.wav", speech[0][:100], 16000)
    lines = (corpus / "wav.scp").read_text().splitlines()
    lines[2:2] = [f"{name} {tmp_path}/{name}.wav" for name in ("long", "short")]
    (tmp_path / "wav.scp").write_text("\n".join(lines) + "\n")
    return tmp_path / "wav.scp"


def score(folder, wav_scp, output, *options) -> Path:
    command = ["--scorer", folder, "--wav_scp", wav_scp, "--output_dir", output]
    main([*map(str, command), "--max_skipped", "1", *options])
    return output


def tracks_of(scores) -> dict:
    found = kaldiio.load_scp(str(scores / "confidence.scp"))
    return {utt: found[utt][:, 0] for utt in found}


def contents(scores) -> dict:
    return {
        file.name: file.read_bytes()
        for file in scores.iterdir()
        if file.is_file() and not file.name.startswith((".", "skipped"))
    }


def test_from_a_list_to_stored_scores(folder, list_of, tmp_path):
    """Each as alone, to within half a stored byte, on the scorer's frames."""
    scores = score(folder, list_of, tmp_path / "scores")
    assert (scores / "skipped").read_text() == (
        "short 100 samples are too short for one frame\n"
    )
    scorer = Scorer.from_files(folder)
    found = tracks_of(scores)
    assert len(found) == 11
    for line in list_of.read_text().splitlines():
        utt, file = line.split()
        if utt != "short":
            speech = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
            alone, frames = scorer.score(speech[None], torch.tensor([len(speech)]))
            alone = alone[0, : int(frames)].numpy()
            assert alone.shape == found[utt].shape
            # kaldiio rounds up from 0.501 steps on
            assert np.abs(alone - found[utt]).max() <= 0.51 / 255 + 0.5 / 255
    assert int((scores / "frame_shift").read_text()) == scorer.grid.shift
    assert float((scores / "frame_offset").read_text()) == scorer.grid.offset


def test_going_on_gives_the_same_bytes(folder, list_of, tmp_path, monkeypatch):
    monkeypatch.setattr("espnet_atm.scoring.WINDOW", 4)
    scores = score(folder, list_of, tmp_path / "scores")
    whole = contents(scores)
    for name, lost in (("confidence.ark", 100), ("utt2audio", 300)):
        data = (scores / name).read_bytes()
        (scores / name).write_bytes(data[:-lost])
        score(folder, list_of, scores)
        assert contents(scores) == whole


def test_scores_of_another_model_or_option_are_not_mixed_in(pair, list_of, tmp_path):
    scores = score(pair[0], list_of, tmp_path / "scores")
    before = contents(scores)
    with pytest.raises(UserError, match="scores of another scorer or measure"):
        score(pair[1], list_of, scores)
    with pytest.raises(UserError, match="measure: \"max\", now \"entropy\""):
        score(pair[0], list_of, scores, "--measure", "entropy")
    assert contents(scores) == before


def test_long_ones_in_windows(folder, list_of, tmp_path):
    """Of at least 10 s: what is shorter is as before."""
    line = next(x for x in list_of.read_text().splitlines() if x.startswith("long"))
    speech, rate = soundfile.read(line.split()[1])
    longer = np.tile(speech, 4)
    soundfile.write(tmp_path / "longer.wav", longer, rate)
    (tmp_path / "two.scp").write_text(f"{line}\nlonger {tmp_path}/longer.wav\n")
    whole, parts = (
        tracks_of(score(folder, tmp_path / "two.scp", tmp_path / x, "--max_seconds", x))
        for x in ("inf", "10")
    )
    assert np.array_equal(whole["long"], parts["long"])
    assert len(whole["longer"]) == len(parts["longer"])
    claimed = json.loads((tmp_path / "10/scorer").read_text())
    assert claimed["max_seconds"] == 10


def test_half_precision_is_near(folder, monkeypatch):
    """In bfloat16, which a CPU has too."""
    monkeypatch.setattr("espnet_atm.scorer._bf16", lambda: True)
    scorer, half = Scorer.from_files(folder), Scorer.from_files(folder, half=True)
    speech = 0.1 * torch.randn(2, 30000), torch.tensor([30000, 21000])
    exact, frames = scorer.score(*speech)
    near, same = half.score(*speech)
    assert torch.equal(frames, same) and near.dtype == torch.float32
    assert (near - exact).abs().max() < 0.02
    assert half.depends_on_padding() == scorer.depends_on_padding()


@pytest.mark.parametrize("time", [0.8, 1.5])
def test_an_event_is_where_the_grid_says(folder, time):
    """To within a frame: other noise for 40 ms, as loud, changes what is around it."""
    scorer = Scorer.from_files(folder)
    generator = torch.Generator().manual_seed(3)
    # Long enough for attention to be about the same with and without.
    speech = 0.1 * torch.randn(1, 40000, generator=generator)
    event, first = speech.clone(), int(16000 * (time - 0.02))
    event[:, first : first + 640] = 0.1 * torch.randn(640, generator=generator)
    length = torch.tensor([40000])
    without, frames = scorer.log_probs(speech, length)
    with_it, _ = scorer.log_probs(event, length)
    change = (with_it - without)[0, : int(frames)].double().square().sum(dim=-1)
    # Normalisation and attention carry a little of it everywhere.
    change *= change > change.max() / 4
    centres = scorer.grid.offset + scorer.grid.shift * torch.arange(len(change))
    found = float((change * centres).sum() / change.sum())
    assert abs(found - 16000 * time) < scorer.grid.shift


def test_scores_inside_training_are_those_stored(
    folder, corpus, list_of, tmp_path, ssl_command
):
    """Also beside a longer utterance, on the frames of the encoder."""
    scores = score(folder, list_of, tmp_path / "scores")
    ssl_conf = {"masker": "atm", "scorer": {"model": str(folder)}}
    command = ssl_command(("speech", "text"), ssl_conf=ssl_conf)
    torch.manual_seed(0)
    args = arguments(command)
    ATMSSLTask.check_args(args)
    model = ATMSSLTask.build_model(args).eval()
    grid, stored = model.encoder_grid(), tracks_of(scores)
    files = dict(line.split() for line in list_of.read_text().splitlines())
    names = ("utt0", "long", "utt7")
    rows = [torch.from_numpy(soundfile.read(files[x], dtype="float32")[0]) for x in names]
    lengths = torch.tensor([len(x) for x in rows])
    frames = torch.tensor([grid.length(len(x)) for x in rows])
    speech = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    found = model.score(speech, lengths, frames)
    shift, offset = (float((scores / f"frame_{x}").read_text()) for x in ("shift", "offset"))
    for row, utt, count in zip(found, names, frames.tolist()):
        expected = align_track(
            stored[utt], int(shift), grid.shift, count, offset, grid.offset
        )
        # half a stored byte, and what batches differ by
        assert np.abs(row[:count].numpy() - expected).max() <= 1.02 / 255
        assert not row[count:].any()


@pytest.mark.parametrize("option", ["--asr_train_config", "--asr_model_file"])
def test_two_names_of_a_scorer(asr, list_of, tmp_path, option):
    with pytest.raises(UserError, match="give --scorer TAG_OR_FOLDER, or both"):
        score(asr[0].parent, list_of, tmp_path / "x", option, "y")
    with pytest.raises(UserError, match="give --scorer TAG_OR_FOLDER, or both"):
        main(["--wav_scp", str(list_of), "--output_dir", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_one_clear_line(make_ctc, list_of, tmp_path):
    """What a user sees of a tag that cannot be had, and of a folder without a head."""
    headless = make_ctc(head="AutoModelForPreTraining")
    for name, message in (
        ("nobody/nothing-at-all", "no such scorer could be had"),
        (headless, "has no CTC head"),
    ):
        command = [sys.executable, "-m", "espnet_atm.bin.score", "--scorer", name]
        command += ["--wav_scp", list_of, "--output_dir", tmp_path / "x"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith(f"espnet_atm.bin.score: error: {name}: ")
        assert message in line

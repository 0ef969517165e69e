import os

import pytest
import torch
import yaml
from conftest import CNN, CONFORMER, SSL_CONFIG, random_states
from espnet2.tasks.asr import ASRTask

from espnet_atm.audio import resample
from espnet_atm.confidence import frame_confidence, utterance_confidence
from espnet_atm.errors import UserError
from espnet_atm.frames import FrameGrid
from espnet_atm.scorer import Scorer
from espnet_atm.speech import _model, speech_probability


@pytest.fixture(scope="module")
def scorer(asr) -> Scorer:
    return Scorer.from_files(*asr)


def test_scores_are_the_largest_posteriors(asr, scorer):
    speech = torch.randn(1, 20000)
    model, _ = ASRTask.build_model_from_file(*map(str, asr))
    model.eval()
    with torch.no_grad():
        encoded, lengths = model.encode(speech, torch.tensor([20000]))
        expected = model.ctc.softmax(encoded).max(dim=-1).values
    confidence, frames = scorer.score(speech, torch.tensor([20000]))
    assert torch.equal(frames, lengths)
    torch.testing.assert_close(confidence, expected)
    other, _ = scorer.score(speech, torch.tensor([20000]), measure="entropy")
    log_probs, _ = scorer.log_probs(speech, torch.tensor([20000]))
    torch.testing.assert_close(other, frame_confidence(log_probs, "entropy"))


def test_padding_has_no_confidence_and_hardly_an_effect(scorer):
    speech = torch.randn(2, 20000)
    lengths = torch.tensor([20000, 12000])
    both, frames = scorer.score(speech, lengths)
    alone, count = scorer.score(speech[1:, :12000], lengths[1:])
    assert frames[1] == count[0]
    # ESPnet's STFT mirrors the end of a single utterance, and sees zeros in a batch.
    torch.testing.assert_close(both[1, : int(count)], alone[0], atol=5e-3, rtol=0)
    assert (both[1, int(count) :] == 0).all()


def test_the_speech_gate_multiplies(scorer, spoken):
    pairs = [spoken["clean"], spoken["purenoise"]]
    speech = torch.nn.utils.rnn.pad_sequence(pairs, batch_first=True)
    lengths = torch.tensor([len(x) for x in pairs])
    plain, frames = scorer.score(speech, lengths, smooth=3)
    gated, same = scorer.score(speech, lengths, smooth=3, speech_gate=True)
    probability = speech_probability(speech, lengths, 16000, scorer.grid, frames)
    assert torch.equal(frames, same)
    torch.testing.assert_close(gated, plain * probability)
    means = utterance_confidence(gated, frames)
    assert means[1] < means[0] / 10
    assert not scorer.depends_on_padding(speech_gate=True)


def test_the_speech_gate_hears_a_long_utterance_as_a_whole(scorer, spoken):
    speech = torch.cat([spoken["clean"], spoken["purenoise"], spoken["room"]])
    length = torch.tensor([len(speech)])
    plain = scorer.score_long(speech, 32000)
    gated = scorer.score_long(speech, 32000, speech_gate=True)
    frames = torch.tensor([len(plain)])
    probability = speech_probability(speech[None], length, 16000, scorer.grid, frames)
    torch.testing.assert_close(gated, plain * probability[0])


@pytest.mark.parametrize("rate", [8000, 22050])
def test_the_speech_gate_at_other_rates(make_asr, spoken, rate):
    front_end = {"n_fft": 512, "win_length": 400, "hop_length": 160, "fs": rate}
    scorer = Scorer.from_files(*make_asr(frontend_conf=front_end))
    means = []
    for condition in ("clean", "purenoise"):
        x = torch.from_numpy(resample(spoken[condition].numpy(), 16000, rate))
        one = x[None], torch.tensor([len(x)])
        gated, frames = scorer.score(*one, speech_gate=True)
        means.append(float(utterance_confidence(gated, frames)))
    assert means[1] < means[0] / 10


def test_grid_follows_the_layers(scorer):
    assert (scorer.grid.shift, scorer.grid.offset) == (640, 479.5)
    assert scorer.sampling_rate == 16000


def test_grid_of_other_front_ends(make_asr):
    encoder = dict(
        input_layer="linear",
        output_size=16,
        attention_heads=2,
        linear_units=16,
        num_blocks=1,
    )
    files = make_asr(
        frontend="wav2vec_cnn",
        frontend_conf={**CNN, "norm_mode": "group_norm"},
        encoder="transformer",
        encoder_conf=encoder,
        normalize=None,
    )
    grid = Scorer.from_files(*files).grid
    assert grid == FrameGrid(320, 199.5, grid.layers) and grid.layers
    # sinc convolutions over sliding windows: measured
    files = make_asr(
        frontend="sliding_window",
        frontend_conf={"hop_length": 160, "win_length": 400},
        preencoder="sinc",
        preencoder_conf={"fs": 16000},
        normalize=None,
        encoder="transformer",
        encoder_conf=encoder,
    )
    scorer = Scorer.from_files(*files)
    _, frames = scorer.score(torch.randn(1, 48000), torch.tensor([48000]))
    assert abs(48000 / int(frames) - scorer.grid.shift) < 16


def test_a_model_without_ctc_is_refused(make_asr):
    files = make_asr(
        model_conf={"ctc_weight": 0.0},
        decoder="transformer",
        decoder_conf=dict(attention_heads=2, linear_units=8, num_blocks=1),
    )
    with pytest.raises(ValueError, match=r"no CTC head \(ctc_weight: 0.0\)"):
        Scorer.from_files(*files)


@pytest.mark.parametrize("conf", [{}, {"preencoder": "linear"}])
def test_a_scorer_takes_no_random_numbers_of_others(make_asr, spoken, conf):
    """What it is built with is overwritten; who loads it draws as if it had not."""
    if conf.get("preencoder"):
        conf = {**conf, "preencoder_conf": {"input_size": 80, "output_size": 16}}
    files = make_asr(**conf)
    _model.cache_clear()  # as in a new process
    before = random_states()
    scorer = Scorer.from_files(*files)
    speech = spoken["clean"][None]
    scorer.score(speech, torch.tensor([speech.size(1)]), speech_gate=True)
    scorer.depends_on_padding()
    assert random_states() == before


def test_a_scorer_that_is_refused_takes_none_either(make_asr):
    files = make_asr(
        model_conf={"ctc_weight": 0.0},
        decoder="transformer",
        decoder_conf=dict(attention_heads=2, linear_units=8, num_blocks=1),
    )
    before = random_states()
    with pytest.raises(UserError, match="no CTC head"):
        Scorer.from_files(*files)
    assert random_states() == before


def test_missing_files_are_named(asr, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        Scorer.from_files(asr[0], tmp_path / "nothing.pth")


# A scorer that padding leaks into: by group norm over time, and by positions that are
# a convolution. 8 is the bias of its blank.
GROUP_NORM = dict(
    frontend="wav2vec_cnn",
    frontend_conf={**CNN, "norm_mode": "group_norm"},
    encoder_conf={**CONFORMER, "input_layer": "linear"},
    normalize=None,
)
CONV_POSITIONS = dict(
    frontend="wav2vec_cnn",
    frontend_conf=CNN,
    preencoder="linear",
    preencoder_conf={"input_size": 8, "output_size": 16},
    encoder="transformer",
    encoder_conf=dict(
        input_layer="wav2vec",
        pos_enc_layer_type="conv",
        output_size=16,
        attention_heads=2,
        linear_units=16,
        num_blocks=2,
    ),
    normalize=None,
)


def test_padding_does_not_leak_into_a_conformer(scorer):
    assert not scorer.depends_on_padding()
    assert not scorer.depends_on_padding(temperature=0.5, smooth=3)


@pytest.mark.parametrize("conf", [GROUP_NORM, CONV_POSITIONS])
def test_leaks_are_found(make_asr, conf):
    assert Scorer.from_files(*make_asr(**conf)).depends_on_padding()


@pytest.mark.parametrize("conf", [GROUP_NORM, CONV_POSITIONS])
def test_a_sure_blank_hides_no_leak(make_asr, conf):
    """The largest posterior hardly moves, and temperature or entropy magnify it."""
    scorer = Scorer.from_files(*make_asr(**conf))
    with torch.no_grad():
        scorer.model.ctc.ctc_lo.bias[0] = 8
    assert scorer.depends_on_padding(temperature=4.0)


@pytest.fixture
def state(asr):
    return torch.load(asr[1], weights_only=True)


@pytest.mark.parametrize(
    "part, message",
    [
        ("ctc.", "are not in it: ctc.ctc_lo"),
        ("encoder.", "are not in it: encoder."),
        ("encoder.encoders.1.", "are not in it: encoder.encoders.1."),
        ("frontend.", "are not in it: frontend."),
    ],
)
def test_weights_that_are_missing_are_named(asr, state, tmp_path, part, message):
    kept = {k: v for k, v in state.items() if not k.startswith(part)}
    torch.save(kept, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"x.pth: .*config.yaml: weights {message}"):
        Scorer.from_files(asr[0], tmp_path / "x.pth")


def test_weights_of_other_models(asr, make_asr, state, tmp_path):
    deeper = make_asr(encoder_conf={**CONFORMER, "input_layer": "conv2d", "num_blocks": 3})
    with pytest.raises(UserError, match="not in the model: encoder.encoders.2"):
        Scorer.from_files(asr[0], deeper[1])
    with pytest.raises(UserError, match="are not in it: encoder.encoders.2"):
        Scorer.from_files(deeper[0], asr[1])
    tokens = make_asr(token_list=["<blank>", "<unk>", *"abcdefgh", "<sos/eos>"])
    with pytest.raises(UserError, match="ctc.ctc_lo"):
        Scorer.from_files(asr[0], tokens[1])
    state["encoder.after_norm.weight"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match="not finite: encoder.after_norm.weight"):
        Scorer.from_files(asr[0], tmp_path / "nan.pth")


def test_a_decoder_is_not_looked_at(make_asr, tmp_path):
    asr = make_asr(
        decoder="transformer",
        decoder_conf={"linear_units": 16, "num_blocks": 1},
        model_conf={"ctc_weight": 0.5},
    )
    weights = torch.load(asr[1], weights_only=True)
    kept = {k: v for k, v in weights.items() if not k.startswith("decoder.")}
    assert len(kept) < len(weights)
    torch.save(kept, tmp_path / "x.pth")
    Scorer.from_files(asr[0], tmp_path / "x.pth")


def test_what_is_no_model_of_asr(asr, tmp_path):
    (tmp_path / "empty").write_text("")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "ssl.yaml").write_text(yaml.safe_dump(SSL_CONFIG))
    config = yaml.safe_load(asr[0].read_text())
    for name, change in (
        ("encoder", {"encoder": "nothing"}),
        ("fs", {"frontend_conf": {**config["frontend_conf"], "fs": "fast"}}),
        ("zero", {"frontend_conf": {**config["frontend_conf"], "fs": 0}}),
        ("stats", {"normalize": "global_mvn", "normalize_conf": {"stats_file": "/x.npz"}}),
        ("tokens", {"token_list": None}),
    ):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**config, **change}))
    os.mkfifo(tmp_path / "fifo")
    for files, message in (
        ((asr[1], asr[0]), "model.pth: is no text"),
        ((tmp_path, asr[1]), "is a folder"),
        ((asr[0], tmp_path), "is a folder"),
        ((tmp_path / "fifo", asr[1]), "fifo: is a pipe"),
        ((asr[0], tmp_path / "fifo"), "fifo: is a pipe"),
        ((tmp_path / "empty", asr[1]), "empty: holds no options"),
        ((asr[0], tmp_path / "empty"), "empty: is empty"),
        ((tmp_path / "list.yaml", asr[1]), "list.yaml: holds no options"),
        ((tmp_path / "ssl.yaml", asr[1]), "ssl.yaml: is not the config.yaml of an ASR"),
        ((tmp_path / "encoder.yaml", asr[1]), "encoder.yaml: no ASR model can be built"),
        ((tmp_path / "fs.yaml", asr[1]), "fs.yaml: "),
        ((tmp_path / "zero.yaml", asr[1]), "zero.yaml: "),
        ((tmp_path / "stats.yaml", asr[1]), "stats.yaml: .*x.npz"),
        ((tmp_path / "tokens.yaml", asr[1]), "tokens.yaml: no ASR model can be built"),
    ):
        with pytest.raises(UserError, match=message) as e:
            Scorer.from_files(*files)
        assert "\n" not in str(e.value)

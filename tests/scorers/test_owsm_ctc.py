import re

import pytest
import torch
import yaml
from conftest import OWSM_CONFIG, random_states
from espnet2.bin.s2t_inference import Speech2Text
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    MultiHeadedAttention,
)
from espnet2.tasks.s2t import S2TTask as AttentionTask

from espnet_atm.errors import UserError
from espnet_atm.randomness import random_state_kept
from espnet_atm.scorer import Scorer
from espnet_atm.scorers.owsm_ctc import load

WINDOW = 4 * 16000


@pytest.fixture(scope="module")
def owsm(make_owsm):
    return make_owsm()


@pytest.fixture(scope="module")
def scorer(owsm) -> Scorer:
    return load(*owsm)


def owsm_config(part: str, **changes) -> dict:
    return {part: {**OWSM_CONFIG[part], **changes}}


def espnets_log_probs(files, speech, lang, task) -> torch.Tensor:
    """(1, N) -> (1, T, V), of all the window, by ESPnet's own inference."""
    model = Speech2Text(*map(str, files), token_type="char")
    with torch.no_grad():
        encoded, _ = model._encode(
            model._pad_or_trim(speech), [model.s2t_model.na], lang, task
        )
        encoded = model.s2t_model.frames(encoded, torch.zeros(1, 2))
        return model.s2t_model.ctc.log_softmax(encoded)


@pytest.mark.parametrize(
    "options, prompt",
    [
        ({}, ("<nolang>", "<asr>")),
        ({"lang": "deu"}, ("<deu>", "<asr>")),
        ({"lang": "<eng>", "task": "st_deu"}, ("<eng>", "<st_deu>")),
    ],
)
def test_posteriors_are_those_of_espnets_inference(owsm, options, prompt):
    scorer = load(*owsm, **options)
    speech = 0.1 * torch.randn(1, 40000)
    expected = espnets_log_probs(owsm, speech, *prompt)
    found, frames = scorer.log_probs(speech, torch.tensor([40000]))
    assert scorer.prompt == prompt
    assert found.shape == (1, frames, len(OWSM_CONFIG["token_list"]))
    torch.testing.assert_close(found, expected[:, : int(frames)])
    confidence, _ = scorer.score(speech, torch.tensor([40000]))
    torch.testing.assert_close(confidence, found.exp().amax(dim=-1))


def test_the_published_window(make_owsm):
    files = make_owsm(**owsm_config("preprocessor_conf", speech_length=30))
    scorer = load(*files)
    assert scorer.window == 480000
    speech = 0.1 * torch.randn(1, 480000)
    expected = espnets_log_probs(files, speech, "<nolang>", "<asr>")
    found, frames = scorer.log_probs(speech, torch.tensor([480000]))
    assert int(frames) == 374
    torch.testing.assert_close(found, expected)


def test_language_and_task_matter(owsm):
    speech, length = 0.1 * torch.randn(1, 30000), torch.tensor([30000])
    prompts = ({}, {"lang": "eng"}, {"lang": "deu"}, {"task": "st_deu"})
    tracks = [load(*owsm, **x).score(speech, length)[0] for x in prompts]
    for i, track in enumerate(tracks):
        assert all((track - other).abs().max() > 1e-4 for other in tracks[:i])


@pytest.mark.parametrize(
    "tokens, conf, symbol",
    [
        ({"<nolang>": "<none>"}, {"nolang_symbol": "<none>"}, "<none>"),
        ({}, {"nolang_symbol": None}, "<nolang>"),
        ({"<nolang>": "<fra>"}, {"nolang_symbol": "<nolang>"}, "<unk>"),
    ],
)
def test_an_unknown_language_as_espnet_calls_it(make_owsm, tokens, conf, symbol):
    files = make_owsm(
        token_list=[tokens.get(x, x) for x in OWSM_CONFIG["token_list"]],
        **owsm_config("preprocessor_conf", **conf),
    )
    assert load(*files).prompt == (symbol, "<asr>")
    assert Speech2Text(*map(str, files)).no_language() == symbol


def test_symbols_that_the_model_lacks(make_owsm, owsm):
    for options, message in (
        ({"lang": "ger"}, r"lang: ger: <ger> is not .*config.yaml, .* <deu>"),
        ({"lang": ""}, "lang: : <> is not in the token list"),
        ({"lang": False}, "lang: False: <False> is not in the token list"),
        ({"task": "st_eng"}, r"task: st_eng: <st_eng> is not .* <st_deu>"),
    ):
        with pytest.raises(UserError, match=message) as e:
            load(*owsm, **options)
        assert "<0.0" not in str(e.value)
    names = {"<nolang>": "x", "<unk>": "y", "<asr>": "<pr>"}
    files = make_owsm(token_list=[names.get(x, x) for x in OWSM_CONFIG["token_list"]])
    with pytest.raises(UserError, match="no symbol for an unknown language .*give lang"):
        load(*files)
    with pytest.raises(UserError, match="task: <asr>: <asr> is not .* <pr>"):
        load(*files, lang="eng")


def test_a_batch_is_scored_as_each_alone(scorer):
    lengths = [50000, 1121, 30001, 64000, 1120]
    speech = 0.1 * torch.randn(len(lengths), 64000)  # noise beyond the ends, too
    both, frames = scorer.score(speech, torch.tensor(lengths))
    for row, length, found, count in zip(speech, lengths, both, frames.tolist()):
        assert (found[count:] == 0).all()
        assert scorer.is_too_short(length) == (count == 0)
        if count:
            alone, same = scorer.score(row[None, :length], torch.tensor([length]))
            assert int(same) == count
            torch.testing.assert_close(found[:count], alone[0])
    assert not scorer.depends_on_padding(temperature=2.0)
    assert not Scorer.depends_on_padding(scorer)  # the probe agrees


def test_frames_are_those_with_their_centres_in_the_audio(scorer):
    grid = scorer.grid
    assert (grid.shift, grid.offset) == (1280, 1119.5)
    lengths = torch.tensor([1121, 2399, 2400, 2401, 30000, 62558, 62559, 62561, 63999])
    centres = grid.offset + grid.shift * torch.arange(grid.length(WINDOW))
    expected = (centres <= lengths[:, None] - 1).sum(dim=1)
    _, frames = scorer.score(0.1 * torch.randn(len(lengths), WINDOW), lengths)
    assert frames.tolist() == expected.tolist()
    assert frames.tolist()[:4] == [1, 1, 1, 2]


def test_audio_of_no_frame_and_of_more_than_a_window(scorer):
    assert scorer.is_too_short(1120) and not scorer.is_too_short(1121)
    with pytest.raises(ValueError, match="1000 samples are too short for one frame"):
        scorer.score(torch.randn(1, 1000), torch.tensor([1000]))
    with pytest.raises(ValueError, match="64001 samples are more than a window's 64000"):
        scorer.log_probs(torch.randn(1, 64001), torch.tensor([64001]))


@pytest.fixture(scope="module")
def local(make_owsm) -> Scorer:
    """A scorer that hears nothing but what is around a frame."""
    relative = dict(attention_layer_type="rel_selfattn", pos_enc_layer_type="rel_pos")
    files = make_owsm(normalize=None, **owsm_config("encoder_conf", **relative))
    scorer = load(*files)
    for module in scorer.model.encoder.modules():
        if isinstance(module, MultiHeadedAttention):
            torch.nn.init.zeros_(module.linear_out.weight)
    return scorer


def loudest_change(scorer: Scorer, seconds: float, time: float) -> float:
    """Seconds of the centre of what a burst changes in an utterance."""
    speech = 1e-3 * torch.randn(int(seconds * 16000))
    burst = speech.clone()
    first = int(time * 16000) - 400
    burst[first : first + 800] = torch.randn(800)
    lengths = torch.tensor([len(speech)] * 2)
    if len(speech) > scorer.window:
        found, frames = scorer.score(torch.stack([speech, burst]), lengths)
        change = (found[1] - found[0]).abs()
    else:
        found, frames = scorer.log_probs(torch.stack([speech, burst]), lengths)
        change = (found[1] - found[0]).abs().sum(dim=-1)
    change = change**2
    steps = torch.arange(int(frames[0]))
    centre = float((steps * change).sum() / change.sum())
    return (scorer.grid.offset + scorer.grid.shift * centre) / 16000


@pytest.mark.parametrize("time", [0.5, 1.0, 2.03, 3.5])
def test_frames_are_where_the_grid_says(local, time):
    assert abs(loudest_change(local, 3.9, time) - time) < local.grid.shift / 16000


@pytest.mark.parametrize("time", [1.0, 3.7, 8.33, 11.6])
def test_frames_of_windows_are_where_the_grid_says(local, time):
    assert abs(loudest_change(local, 12.34, time) - time) < local.grid.shift / 16000


@pytest.mark.parametrize("layer, shift", [("conv2d", 640), ("conv2d6", 960)])
def test_other_subsamplings(make_owsm, layer, shift):
    scorer = load(*make_owsm(**owsm_config("encoder_conf", input_layer=layer)))
    assert scorer.grid.shift == shift
    _, frames = scorer.score(torch.randn(1, 32000), torch.tensor([32000]))
    assert int(frames) == (32000 - 1 - scorer.grid.offset) // shift + 1


def test_long_audio_is_scored_in_windows(scorer, local):
    lengths = torch.tensor([70 * 16000, 20000])
    speech = 0.1 * torch.randn(2, int(lengths[0]))
    found, frames = scorer.score(speech, lengths)
    centres = scorer.grid.offset + scorer.grid.shift * torch.arange(900)
    assert frames.tolist() == [int((centres < n).sum()) for n in lengths]
    assert ((found > 0).sum(dim=1) == frames).all()
    short, _ = scorer.score(speech[1:, :20000], lengths[1:])
    torch.testing.assert_close(found[1, : frames[1]], short[0])
    # Where a frame hears what is around it alone, windows join without a seam.
    whole = local.score_long(speech[0], 1 << 40)
    other = local.score_long(speech[0], 56000)
    assert len(whole) == frames[0]
    torch.testing.assert_close(whole, other)


def test_half_precision(owsm):
    scorer = load(*owsm)
    speech, lengths = 0.1 * torch.randn(2, 60000), torch.tensor([60000, 41000])
    full, frames = scorer.log_probs(speech, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        found, same = scorer._posteriors(speech, lengths)
    assert found.dtype == torch.bfloat16 and torch.equal(same, frames)
    assert (found.float().exp() - full.exp()).abs().max() < 0.03


def test_a_scorer_takes_no_random_numbers_of_others(owsm):
    before = random_states()
    with random_state_kept():
        scorer = load(*owsm)
        scorer.score(torch.ones(1, 20000), torch.tensor([20000]))
    assert random_states() == before


@pytest.fixture
def state(owsm):
    return torch.load(owsm[1], weights_only=True)


@pytest.mark.parametrize(
    "part",
    [
        *("ctc.", "encoder.encoders.1.", "encoder.conditioning_layer.", "frontend."),
        *("prompt_encoder.", "embed.", "embed_proj.", "prompt_proj."),
    ],
)
def test_weights_that_are_missing_are_named(owsm, state, tmp_path, part):
    kept = {k: v for k, v in state.items() if not k.startswith(part)}
    assert len(kept) < len(state)
    torch.save(kept, tmp_path / "x.pth")
    message = f"x.pth: .*config.yaml: weights are not in it: {re.escape(part)}"
    with pytest.raises(UserError, match=message):
        load(owsm[0], tmp_path / "x.pth")


def test_weights_of_other_models(owsm, make_owsm, make_asr, state, tmp_path):
    with pytest.raises(UserError, match="size mismatch for encoder"):
        load(owsm[0], make_asr()[1])
    deeper = make_owsm(**owsm_config("encoder_conf", num_blocks=3))
    with pytest.raises(UserError, match="not in the model: encoder.encoders.2"):
        load(owsm[0], deeper[1])
    tokens = make_owsm(token_list=[*OWSM_CONFIG["token_list"], "c"])
    with pytest.raises(UserError, match="ctc.ctc_lo|embed.weight"):
        load(owsm[0], tokens[1])
    state["embed.weight"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match="not finite: embed.weight"):
        load(owsm[0], tmp_path / "nan.pth")


def test_weights_of_an_earlier_espnet(owsm, state, scorer, tmp_path):
    """As the published models have them."""
    names = {
        f"encoder.embed.out.{x}": f"encoder.embed.out.0.{x}" for x in ("weight", "bias")
    }
    assert names.keys() <= state.keys()
    torch.save({names.get(k, k): v for k, v in state.items()}, tmp_path / "old.pth")
    speech = 0.1 * torch.randn(1, 30000), torch.tensor([30000])
    old = load(owsm[0], tmp_path / "old.pth")
    torch.testing.assert_close(old.score(*speech)[0], scorer.score(*speech)[0])


def test_models_with_attention_are_refused(make_owsm, tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("decoder: transformer\n")
    args = AttentionTask.get_parser().parse_args(
        ["--config", str(file), "--token_list", "x"]
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    with pytest.raises(UserError, match=r"attention \(decoder: transformer\).*OWSM-CTC"):
        load(tmp_path / "config.yaml", make_owsm()[1])


def test_what_is_no_owsm_ctc_model(owsm, make_asr, tmp_path):
    config = yaml.safe_load(owsm[0].read_text())

    def changed(part, **changes):
        return {part: {**config[part], **changes}}

    (tmp_path / "list.yaml").write_text("- 1\n")
    for name, change in (
        ("nothing", {"encoder": "nothing"}),
        ("fs", changed("frontend_conf", fs="fast")),
        ("rates", changed("frontend_conf", fs="8k")),
        ("fs2", changed("preprocessor_conf", fs=0)),
        ("none", {"preprocessor_conf": {"fs": 16000}}),
        ("empty", {"preprocessor_conf": None}),
        ("text", changed("preprocessor_conf", speech_length="30")),
        ("nan", changed("preprocessor_conf", speech_length=float("nan"))),
        ("short", changed("preprocessor_conf", speech_length=0.5)),
        ("shorter", changed("preprocessor_conf", speech_length=0.00001)),
        ("model", {"model": "espnet"}),
        ("tokens", {"token_list": None}),
    ):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**config, **change}))
    for file, message in (
        (tmp_path / "missing.yaml", "missing.yaml"),
        (tmp_path, "is a folder"),
        (tmp_path / "list.yaml", "list.yaml: holds no options"),
        (make_asr()[0], "is not the config.yaml of an OWSM-CTC model: it has no prompt"),
        (tmp_path / "nothing.yaml", "nothing.yaml: no OWSM-CTC model can be built"),
        (tmp_path / "fs.yaml", "fs.yaml: "),
        (tmp_path / "rates.yaml", "rates.yaml: preprocessor_conf.fs: 16000 .*8000"),
        (tmp_path / "fs2.yaml", "preprocessor_conf.fs: 0 is no sampling rate"),
        (tmp_path / "none.yaml", "speech_length: None is no number of seconds"),
        (tmp_path / "empty.yaml", "speech_length: None is no number of seconds"),
        (tmp_path / "text.yaml", "speech_length: '30' is no number of seconds"),
        (tmp_path / "nan.yaml", "speech_length: nan is no number of seconds"),
        (tmp_path / "short.yaml", "8000 samples .*hold 5 frames: too few"),
        (tmp_path / "shorter.yaml", "0 samples .*hold 0 frames: too few"),
        (tmp_path / "model.yaml", "model.yaml: no OWSM-CTC model can be built"),
        (tmp_path / "tokens.yaml", "tokens.yaml: no OWSM-CTC model can be built"),
    ):
        with pytest.raises((UserError, FileNotFoundError), match=message) as e:
            load(file, owsm[1])
        assert "\n" not in str(e.value)
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        load(owsm[0], tmp_path / "nothing.pth")


def test_layers_that_do_not_tell_the_frames(make_owsm):
    for layer in ("linear", "conv1d2"):
        files = make_owsm(**owsm_config("encoder_conf", input_layer=layer))
        with pytest.raises(UserError, match="layers tell of .*input_layer: conv2d8"):
            load(*files)
    files = make_owsm(
        frontend="sliding_window",
        frontend_conf={"hop_length": 160, "win_length": 400},
        normalize=None,
    )
    with pytest.raises(UserError, match="front end SlidingWindow are not known"):
        load(*files)


def test_encoders_and_front_ends_that_cannot_be_used(make_owsm):
    conformer = {"output_size": 16, "attention_heads": 2, "linear_units": 16}
    for change, message in (
        (
            {"encoder": "conformer", "encoder_conf": {**conformer, "num_blocks": 1}},
            "encoder: conformer cannot be told the language",
        ),
        ({"input_size": 80}, r"no frontend \(input_size: 80\)"),
    ):
        with pytest.raises(UserError, match=f"config.yaml: .*{message}"):
            load(*make_owsm(**change))

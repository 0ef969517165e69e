"""CTC models of Hugging Face's, as their users have them."""

import json
import shutil

import pytest
import torch
import transformers
from conftest import LABELS, ON_AUDIO, VOCABULARY, random_states
from safetensors.torch import load_file, save_file

from espnet_atm.confidence import frame_confidence
from espnet_atm.errors import UserError
from espnet_atm.scorer import Scorer

BLANK = VOCABULARY.index("<pad>")
# The frames: samples to the next, centre of the first.
GRIDS = {
    "wav2vec2": (320, 199.5),
    "hubert": (320, 199.5),
    "wavlm": (320, 199.5),
    "data2vec-audio": (320, 199.5),
    "wav2vec2-conformer": (320, 199.5),
    "wav2vec2-bert": (320, 279.5),
    "parakeet_ctc": (1280, 0.0),
}


@pytest.fixture(scope="module")
def folder(make_ctc):
    return make_ctc()


def speech_of(samples: int) -> tuple:
    return 0.1 * torch.randn(1, samples), torch.tensor([samples])


@pytest.mark.parametrize("model_type", GRIDS)
def test_scores_are_the_models(make_ctc, model_type):
    folder = make_ctc(model_type)
    scorer = Scorer.from_files(folder)
    assert (scorer.grid.shift, scorer.grid.offset) == GRIDS[model_type]
    assert (scorer.sampling_rate, scorer.blank_id) == (16000, BLANK)
    speech, length = speech_of(20000)
    model = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(speech[0].numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.log_softmax(-1)
    log_probs, frames = scorer.log_probs(speech, length)
    end = scorer.grid.length(20000)
    # The last frame may be one that the extractor fills up.
    assert int(frames) == end and expected.size(1) in (end, end + 1)
    torch.testing.assert_close(log_probs, expected)
    found, _ = scorer.score(speech, length, include_blank=False)
    without = frame_confidence(expected, blank_id=BLANK, include_blank=False)
    torch.testing.assert_close(found[:, :end], without[:, :end])
    scorer.blank_id = int(expected[0, 0].argmax())
    assert not torch.equal(found, scorer.score(speech, length, include_blank=False)[0])


@pytest.mark.parametrize("options", [{}, {"num_adapter_layers": 1}])
@pytest.mark.parametrize("model_type", ["wav2vec2", "wav2vec2-bert"])
def test_an_adapter_makes_longer_frames(make_ctc, model_type, options):
    adapter = {"add_adapter": True, "output_hidden_size": 16, **options}
    scorer = Scorer.from_files(make_ctc(model_type, **adapter))
    usual = {"wav2vec2": 3, "wav2vec2-bert": 1}[model_type]
    assert scorer.grid.shift == 320 * 2 ** options.get("num_adapter_layers", usual)
    assert scorer.grid.layers


@pytest.mark.parametrize(
    "model_type, norm, leaks",
    [
        ("wav2vec2", "layer", False),
        ("hubert", "layer", False),
        ("wavlm", "layer", False),
        ("wav2vec2-bert", None, False),
        ("parakeet_ctc", None, False),
        ("wav2vec2", "group", True),
        ("hubert", "group", True),
        ("wavlm", "group", True),
    ],
)
def test_leaks_of_padding(make_ctc, model_type, norm, leaks):
    options = {"feat_extract_norm": norm} if norm else {}
    scorer = Scorer.from_files(make_ctc(model_type, **options))
    assert scorer.depends_on_padding() == leaks
    if not leaks:
        speech = 0.1 * torch.randn(2, 20000)
        both, frames = scorer.score(speech, torch.tensor([20000, 12345]))
        alone, count = scorer.score(speech[1:, :12345], torch.tensor([12345]))
        assert frames[1] == count[0]
        assert (both[1, : int(count)] - alone[0, : int(count)]).abs().max() < 0.5 / 255
        assert (both[1, int(count) :] == 0).all()


def test_frames_that_no_layers_tell_are_scored_alone(make_ctc, monkeypatch):
    """As of an architecture that is not known here."""

    def unknown(config, extractor):
        raise AttributeError

    monkeypatch.setattr("espnet_atm.scorers.huggingface_ctc._layers", unknown)
    scorer = Scorer.from_files(make_ctc())
    assert scorer.grid.shift == 320 and abs(scorer.grid.offset - 199.5) <= 160
    assert not scorer.grid.layers and scorer.depends_on_padding()


def test_half_precision_is_near(folder):
    speech, length = speech_of(20000)
    scorer, half = Scorer.from_files(folder), Scorer.from_files(folder, half=True)
    exact, near = scorer.score(speech, length)[0], half.score(speech, length)[0]
    assert near.dtype == torch.float32 and 0 < (exact - near).abs().max() < 0.02
    assert half.depends_on_padding() == scorer.depends_on_padding()


def test_it_takes_no_random_numbers_of_others(folder):
    before = random_states()
    Scorer.from_files(folder).depends_on_padding()
    assert random_states() == before


def changed(folder, tmp_path, **files):
    """A copy with other files; None takes one out."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    for name, content in files.items():
        file = copy / name.replace("_json", ".json").replace("_safetensors", ".safetensors")
        if content is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(content)
    return copy


def refused(folder, message, **options) -> None:
    with pytest.raises(UserError, match=message) as e:
        Scorer.from_files(folder, **options)
    assert "\n" not in str(e.value) and str(folder) in str(e.value)


def test_models_without_ctc(make_ctc, tmp_path):
    refused(
        make_ctc(head="AutoModelForPreTraining"),
        r"has no CTC head: lm_head.bias, lm_head.weight .*Wav2Vec2ForPreTraining",
    )
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16
    )
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path, "is no CTC model: transformers has none of the type 'whisper'")


def test_processors_that_are_missing(folder, tmp_path):
    copy = changed(folder, tmp_path, processor_config_json=None)
    refused(copy, "has no feature extractor; write it there by processor.save_pretrained")
    names = ("vocab_json", "tokenizer_config_json", "added_tokens_json")
    copy = changed(folder, tmp_path, **dict.fromkeys(names))
    refused(copy, "has no tokenizer")


def test_configs_that_are_damaged(folder, tmp_path):
    refused(changed(folder, tmp_path, config_json="{"), "config.json is of no model")
    unknown = json.dumps({"model_type": "nothing"})
    refused(changed(folder, tmp_path, config_json=unknown), "config.json is of no model")
    config = json.loads((folder / "config.json").read_text())
    config = json.dumps({**config, "vocab_size": 2})
    refused(changed(folder, tmp_path, config_json=config), "cannot be loaded")


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCTC": "own.Model"}
    copy = changed(folder, tmp_path, config_json=json.dumps(config))
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refused(copy, "config.json is of no model")
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_damaged(folder, tmp_path):
    copy = changed(folder, tmp_path)
    state = load_file(folder / "model.safetensors")
    file = copy / "model.safetensors"
    name = next(k for k in state if "attention.k_proj.weight" in k)
    kept = {k: v for k, v in state.items() if k != name}
    save_file(kept, file, {"format": "pt"})
    refused(copy, f"weights are not in it: {name}")
    save_file({**kept, name: state[name] * float("nan")}, file, {"format": "pt"})
    refused(copy, f"not finite: {name}")
    file.write_bytes((folder / "model.safetensors").read_bytes()[:-5000])
    refused(copy, "cannot be loaded")
    file.unlink()
    refused(copy, "holds no weights: neither model.safetensors nor pytorch_model.bin")


def test_what_is_of_training_may_be_missing(folder, tmp_path):
    copy = changed(folder, tmp_path)
    state = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in state.items() if not k.endswith("masked_spec_embed")}
    save_file(kept, copy / "model.safetensors", {"format": "pt"})
    Scorer.from_files(copy)


def test_a_blank_that_is_no_label(folder, tmp_path):
    words = {x: i for i, x in enumerate([*"abcdefgh", "<pad>", "<s>", "</s>", "|"])}
    names = dict.fromkeys(("tokenizer_config_json", "added_tokens_json"))
    copy = changed(folder, tmp_path, vocab_json=json.dumps(words), **names)
    refused(copy, "pad_token_id 8 of its tokenizer.* is none of the 6 labels")


@pytest.fixture(scope="module")
def mms(tmp_path_factory):
    """MMS: adapters and a vocabulary for each language, the base model's of ``eng``."""
    folder = tmp_path_factory.mktemp("mms")
    config = transformers.Wav2Vec2Config(
        **{**ON_AUDIO, **LABELS, "adapter_attn_dim": 4, "pad_token_id": 0},
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    vocabularies = {
        "eng": ["<pad>", "<s>", "</s>", "<unk>", "|", "a"],
        "deu": ["<pad>", "<s>", "</s>", "<unk>", "|", "a", "b", "c"],
    }
    torch.manual_seed(0)
    for lang in ("deu", "eng"):
        model = transformers.Wav2Vec2ForCTC(config.__class__(
            **{**config.to_dict(), "vocab_size": len(vocabularies[lang])}
        ))
        for name, x in model.named_parameters():
            if "adapter_layer" in name:  # they begin as nothing
                torch.nn.init.normal_(x, std=0.5)
        weights = model._get_adapters()
        save_file(
            {k: v.detach().contiguous() for k, v in weights.items()},
            folder / f"adapter.{lang}.safetensors",
            {"format": "pt"},
        )
    model.save_pretrained(folder)
    nested = {k: {x: i for i, x in enumerate(v)} for k, v in vocabularies.items()}
    (folder / "vocab.json").write_text(json.dumps(nested))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), target_lang="eng"
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    return folder


def test_languages_of_mms(mms):
    speech, length = speech_of(20000)
    plain = Scorer.from_files(mms)
    same, other = (Scorer.from_files(mms, lang=x) for x in ("eng", "deu"))
    for scorer, labels in ((plain, 6), (same, 6), (other, 8)):
        assert scorer.log_probs(speech, length)[0].size(-1) == labels
        assert scorer.blank_id == 0
    torch.testing.assert_close(plain.score(speech, length), same.score(speech, length))
    assert not torch.equal(plain.score(speech, length)[0], other.score(speech, length)[0])
    refused(mms, "lang: 'xyz'", lang="xyz")


def test_a_language_without_adapters_is_refused(folder):
    refused(folder, "lang: 'eng'.* has no adapters of languages", lang="eng")

import pytest
import torch
import transformers
import yaml

from espnet_atm.errors import UserError
from espnet_atm.huggingface import import_model, read, to_espnet, to_huggingface
from espnet_atm.task import ATMSSLTask

SMALL = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    conv_dim=[16] * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    num_codevectors_per_group=6,
    codevector_dim=8,
    proj_codevector_dim=8,
    num_negatives=5,
)
LAYOUTS = {
    "base": dict(feat_extract_norm="group", do_stable_layer_norm=False),
    "large": dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
}
CASES = [
    ("wav2vec2", "base", False),
    ("wav2vec2", "large", True),
    ("hubert", "base", True),
    ("hubert", "large", False),
]


def save(folder, kind="wav2vec2", layout="base", normalize=True, cls=None, **config):
    """A random model in a folder, as its users have it, and the model."""
    config = {**SMALL, **LAYOUTS[layout], **config}
    if kind == "hubert":
        config = {k: v for k, v in config.items() if "code" not in k and "nega" not in k}
        cls = cls or transformers.HubertModel
    cls = cls or transformers.Wav2Vec2ForPreTraining
    model = cls(cls.config_class(**config)).eval()
    for weight in model.parameters():  # norms and biases too, which begin as 1 and 0
        weight.data += 0.2 * torch.randn_like(weight) if weight.ndim < 2 else 0
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=normalize, return_attention_mask=layout == "large"
    ).save_pretrained(folder)
    return model


def imported(folder, **options):
    """The SSL model with the weights of the folder."""
    config, normalize, state, _ = read(folder)
    train, weights = to_espnet(config, normalize, state, **options)
    train["ssl_conf"] = {"masker": "random"}
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(train))
    args = ATMSSLTask.get_parser().parse_args(["--config", str(file)])
    args.token_list = []
    model = ATMSSLTask.build_model(args).eval()
    found = model.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    return model, vars(args), found.missing_keys


def outputs_there(model, extractor, speech, mask):
    """What goes into the transformer, each layer's output, and the last, normalised."""
    body = getattr(model, "wav2vec2", model)
    outputs = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in body.encoder.layers
    ]
    inputs = extractor(
        [x.numpy() for x in speech],
        sampling_rate=16000,
        return_tensors="pt",
        padding=True,
        return_attention_mask=mask,
    )
    with torch.no_grad():
        last = body(**inputs).last_hidden_state
    for hook in hooks:
        hook.remove()
    return [*outputs[:-1], last] if body.config.do_stable_layer_norm else outputs


def outputs_here(model, speech):
    """Each layer's output, without masks."""
    lengths = torch.tensor([len(x) for x in speech])
    padded = torch.nn.utils.rnn.pad_sequence(list(speech), batch_first=True)
    # What lies beyond the end is no business of the model's.
    for row, length in zip(padded, lengths):
        row[length:] = 7.0
    with torch.no_grad():
        feats, frames = model._extract_feats(padded, lengths)
        feats, frames = model.preencoder(feats, frames)
        padding = torch.arange(feats.size(1)) >= frames[:, None]
        (last, layers), *_ = model.encoder(feats, frames, masks=padding, return_all_hs=True)
    return [*layers[:-1], last], frames


@pytest.fixture
def speech(spoken):
    """Three utterances of other lengths."""
    names = sorted(x for x in spoken if x != "purenoise")[:3]
    return [spoken[name][:n] for name, n in zip(names, (30000, 16123, 23456))]


@pytest.mark.parametrize("kind, layout, normalize", CASES)
def test_each_layer_puts_out_the_same(tmp_path, speech, kind, layout, normalize):
    there = save(tmp_path, kind, layout, normalize)
    here, _, _ = imported(tmp_path)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    layers, frames = outputs_here(here, speech)
    # Large models are run in batches, with a mask. Base models are run without one: their
    # group norm and attention see padding, so that only single utterances are defined.
    batch = outputs_there(there, extractor, speech, True) if layout == "large" else None
    for row, (x, length) in enumerate(zip(speech, frames)):
        alone = outputs_there(there, extractor, [x], layout == "large")
        assert len(layers) == len(alone) == SMALL["num_hidden_layers"]
        for number, layer in enumerate(layers):
            torch.testing.assert_close(
                layer[row, :length], alone[number][0], atol=1e-4, rtol=0
            )
            if batch is not None:
                torch.testing.assert_close(
                    layer[row, :length], batch[number][row, :length], atol=1e-4, rtol=0
                )


@pytest.mark.parametrize("kind, layout, normalize", CASES)
def test_the_way_back_changes_no_bit(tmp_path, kind, layout, normalize):
    there = save(tmp_path / "there", kind, layout, normalize)
    model, config, missing = imported(tmp_path / "there")
    if kind == "wav2vec2":
        # the rest counts updates and codes
        assert not set(missing) & {name for name, _ in model.named_parameters()}
    back, extractor = to_huggingface(config, model.state_dict())
    back.save_pretrained(tmp_path / "back")
    extractor.save_pretrained(tmp_path / "back")
    again = type(there).from_pretrained(tmp_path / "back").eval()
    state = again.state_dict()
    assert state.keys() == there.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in there.state_dict().items())
    here, that = again.config.to_dict(), there.config.to_dict()
    for option in {*SMALL, *LAYOUTS[layout], "hidden_dropout", "feat_proj_dropout"}:
        assert here.get(option) == that.get(option), option
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "back")
    assert extractor.do_normalize is normalize


def test_the_heads_put_out_the_same(tmp_path, speech):
    there = save(tmp_path, layout="large")
    here, _, _ = imported(tmp_path)
    x = speech[0][None]
    lengths = torch.tensor([x.size(1)])
    with torch.no_grad():
        data = here.encode(x, lengths, confidence=torch.ones(1, 93))
        mask = data["mask_info"]["mask_m"]
        vectors = here.losses[0].quantizer(data["frontend"][mask], data["num_updates"])
        codes = here.losses[0].code_projection(vectors.vectors)
        context = here.losses[0].context_projection(data["encoder_output"][-1][mask])
        extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
        inputs = extractor(x[0].numpy(), sampling_rate=16000, return_tensors="pt")
        out = there(inputs.input_values, mask_time_indices=mask)
    expected = out.projected_states[mask], out.projected_quantized_states[mask]
    torch.testing.assert_close((context, codes), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "kind, cls",
    [
        ("wav2vec2", transformers.Wav2Vec2Model),
        ("wav2vec2", transformers.Wav2Vec2ForCTC),
        ("hubert", transformers.HubertForCTC),
    ],
)
def test_without_heads_of_pretraining(tmp_path, kind, cls):
    there = save(tmp_path, kind, cls=cls, mask_time_prob=0.0)
    model, _, missing = imported(tmp_path)
    parameters = {name for name, _ in model.named_parameters()}
    random = parameters & set(missing)
    assert all(x.startswith(("losses.", "util_modules.")) for x in random) and random
    *_, left_out = read(tmp_path)
    assert any("lm_head" in x for x in left_out) == ("CTC" in cls.__name__)
    body = getattr(there, kind, there)
    weight = body.encoder.layers[0].attention.q_proj.weight
    torch.testing.assert_close(model.encoder.encoders[0].self_attn.linear_q.weight, weight)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(hidden_act="relu"), "hidden_act: 'relu' is computed by no module here"),
        (dict(add_adapter=True), "add_adapter: True"),
        (dict(adapter_attn_dim=8, do_stable_layer_norm=True), "adapter_attn_dim: 8"),
        (dict(kind="hubert", conv_pos_batch_norm=True), "conv_pos_batch_norm: True"),
    ],
)
def test_variants_are_refused_by_name(tmp_path, options, message):
    save(tmp_path, **options)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_other_models_are_refused(tmp_path):
    config = {k: v for k, v in SMALL.items() if "code" not in k and "nega" not in k}
    transformers.WavLMModel(transformers.WavLMConfig(**config)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model_type: wavlm .* gated relative positions"):
        read(tmp_path)


def test_what_is_no_folder_of_a_model(tmp_path):
    with pytest.raises(UserError, match="holds no config.json"):
        read(tmp_path)
    with pytest.raises(UserError, match="nothing: is no folder"):
        read(tmp_path / "nothing")
    save(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="preprocessor_config.json"):
        read(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="sampling_rate: 8000"):
        read(tmp_path)


def test_weights_that_are_missing(tmp_path):
    from safetensors.torch import load_file, save_file

    save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["wav2vec2.encoder.layers.1.attention.q_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights .*layers.1.attention.q_proj"):
        read(tmp_path)


def test_hubert_without_norm_of_features(tmp_path, speech):
    there = save(tmp_path, "hubert", "large", feat_proj_layer_norm=False)
    here, config, _ = imported(tmp_path)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    layers, frames = outputs_here(here, speech[:1])
    expected = outputs_there(there, extractor, speech[:1], True)
    torch.testing.assert_close(layers[-1], expected[-1], atol=1e-4, rtol=0)
    back, _ = to_huggingface(config, here.state_dict())
    assert not back.config.feat_proj_layer_norm
    state = back.state_dict()
    assert all(torch.equal(state[k], v) for k, v in there.state_dict().items())


def test_classes_are_those_asked_for_then_a_configs(tmp_path):
    save(tmp_path, "hubert")
    base = {"loss": [{"name": "hubert", "conf": {"num_classes": 7}}]}
    for base, asked, classes in (({}, None, 500), (base, None, 7), (base, 3, 3)):
        config, *_ = import_model(tmp_path, base, asked, label_downsampling=2)
        assert config["loss"][0]["conf"]["num_classes"] == classes
        assert config["collate_fn_conf"] == {"label_downsampling": 2}

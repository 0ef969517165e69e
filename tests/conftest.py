"""What every test file may use."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs2" / "atm_librilight" / "ssl1"
sys.path[:0] = [str(ROOT), str(RECIPE / "local")]


def copy_recipe(tree: Path) -> Path:
    """A copy of the recipe in a tree of its own, as in an ESPnet checkout."""
    if not (ROOT / "egs2" / "TEMPLATE").exists():
        pytest.fail("egs2/TEMPLATE is missing: run the tests by ./run_tests.sh")
    (tree / "egs2" / "atm_librilight").mkdir(parents=True)
    (tree / "tools").symlink_to(ROOT / "tools")
    (tree / "egs2" / "TEMPLATE").symlink_to((ROOT / "egs2" / "TEMPLATE").resolve())
    folder = tree / "egs2" / "atm_librilight" / "ssl1"
    outputs = ("data", "downloads", "dump", "exp", "RESULTS.md")
    shutil.copytree(
        RECIPE, folder, symlinks=True, ignore=shutil.ignore_patterns(*outputs)
    )
    return folder


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in each test, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A source of randomness of the test's own."""
    return torch.Generator().manual_seed(1)


def random_states() -> tuple:
    """Of the generators that everything in a process shares."""
    name, keys, *rest = np.random.get_state()
    shared = torch.get_rng_state().tolist(), keys.tolist()
    return *shared, name, rest, random.getstate()


SPEAK = """
import sys
import mini
import numpy as np
found, synthesize = {}, mini.Synthesizer()
for plan in mini.make_plan("unlabelled", 1.5):
    if plan.condition not in found:
        found[plan.condition] = mini.render(plan, synthesize)
np.savez(sys.argv[1], **found)
"""


@pytest.fixture(scope="session")
def spoken(tmp_path_factory) -> dict:
    """Speech by condition, and noise alone (``purenoise``): (N,), float32, at 16 kHz."""
    file = tmp_path_factory.mktemp("spoken") / "spoken.npz"
    # In a process of its own: it forks, which one with torch's threads should not.
    subprocess.run([sys.executable, "-c", SPEAK, file], cwd=RECIPE / "local", check=True)
    with np.load(file) as found:
        return {name: torch.from_numpy(x / np.float32(32768)) for name, x in found.items()}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Ten utterances with labels at 10 ms and a confidence track at 40 ms.

    ``wav.scp``, ``text``, ``shape`` (samples), ``tokens.txt``, and ``confidence.scp``
    with its ``frame_shift``; the audio is noise of 1 to 1.5 s.
    """
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    lines = {"wav.scp": [], "text": [], "shape": []}
    tracks = {}
    for number in range(10):
        utt = f"utt{number}"
        samples = int(rng.integers(16000, 24000))
        speech = 0.1 * rng.standard_normal(samples)
        soundfile.write(folder / f"{utt}.wav", speech, 16000, subtype="PCM_16")
        labels = rng.integers(0, 4, (samples - 400) // 160 + 1)
        tracks[utt] = rng.random((((samples // 160) // 2 - 1) // 2, 1)).astype(
            "float32"
        )
        lines["wav.scp"].append(f"{utt} {folder}/{utt}.wav")
        lines["text"].append(f"{utt} " + " ".join(map(str, labels)))
        lines["shape"].append(f"{utt} {samples}")
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n")
    (folder / "tokens.txt").write_text("0\n1\n2\n3\n<unk>\n")
    kaldiio.save_ark(
        str(folder / "confidence.ark"),
        tracks,
        scp=str(folder / "confidence.scp"),
        compression_method=7,
    )
    (folder / "frame_shift").write_text("640\n")
    (folder / "frame_offset").write_text("479.5\n")
    return folder


@pytest.fixture
def scored(spoken, tmp_path) -> Path:
    """A folder with speech and noise in three takes each, and their scores.

    ``wav.scp``, ``utt2category``, and in ``scores`` tracks that rank noise above speech.
    """
    from espnet_atm.confidence import frame_energy
    from espnet_atm.frames import FrameGrid

    grid = FrameGrid(640, 479.5)
    tracks, wavs, means, categories = {}, [], [], []
    for condition, speech in spoken.items():
        soundfile.write(tmp_path / f"{condition}.wav", speech.numpy(), 16000)
        frames = (len(speech) - 160) // 640
        energy = frame_energy(
            speech[None], torch.tensor([len(speech)]), grid, torch.tensor([frames])
        )
        for take in range(3):
            utt = f"{condition}-{take}"
            wavs.append(f"{utt} {tmp_path}/{condition}.wav\n")
            # Sure of what is silent, and of noise.
            track = np.where(energy[0].numpy() < -20, 0.9, 0.6)
            track = np.full(frames, 0.95) if condition == "purenoise" else track
            tracks[utt] = track[:, None].astype(np.float32)
            means.append(f"{utt} {np.rint(track * 255).mean() / 255:.6f}\n")
            categories.append(f"{utt} {condition}\n")
    folder = tmp_path / "scores"
    folder.mkdir()
    kaldiio.save_ark(
        str(folder / "confidence.ark"),
        tracks,
        scp=str(folder / "confidence.scp"),
        compression_method=7,
    )
    (folder / "frame_shift").write_text("640\n")
    (folder / "frame_offset").write_text("479.5\n")
    (folder / "utt2confidence").write_text("".join(means))
    (tmp_path / "wav.scp").write_text("".join(wavs))
    (tmp_path / "utt2category").write_text("".join(categories))
    return tmp_path


CONFORMER = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 16,
    "num_blocks": 2,
    "rel_pos_type": "latest",
    "macaron_style": True,
}

# The front end of wav2vec 2.0, thin.
CNN = {
    "norm_mode": "layer_norm",
    "conv_mode": "standard",
    "bias": True,
    "shapes": [
        [8, 10, 5],
        [8, 3, 2],
        [8, 3, 2],
        [8, 3, 2],
        [8, 3, 2],
        [8, 2, 2],
        [8, 2, 2],
    ],
}

SSL_CONFIG = {
    "frontend": "default",
    "frontend_conf": {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80},
    "normalize": "utterance_mvn",
    "preencoder": "conv2d",
    "preencoder_conf": {"output_size": 16},
    "encoder": "conformer",
    "encoder_conf": {**CONFORMER, "input_layer": None},
    "loss": [{"name": "hubert", "conf": {"num_classes": 4, "final_dim": 8}}],
    "collate_fn_conf": {"label_downsampling": 4},
    "batch_type": "unsorted",
    "batch_size": 5,
    "optim": "adam",
    "max_epoch": 1,
    "num_workers": 0,
    "num_att_plot": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
}


@pytest.fixture
def ssl_command(corpus, tmp_path):
    """Makes the arguments of ``ssl_train`` for the corpus."""

    def make(streams=("speech", "text", "confidence"), **config) -> list[str]:
        output_dir = tmp_path / f"exp{len(list(tmp_path.iterdir()))}"
        output_dir.mkdir()
        file = output_dir / "train.yaml"
        file.write_text(yaml.safe_dump({**SSL_CONFIG, **config}))
        types = {
            "speech": "wav.scp,speech,sound",
            "text": "text,text,text",
            "confidence": "confidence.scp,confidence,kaldi_ark",
        }
        command = ["--config", str(file), "--output_dir", str(output_dir)]
        command += ["--token_list", str(corpus / "tokens.txt"), "--token_type", "word"]
        for mode in ("train", "valid"):
            command += [f"--{mode}_shape_file", str(corpus / "shape")]
            for stream in streams:
                command += [f"--{mode}_data_path_and_name_and_type"]
                command += [f"{corpus}/{types[stream]}"]
        return command

    return make


# The losses that need no labels, in a size for tests.
LOSSES = {
    "wav2vec2": {"num_codes": 6, "code_dim": 8, "final_dim": 8, "num_negatives": 5},
    "w2v_bert": {
        "context_layers": 1,
        "num_codes": 6,
        "code_dim": 8,
        "final_dim": 8,
        "num_negatives": 5,
    },
    "best_rq": {"num_codes": 8, "code_dim": 4},
}

ASR_CONFIG = {
    "frontend": "default",
    "frontend_conf": {"fs": 16000, "n_fft": 512, "win_length": 400, "hop_length": 160},
    "normalize": "utterance_mvn",
    "encoder": "conformer",
    "encoder_conf": {**CONFORMER, "input_layer": "conv2d"},
    "decoder": None,
    "model_conf": {"ctc_weight": 1.0},
    "token_list": ["<blank>", "<unk>", "a", "b", "<sos/eos>"],
}


# OWSM-CTC as published, small, and with a window of 4 s.
OWSM_CONFIG = {
    "frontend": "default",
    "frontend_conf": {"fs": 16000, "n_fft": 512, "win_length": 400, "hop_length": 160},
    "normalize": "utterance_mvn",
    "encoder": "e_branchformer_ctc",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "attention_layer_type": "selfattn",
        "pos_enc_layer_type": "abs_pos",
        "cgmlp_linear_units": 16,
        "cgmlp_conv_kernel": 3,
        "linear_units": 16,
        "num_blocks": 2,
        "input_layer": "conv2d8",
        "use_ffn": True,
        "macaron_ffn": True,
        "interctc_layer_idx": [1],
        "interctc_use_conditioning": True,
        "use_flash_attn": True,
    },
    "promptencoder": "transformer",
    "promptencoder_conf": {
        "output_size": 8,
        "attention_heads": 2,
        "linear_units": 16,
        "num_blocks": 1,
        "use_flash_attn": True,
    },
    "preprocessor": "s2t_ctc",
    "preprocessor_conf": {"fs": 16000, "speech_length": 4, "nolang_symbol": "<nolang>"},
    "model": "espnet_ctc",
    "model_conf": {"interctc_weight": 0.5, "report_cer": False, "report_wer": False},
    "token_type": "char",
    "token_list": [
        *("<blank>", "<unk>", "<na>", "<nolang>", "<eng>", "<deu>", "<asr>"),
        *("<st_deu>", "<0.00>", "<0.02>", "a", "b", "<sos>", "<eos>", "<sop>"),
    ],
}


def make_model(task, folder: Path, conf: dict) -> tuple[Path, Path]:
    """Makes an untrained model of a task of ESPnet's: its config.yaml and .pth."""
    file = folder / "train.yaml"
    conf = dict(conf)
    tokens = conf.pop("token_list")
    (folder / "tokens.txt").write_text("\n".join(tokens) + "\n")
    file.write_text(yaml.safe_dump(conf))
    args = task.get_parser().parse_args(
        ["--config", str(file), "--token_list", str(folder / "tokens.txt")]
    )
    torch.manual_seed(0)
    model = task.build_model(args)
    torch.save(model.state_dict(), folder / "model.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    return folder / "config.yaml", folder / "model.pth"


@pytest.fixture(scope="session")
def make_asr(tmp_path_factory):
    """Makes an untrained ESPnet ASR model: its config.yaml and .pth."""
    from espnet2.tasks.asr import ASRTask

    def make(**config) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("asr")
        return make_model(ASRTask, folder, {**ASR_CONFIG, **config})

    return make


@pytest.fixture(scope="session")
def make_owsm(tmp_path_factory):
    """Makes an untrained OWSM-CTC model: its config.yaml and .pth."""
    from espnet2.tasks.s2t_ctc import S2TTask

    def make(**config) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("owsm")
        return make_model(S2TTask, folder, {**OWSM_CONFIG, **config})

    return make


@pytest.fixture(scope="session")
def asr(make_asr) -> tuple[Path, Path]:
    """An untrained conformer with CTC."""
    return make_asr()


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
# wav2vec 2.0 and its kin; the blank is not the first label, as on the hub.
ON_AUDIO = {
    **SMALL,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
LABELS = {"vocab_size": 6, "pad_token_id": 2}
VOCABULARY = ["a", "b", "<pad>", "<s>", "</s>", "|"]


@pytest.fixture(scope="session")
def make_ctc(tmp_path_factory):
    """Makes an untrained CTC model of Hugging Face's: a folder with its processor.

    ``model_type`` is transformers'; options go to its config.
    """
    import transformers

    def config_of(model_type, options):
        options = {**LABELS, **options}
        if model_type == "wav2vec2-bert":
            return transformers.Wav2Vec2BertConfig(
                **{**SMALL, "output_hidden_size": 16, **options}
            )
        if model_type == "parakeet_ctc":
            encoder = {**SMALL, "num_key_value_heads": 2, "subsampling_conv_channels": 8}
            return transformers.ParakeetCTCConfig(encoder_config=encoder, **options)
        norm = options.setdefault("feat_extract_norm", "layer")
        if model_type in ("wav2vec2", "hubert", "wavlm"):
            options.setdefault("do_stable_layer_norm", norm == "layer")
        return transformers.AutoConfig.for_model(model_type, **ON_AUDIO, **options)

    def make(model_type="wav2vec2", head="AutoModelForCTC", **options) -> Path:
        folder = tmp_path_factory.mktemp(model_type)
        config = config_of(model_type, options)
        torch.manual_seed(0)
        getattr(transformers, head).from_config(config).save_pretrained(folder)
        if model_type == "wav2vec2-bert":
            extractor = transformers.SeamlessM4TFeatureExtractor()
        elif model_type == "parakeet_ctc":
            extractor = transformers.ParakeetFeatureExtractor()
        else:
            mask = getattr(config, "feat_extract_norm", "layer") == "layer"
            extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=mask)
        vocabulary = folder / "vocab.json"
        vocabulary.write_text(json.dumps({x: i for i, x in enumerate(VOCABULARY)}))
        tokenizer = transformers.Wav2Vec2CTCTokenizer(str(vocabulary))
        transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
        return folder

    return make

import multiprocessing
import re
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CONFORMER, LOSSES, ROOT

from espnet_atm.bin.export_ssl import asr_lines, export, get_parser, main
from espnet_atm.errors import UserError, one_line_errors
from espnet_atm.task import ATMSSLTask

# Runs where this package cannot be imported.
BY_FRONTEND = """
import sys
import numpy, torch
try:
    import espnet_atm
    sys.exit("espnet_atm is importable here")
except ImportError:
    pass
from espnet2.asr.frontend.espnet_ssl import ESPnetSSLFrontend
model = ESPnetSSLFrontend(frontend_conf={"path_or_url": sys.argv[1]}).eval()
speech = torch.from_numpy(numpy.load(sys.argv[2]))
with torch.no_grad():
    feats, lengths = model(speech, torch.full((len(speech),), speech.size(1)))
numpy.save(sys.argv[3], feats.numpy())
"""

ASR = {
    "decoder": None,
    "model_conf": {"ctc_weight": 1.0},
    "specaug": None,
    "frontend_conf": {"fs": "16k"},  # asr.sh gives it
}

# As asr_train starts, to its first step.
BY_ASR = """
import sys
import numpy, torch
try:
    import espnet_atm
    sys.exit("espnet_atm is importable here")
except ImportError:
    pass
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model
speech, out, *arguments = sys.argv[1:]
args = ASRTask.get_parser().parse_args(arguments)
model = ASRTask.build_model(args)
for word in args.init_param:
    load_pretrained_model(word, model, ignore_init_mismatch=False)
state = model.state_dict()
torch.save({k: v.clone() for k, v in state.items()}, out)
speech = torch.from_numpy(numpy.load(speech))
lengths = torch.full((len(speech),), speech.size(1))
text = torch.ones(len(speech), 2, dtype=torch.long)
optimizer = torch.optim.SGD(model.parameters(), 1.0)
loss, *_ = model(speech, lengths, text, torch.full((len(speech),), 2))
loss.backward()
optimizer.step()
assert torch.isfinite(loss)
assert not torch.equal(state["ctc.ctc_lo.weight"], torch.load(out)["ctc.ctc_lo.weight"])
"""


def run_without_the_package(code: str, *arguments) -> None:
    subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"import site, sys\n{WITHOUT}\n{code}",
            *map(str, arguments),
        ],
        check=True,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )


# Site packages, less the folders that editable installs add.
WITHOUT = """
import os
before = set(sys.path)
site.main()
sys.meta_path[:] = [x for x in sys.meta_path if "editable" not in repr(x).lower()]
sys.path[:] = [x for x in sys.path if not os.path.isdir(os.path.join(x or ".", "espnet_atm"))]
"""


@pytest.fixture
def pretrained(ssl_command):
    """A model before its first step, its config, and the files of both."""

    def make(token_list=None, **config):
        command = ssl_command(ssl_conf={"masker": "atm"}, **config)
        folder = Path(command[command.index("--output_dir") + 1])
        args = ATMSSLTask.get_parser().parse_args(command)
        if token_list is not None:
            args.token_list = token_list
        torch.manual_seed(0)
        model = ATMSSLTask.build_model(args).eval()
        torch.save(model.state_dict(), folder / "valid.loss.best.pth")
        (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
        main(
            [
                *("--ssl_train_config", str(folder / "config.yaml")),
                *("--ssl_model_file", str(folder / "valid.loss.best.pth")),
                *("--output_dir", str(folder / "export")),
            ]
        )
        return model, folder / "export" / "valid.loss.best.pth"

    return make


@pytest.mark.parametrize("path", ["conv2d", "wav2vec_cnn", "w2v_bert"])
def test_stock_espnet_computes_the_same_by_frontend(pretrained, tmp_path, path):
    from test_task import WAV2VEC

    loss = [{"name": "w2v_bert", "conf": LOSSES["w2v_bert"]}]
    configs = {
        "conv2d": {},
        "wav2vec_cnn": WAV2VEC,
        "w2v_bert": {"loss": loss, "token_list": []},
    }
    model, file = pretrained(**configs[path])
    speech = torch.randn(2, 16000)
    with torch.no_grad():
        expected, _, _ = model.inference_encode(speech, torch.full((2,), 16000))
    np.save(tmp_path / "speech.npy", speech.numpy())
    run_without_the_package(
        BY_FRONTEND, file, tmp_path / "speech.npy", tmp_path / "feats.npy"
    )
    got = torch.from_numpy(np.load(tmp_path / "feats.npy"))
    torch.testing.assert_close(
        got, expected[0] if isinstance(expected, tuple) else expected
    )


def yaml_of(text: str, first: str) -> dict:
    """The YAML in a text that begins with this line, to the next line that is less deep."""
    block = re.search(rf"^( *){first}\n(?:\1 *[^\s`].*\n)*", text, re.MULTILINE)[0]
    return yaml.safe_load(textwrap.dedent(block))


def asr_train(config: dict, folder: Path, *arguments: str) -> dict:
    """Start to train an ASR model in stock ESPnet; its weights before the first step."""
    conf = {**ASR, **config}
    conf["frontend_conf"] = {**ASR["frontend_conf"], **config["frontend_conf"]}
    (folder / "asr.yaml").write_text(yaml.safe_dump(conf))
    (folder / "asr_tokens").write_text("<blank>\na\nb\n<sos/eos>\n")
    np.save(folder / "speech.npy", torch.randn(2, 16000))
    run_without_the_package(
        BY_ASR,
        *(folder / "speech.npy", folder / "before.pth", "--config", folder / "asr.yaml"),
        *("--token_list", folder / "asr_tokens", *arguments),
    )
    return torch.load(folder / "before.pth")


@pytest.mark.parametrize("path", ["conv2d", "wav2vec_cnn"])
def test_an_asr_model_has_all_that_was_learned(pretrained, tmp_path, capsys, path):
    """Built by the config and the words that were printed."""
    from test_task import WAV2VEC

    _, file = pretrained(**{"conv2d": {}, "wav2vec_cnn": WAV2VEC}[path])
    printed = capsys.readouterr().out
    words = re.search("# or asr_train: (.*)", printed)[1].split()
    to_asr_sh = '# and asr.sh: --feats_normalize none --pretrained_model "(.*)"'
    assert re.search(to_asr_sh, printed)[1].split() == words[1:]
    parts = ["encoder"]
    if path == "wav2vec_cnn":
        parts = ["frontend", "preencoder", "encoder"]
    assert words == ["--init_param", *(f"{file}:{x}:{x}" for x in parts)]
    loaded = asr_train(yaml.safe_load(printed), tmp_path, *words)
    learned = torch.load(file, weights_only=True)
    names = [x for x in loaded if x.startswith(("frontend.", "preencoder.", "encoder."))]
    assert {x.split(".")[0] for x in names} >= set(parts)
    for name in names:
        assert torch.equal(loaded[name], learned[name]), name


def test_the_export_says_what_the_encoder_was_made_for(pretrained):
    """Its input size, and no normalization where there was none; stock ESPnet's too."""
    from test_task import WAV2VEC

    _, file = pretrained(**WAV2VEC, normalize=None)
    config = yaml.safe_load((file.parent / "config.yaml").read_text())
    assert config["preencoder_conf"] == {"input_size": 8, "output_size": 16}
    parts = yaml.safe_load(asr_lines(config, "x.pth"))
    assert parts["normalize"] is None and parts["preencoder_conf"]["input_size"] == 8


@pytest.mark.parametrize("source", ["README.md", "--help"])
def test_the_model_as_a_front_end_is_written_as_it_must_be(pretrained, tmp_path, source):
    readme = (ROOT / "README.md").read_text()
    texts = {"README.md": readme, "--help": get_parser().description}
    model, file = pretrained()
    conf = yaml_of(texts[source], "frontend: espnet_ssl")
    path = conf["frontend_conf"]["frontend_conf"]["path_or_url"]
    assert path.endswith("/NAME.pth")
    conf["frontend_conf"]["frontend_conf"]["path_or_url"] = str(file)
    assert conf["encoder"] is None and conf["normalize"] is None
    loaded = asr_train(conf, tmp_path)
    learned = model.state_dict()
    for name in (x for x in learned if x.startswith("encoder.encoders")):
        assert torch.equal(loaded[f"frontend.upstream.{name}"], learned[name]), name


def test_only_the_model_is_left(pretrained):
    _, file = pretrained()
    state = torch.load(file, weights_only=True)
    assert not [
        k for k in state if k.startswith(("losses.", "util_modules.", "preencoder."))
    ]
    config = yaml.safe_load((file.parent / "config.yaml").read_text())
    assert config["loss"] == [] and config["util"] == [] and config["init"] is None
    assert "ssl_conf" not in config and "train_shape_file" not in config
    assert config["preencoder"] is None
    assert config["encoder_conf"]["input_layer"] == "conv2d"


def test_what_cannot_be_exported_is_refused():
    with pytest.raises(ValueError, match="no encoder, frontend: not an SSL run's"):
        export({"token_list": []}, {})
    config = {
        "token_list": [],
        "frontend": "default",
        "encoder": "conformer",
        "preencoder": "conv2d",
        "encoder_conf": {"input_layer": "linear"},
    }
    with pytest.raises(ValueError, match="input_layer: linear leaves no room"):
        export(config, {})
    # A transformer with input_layer: null has no positions, and with conv2d it has.
    config.update(encoder="transformer", encoder_conf={"input_layer": None})
    with pytest.raises(ValueError, match="encoder: transformer adds no positions"):
        export(config, {})


@pytest.fixture
def run(ssl_command):
    """Makes the folder of a run as training leaves it, with checkpoint.pth."""

    def make(**config) -> Path:
        command = ssl_command(ssl_conf={"masker": "atm"}, **config)
        folder = Path(command[command.index("--output_dir") + 1])
        args = ATMSSLTask.get_parser().parse_args(command)
        state = ATMSSLTask.build_model(args).state_dict()
        torch.save(state, folder / "3epoch.pth")
        (folder / "latest.pth").symlink_to("3epoch.pth")
        torch.save({"model": state, "optimizers": []}, folder / "checkpoint.pth")
        (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
        return folder

    return make


def arguments(run, output_dir, config="config.yaml", model="latest.pth") -> list[str]:
    return [
        *("--ssl_train_config", str(run / config), "--ssl_model_file", str(run / model)),
        *("--output_dir", str(output_dir)),
    ]


def contents(folder) -> dict:
    return {x.name: x.read_bytes() for x in folder.iterdir() if x.is_file()}


def refused(cmd, message) -> None:
    with pytest.raises(UserError, match=message):
        main(cmd)
    assert not Path(cmd[-1]).exists()


def test_weights_that_are_not_the_configs_are_refused(run, asr, tmp_path):
    """Of the trainer, of a deeper model, of an ASR model, of a part of the model."""
    folder, out = run(), tmp_path / "out"
    deeper = run(encoder_conf={**CONFORMER, "input_layer": None, "num_blocks": 3})
    refused(arguments(folder, out, model="checkpoint.pth"), "trainer's state")
    cmd = arguments(folder, out, model=f"{deeper}/latest.pth")
    refused(cmd, "in it and not in the model: encoder.encoders.2")
    cmd = arguments(deeper, out, model=f"{folder}/latest.pth")
    refused(cmd, "are not in it: encoder.encoders.2.* and .* more")
    refused(arguments(folder, out, model=asr[1]), "is not the model of .*config.yaml")
    refused(arguments(folder, out, config=asr[0], model=asr[1]), "has no loss")
    refused(arguments(folder, out, config=asr[0]), "has no loss")
    refused(arguments(folder, out, config="latest.pth"), "latest.pth: is no text")
    refused(arguments(folder, out, model="config.yaml"), "cannot be read as weights")
    state = torch.load(folder / "latest.pth", weights_only=True)
    for name in ("encoder.", "preencoder.", "losses."):
        part = {k: v for k, v in state.items() if not k.startswith(name)}
        torch.save(part, folder / "part.pth")
        refused(arguments(folder, out, model="part.pth"), f"not in it: {name}")
    state["encoder.after_norm.bias"][0] = torch.nan
    torch.save(state, folder / "part.pth")
    refused(arguments(folder, out, model="part.pth"), "not finite: encoder.after_norm")


def test_nothing_of_others_is_overwritten(run, tmp_path):
    """Not the run itself, not another run's export, not what someone has changed."""
    folder, other = run(), run(encoder_conf={**CONFORMER, "input_layer": None})
    before = contents(folder)
    for output_dir in (folder, folder / "export" / ".."):
        (folder / "export").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="config.yaml: is there"):
            main(arguments(folder, output_dir))
    assert contents(folder) == before and (folder / "latest.pth").is_symlink()

    out = tmp_path / "out"
    main(arguments(folder, out))
    exported = contents(out)
    main(arguments(folder, out))
    assert contents(out) == exported
    with pytest.raises(UserError, match="the export of another run"):
        main(arguments(other, out))
    for name in ("3epoch.pth", "config.yaml"):
        (out / name).write_bytes(exported[name] + b"\n")
        with pytest.raises(UserError, match=f"{name}: is there"):
            main(arguments(folder, out))
        (out / name).write_bytes(exported[name])
    (out / "3epoch.pth").unlink()
    (out / "3epoch.pth").symlink_to(folder / "3epoch.pth")
    with pytest.raises(UserError, match="3epoch.pth: is there"):
        main(arguments(folder, out))
    assert contents(folder) == before
    (out / "exported.json").write_text("{")
    with pytest.raises(UserError, match="exported.json: is damaged"):
        main(arguments(folder, out))


def test_an_export_goes_on_with_the_run(run, tmp_path):
    """Another epoch lies beside the first; the same epoch, trained on, replaces it."""
    folder, out = run(), tmp_path / "out"
    main(arguments(folder, out))
    state = torch.load(folder / "3epoch.pth", weights_only=True)
    state["encoder.after_norm.bias"] += 1
    for name in ("3epoch.pth", "4epoch.pth"):
        torch.save(state, folder / name)
        main(arguments(folder, out, model=name))
        exported = torch.load(out / name, weights_only=True)
        assert torch.equal(exported["encoder.after_norm.bias"], torch.ones(16))
    names = {"config.yaml", "exported.json", "3epoch.pth", "4epoch.pth"}
    assert set(contents(out)) == names


def test_a_killed_export_is_repeated(run, tmp_path, monkeypatch):
    """Between any two files: what was announced is ours."""
    folder, out = run(), tmp_path / "out"
    main(arguments(folder, out))
    state = torch.load(folder / "3epoch.pth", weights_only=True)
    state["encoder.after_norm.bias"] += 1
    torch.save(state, folder / "3epoch.pth")
    replace, calls = Path.replace, []

    def killed(self, target):
        calls.append(target)
        if len(calls) == at:
            raise KeyboardInterrupt
        return replace(self, target)

    for at in (1, 2, 3, 4):
        calls.clear()
        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            main(arguments(folder, out))
        monkeypatch.setattr(Path, "replace", replace)
        main(arguments(folder, out))
        state["encoder.after_norm.bias"] += 1
        torch.save(state, folder / "3epoch.pth")


def on_a_full_disk(cmd) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    with one_line_errors("export_ssl"):
        main(cmd)


def test_a_full_disk_is_told_with_its_file(run, tmp_path, capfd):
    folder, out = run(), tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(
        target=on_a_full_disk, args=[arguments(folder, out)]
    )
    process.start()
    process.join()
    assert process.exitcode == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == f"export_ssl: error: {out}/3epoch.pth: File too large"
    assert not (out / "3epoch.pth").exists()
    main(arguments(folder, out))
    assert (out / "3epoch.pth").exists()


@pytest.mark.parametrize(
    "config, model, message",
    [
        ("none.yaml", "latest.pth", "none.yaml: No such file or directory"),
        (".", "latest.pth", "is a folder, and no file"),
        ("config.yaml", ".", "is a folder, and no file"),
        ("config.yaml", "none.pth", "none.pth: No such file or directory"),
    ],
)
def test_the_command_line_ends_in_one_line(run, tmp_path, config, model, message):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "espnet_atm.bin.export_ssl"),
            *arguments(run(), tmp_path / "out", config, model),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.fullmatch(f"espnet_atm.bin.export_ssl: error: .*{message}\n", done.stderr)

import multiprocessing
import re
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CONFORMER, ROOT
from test_export import asr_train, pretrained  # noqa: F401  pretrained is a fixture

from espnet_atm.bin.export_ssl import get_parser, main
from espnet_atm.errors import UserError, one_line_errors
from espnet_atm.task import ATMSSLTask


def yaml_of(text: str, first: str) -> dict:
    """The YAML in a text that begins with this line, to the next line that is less deep."""
    block = re.search(rf"^( *){first}\n(?:\1 *[^\s`].*\n)*", text, re.MULTILINE)[0]
    return yaml.safe_load(textwrap.dedent(block))


@pytest.mark.parametrize("source", ["README.md", "--help"])
def test_the_model_as_a_front_end_is_written_as_it_must_be(pretrained, tmp_path, source):
    readme = (ROOT / "README.md").read_text()
    texts = {"README.md": readme, "--help": get_parser().description}
    model, file, _ = pretrained()
    conf = yaml_of(texts[source], "frontend: espnet_ssl")
    path = conf["frontend_conf"]["frontend_conf"]["path_or_url"]
    assert path.endswith("/NAME.pth")
    conf["frontend_conf"]["frontend_conf"]["path_or_url"] = str(file)
    assert conf["encoder"] is None and conf["normalize"] is None
    loaded = asr_train(conf, tmp_path)
    learned = model.state_dict()
    for name in (x for x in learned if x.startswith("encoder.encoders")):
        assert torch.equal(loaded[f"frontend.upstream.{name}"], learned[name]), name


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

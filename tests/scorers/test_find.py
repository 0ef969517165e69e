"""A scorer by what its user calls it."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from espnet_atm.errors import UserError
from espnet_atm.scorer import Scorer
from espnet_atm.scorers.find import find_scorer


def sha256(file) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def ctc(make_ctc):
    return make_ctc()


@pytest.fixture(scope="module")
def packed(make_asr, tmp_path_factory):
    """A model with statistics of its own, as ESPnet packs it for the model zoo."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "exp").mkdir()
    zeros = np.zeros(80)
    np.savez(folder / "exp/stats.npz", count=np.array(3), sum=zeros, sum_square=zeros + 3)
    conf = {"normalize": "global_mvn", "normalize_conf": {"stats_file": "exp/stats.npz"}}
    with contextlib.chdir(folder):  # paths in it are relative, as asr.sh's
        for file in make_asr(**conf):
            shutil.copy(file, "exp")
    command = [sys.executable, "-m", "espnet2.bin.pack", "asr", "--outpath", "model.zip"]
    command += ["--asr_train_config", "exp/config.yaml"]
    command += ["--asr_model_file", "exp/model.pth", "--option", "exp/stats.npz"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    (folder / "exp/stats.npz").unlink()  # it is in the packed file
    return folder / "model.zip"


def test_files_of_an_espnet_model_keep_their_checksums(asr):
    source = find_scorer(*asr)
    assert source.fingerprint() == {"model": sha256(asr[1]), "config": sha256(asr[0])}
    # Alone, with its config beside it, and by its folder.
    assert find_scorer(asr[1]) == find_scorer(asr[1].parent) == source


def test_a_folder_with_several_weights(asr, tmp_path):
    for name in ("config.yaml", "model.pth"):
        shutil.copy(asr[0].parent / name, tmp_path)
    (tmp_path / "link.pth").symlink_to("model.pth")
    (tmp_path / "checkpoint.pth").write_bytes(b"of the trainer")
    Scorer.from_files(tmp_path)
    (tmp_path / "1epoch.pth").write_bytes(b"other")
    with pytest.raises(UserError, match="holds 3 files of weights; .*1epoch.pth, "):
        find_scorer(tmp_path)
    Scorer.from_files(tmp_path / "link.pth")


def test_a_packed_model_and_the_folder_it_unpacks_to(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # of the downloader's cache
    speech, length = torch.randn(1, 16000), torch.tensor([16000])
    expected = Scorer.from_files(packed).score(speech, length)[0]
    shutil.unpack_archive(packed, tmp_path / "folder")
    monkeypatch.chdir(tmp_path)  # by a relative path, and then from elsewhere
    source = find_scorer("folder")
    monkeypatch.chdir("/")
    found = source.load().score(speech, length)[0]
    assert torch.equal(found, expected)


def test_a_folder_of_hugging_faces(ctc, tmp_path):
    source = find_scorer(ctc)
    found = source.fingerprint()
    assert found["model"] == sha256(ctc / "model.safetensors") and found["lang"] is None
    copy = tmp_path / "copy"
    shutil.copytree(ctc, copy)
    (copy / "README.md").write_text("Not of the model.\n")
    assert find_scorer(copy).fingerprint() == found
    for name in ("config.json", "processor_config.json", "vocab.json"):
        text = (ctc / name).read_text()
        (copy / name).write_text(text + "\n")
        other = find_scorer(copy).fingerprint()
        assert other["config"] != found["config"] and other["model"] == found["model"]
        (copy / name).write_text(text)


def cached(folder, cache, name, revision="main"):
    """Let a hub's cache hold a folder, as after a download."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = hashlib.sha1(revision.encode()).hexdigest()
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)


def in_a_process(cache, *arguments) -> subprocess.CompletedProcess:
    """The hub reads where its cache is once, when it is imported."""
    code = (
        "import sys\nfrom espnet_atm.scorers.find import find_scorer\n"
        "print(sorted(find_scorer(*sys.argv[1:]).fingerprint().items()))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )


def test_tags(ctc, make_ctc, packed, tmp_path):
    cache, unpacked = tmp_path / "cache", tmp_path / "unpacked"
    shutil.unpack_archive(packed, unpacked)
    other = make_ctc("hubert")
    cached(ctc, cache, "someone/tiny")
    cached(other, cache, "someone/tiny", "v2")
    cached(unpacked, cache, "someone/espnet")
    for tag, folder in (
        ("someone/tiny", ctc),
        ("https://huggingface.co/someone/tiny", ctc),
        ("someone/tiny@v2", other),
    ):
        done = in_a_process(cache, tag)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(sorted(find_scorer(folder).fingerprint().items()))
    done = in_a_process(cache, "someone/espnet")
    assert done.returncode == 0, done.stderr
    weights = next(unpacked.rglob("*.pth"))
    assert sha256(weights) in done.stdout
    done = in_a_process(cache, "someone/else")
    assert "UserError: someone/else: no such scorer could be had" in done.stderr


def test_what_is_no_scorer(asr, make_ctc, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("empty", "config", "weights", "meta", "other"):
        (tmp_path / name).mkdir()
    shutil.copy(asr[0], tmp_path / "config")
    shutil.copy(asr[1], tmp_path / "weights")
    (tmp_path / "meta/meta.yaml").write_text("- 1\n")
    meta = {"files": {"lm_file": "x.pth"}, "yaml_files": {}}
    (tmp_path / "other/meta.yaml").write_text(yaml.safe_dump(meta))
    (tmp_path / "gone").mkdir()
    meta = {"files": {}, "yaml_files": {"asr_train_config": "exp/config.yaml"}}
    (tmp_path / "gone/meta.yaml").write_text(yaml.safe_dump(meta))
    (tmp_path / "broken.zip").write_bytes(b"PK no archive")
    for name, message in (
        ("empty", "holds no scorer: it has neither config.json.* nor config.yaml"),
        ("config", "holds a config.yaml and no weights"),
        ("weights", "holds no scorer"),
        ("meta", "meta.yaml: is not what ESPnet packs"),
        ("other", "is no ASR model: it has no asr_train_config .*only lm_file"),
        ("broken.zip", "broken.zip: is not what ESPnet packs with a model, or damaged"),
        ("gone", "gone: is not what ESPnet packs with a model, or damaged"),
        ("config/config.yaml", "is a config; give the weights, or the folder of both"),
    ):
        with pytest.raises(UserError, match=message) as e:
            find_scorer(tmp_path / name)
        assert str(tmp_path / name) in str(e.value) and "\n" not in str(e.value)
    for name in ("/no/such", "./here", "a/b/c", "~/x", ""):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            find_scorer(name)
    with pytest.raises(FileNotFoundError, match="config.yaml"):
        find_scorer(tmp_path / "weights/model.pth")


@pytest.mark.parametrize("option", ["lang", "task"])
def test_options_that_a_kind_has_not(asr, option):
    with pytest.raises(UserError, match=f"{option}: 'eng': .* has no choice of it"):
        find_scorer(*asr, **{option: "eng"})


def test_importing_a_room_imports_no_task_of_espnets():
    for name in ("masking", "confidence", "scorer", "scorers", "scorers.find"):
        code = (
            f"import sys, espnet_atm.{name}\n"
            "print([x for x in sys.modules if x.startswith('espnet2.tasks')"
            " or x == 'transformers'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "[]\n", (name, done.stdout, done.stderr)

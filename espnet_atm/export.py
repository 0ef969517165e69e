"""A pre-trained model for stock ESPnet or transformers, and the folder that it goes to."""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import torch
import yaml

from espnet_atm.errors import UserError, read_config, read_text
from espnet_atm.files import whole_file
from espnet_atm.weights import load_weights, pth_bytes, read_weights

MODEL_KEYS = (
    "token_list",
    "input_size",
    "num_classes",
    "frontend",
    "frontend_conf",
    "specaug",
    "specaug_conf",
    "normalize",
    "normalize_conf",
    "preencoder",
    "preencoder_conf",
    "encoder",
    "encoder_conf",
    "model",
    "model_conf",
)
MANIFEST = "exported.json"
# Parameters of pre-training only.
DROPPED = ("losses.", "util_modules.")
# What the pre-trained weights are made for.
PARTS = ("frontend", "normalize", "preencoder", "encoder")
# Parts of this package, which stock ESPnet has under no name.
OURS = {"frontend": "wav2vec2_cnn", "encoder": "wav2vec2_transformer"}
# Parts that have nothing to learn.
UNLEARNED = (None, "default", "utterance_mvn", "global_mvn")


def read_run(
    config_file: str, model_file: str
) -> Tuple[Dict[str, Any], Dict[str, torch.Tensor]]:
    """Config and weights of a run, which must belong together.

    Raises:
        UserError: naming the file, when one of them is none of an SSL run, or they are
            not of one run.
        OSError: when a file cannot be read.
    """
    config = read_config(config_file)
    state = read_weights(model_file)
    # Imported late: a wrong path must not wait for ESPnet's imports.
    from espnet_atm.task import ATMSSLTask

    try:
        export(config, {})
        if not isinstance(config.get("loss"), list):  # an ASR run has none
            raise UserError("the config has no loss: not an SSL run's")
        model = ATMSSLTask.build_model(argparse.Namespace(**config))
    except UserError as e:
        raise UserError(f"{config_file}: {e}") from None
    except Exception as e:  # whatever ESPnet raises on options that it cannot take
        raise UserError(
            f"{config_file}: no SSL model can be built from it: {type(e).__name__}: {e}"
        ) from None
    load_weights(model, state, model_file, config_file)
    return config, state


def export(
    config: Dict[str, Any], state: Dict[str, torch.Tensor]
) -> Tuple[Dict[str, Any], Dict[str, torch.Tensor]]:
    """Config and weights for stock ESPnet.

    Args:
        config: of the training run, as ESPnet wrote it.
        state: its model's ``state_dict``.

    Raises:
        UserError: when the config is not that of an SSL model, or an encoder cannot
            take the preencoder in.
    """
    missing = [
        key for key in ("token_list", "encoder", "frontend") if key not in config
    ]
    if missing:
        raise UserError(f"the config has no {', '.join(missing)}: not an SSL run's")
    new = {key: config[key] for key in MODEL_KEYS if key in config}
    # Weights are loaded, not drawn; and ESPnet knows neither our losses nor our masks.
    new.update(init=None, loss=[], util=[])
    state = {k: v for k, v in state.items() if not k.startswith(DROPPED)}
    if config.get("preencoder") == "conv2d":
        # Imported late: the command's help must not wait for ESPnet's imports.
        from espnet_atm.preencoder import check_encoder, stock_weights

        check_encoder(config["encoder"], config["encoder_conf"])
        encoder_conf = {**config["encoder_conf"], "input_layer": "conv2d"}
        new.update(preencoder=None, preencoder_conf={}, encoder_conf=encoder_conf)
        ours = "preencoder.embed."
        embed = {k[len(ours) :]: v for k, v in state.items() if k.startswith(ours)}
        state = {
            # encoder.embed.0 is the positional encoding, here and there
            k.replace("encoder.embed.0.", "encoder.embed.pos_enc.", 1): v
            for k, v in state.items()
            if not k.startswith(ours)
        }
        if embed:
            wide = stock_weights(embed).items()
            state.update((f"encoder.embed.{k}", v) for k, v in wide)
    elif config.get("preencoder") is not None:
        # The SSL task finds it out; the ASR task wants to be told.
        conf = config.get("preencoder_conf") or {}
        new.update(preencoder_conf={"input_size": _feature_size(config), **conf})
    return new, state


def check_stock(config: Dict[str, Any]) -> None:
    """Refuse parts that stock ESPnet has under no name.

    Raises:
        UserError: naming the part, and the format to take.
    """
    for part, name in OURS.items():
        if config[part] == name:
            raise UserError(
                f"{part}: {name} is in no stock ESPnet; write --format huggingface: stock "
                "ESPnet takes what that gives as frontend: huggingface"
            )


def _feature_size(config: Dict[str, Any]) -> int:
    """Of the features that the preencoder takes."""
    if config.get("input_size") is not None:
        return config["input_size"]
    from espnet2.tasks.ssl import frontend_choices  # slow, and seldom needed

    frontend = frontend_choices.get_class(config["frontend"])
    with torch.device("meta"):
        return frontend(**config["frontend_conf"]).output_size()


def asr_parts(exported: Dict[str, Any]) -> Dict[str, Any]:
    """What an ASR config must have as the exported config has it."""
    parts = {}
    for part in PARTS:
        parts[part] = exported.get(part)
        parts[f"{part}_conf"] = exported.get(f"{part}_conf") or {}
    return parts


def init_params(exported: Dict[str, Any], model_file: str) -> List[str]:
    """The words of ``--init_param`` that load all that was learned.

    Args:
        exported: the exported config.
        model_file: the exported ``.pth``.
    """
    learned = [part for part in PARTS if exported.get(part) not in UNLEARNED]
    return [f"{model_file}:{part}:{part}" for part in learned]


def asr_lines(exported: Dict[str, Any], model_file: str) -> str:
    """How an ASR model starts from the export, in YAML with comments."""
    words = " ".join(init_params(exported, model_file))
    parts = yaml.safe_dump(asr_parts(exported), sort_keys=False)
    # asr.sh would put its own normalization in place of the config's.
    return (
        f"# The ASR config needs these parts:\n{parts}"
        f'# and asr.sh: --feats_normalize none --pretrained_model "{words}"\n'
        f"# or asr_train: --init_param {words}"
    )


def huggingface_parts(folder: str) -> Dict[str, Any]:
    """What an ASR config must have that takes a folder for transformers.

    In training the model masks its own frames, as ``specaug`` would.
    """
    return {
        "frontend": "huggingface",
        "frontend_conf": {"model": folder},
        "specaug": None,
        "normalize": None,
        "preencoder": None,
        "encoder": None,
    }


def huggingface_lines(folder: str) -> str:
    """How an ASR model of stock ESPnet starts from a folder for transformers."""
    parts = yaml.safe_dump(huggingface_parts(folder), sort_keys=False)
    return (
        f"# The ASR config needs these parts:\n{parts}# and asr.sh: --feats_normalize none"
    )


class Converted(NamedTuple):
    """A model in another format.

    Args:
        files: contents by name.
        tensors: how many they hold.
        start: how an ASR model starts from them, in YAML with comments.
    """

    files: Dict[str, bytes]
    tensors: int
    start: str


def for_espnet(
    config: Dict[str, Any], state: Dict[str, torch.Tensor], model_file: Path
) -> Converted:
    """The files that stock ESPnet loads.

    Args:
        config, state: of the run.
        model_file: where the weights will be, beside ``config.yaml``.

    Raises:
        UserError: when it has a part that stock ESPnet does not, or cannot take.
    """
    check_stock(config)
    new, exported = export(config, state)
    files = {
        "config.yaml": yaml.safe_dump(new, sort_keys=False).encode(),
        model_file.name: pth_bytes(exported),
    }
    return Converted(files, len(exported), asr_lines(new, str(model_file)))


def for_transformers(
    config: Dict[str, Any], state: Dict[str, torch.Tensor], output_dir: Path
) -> Converted:
    """The files of a folder for transformers.

    Raises:
        UserError: when Hugging Face's models have no such part, or transformers is not
            installed.
    """
    from espnet_atm.huggingface import to_huggingface

    model, extractor = to_huggingface(config, state)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    return Converted(files, len(model.state_dict()), huggingface_lines(str(output_dir)))


def write_export(folder: Path, run: Path, files: Dict[str, bytes]) -> None:
    """Write the files of a converted model, in place of an earlier export's only.

    Args:
        folder: the output folder, which is made.
        run: the folder of the training run.
        files: contents by name.

    Raises:
        UserError: as of :class:`Exported`.
        OSError: naming the file that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        Exported(folder, run).write(files)


class Exported:
    """What is in the output folder, and whose it is.

    Args:
        folder: the output folder.
        run: the folder of the training run.

    Raises:
        UserError: when the folder holds another run's export, or its list is damaged.
    """

    def __init__(self, folder: Path, run: Path):
        self.folder, self.run = folder, str(run.resolve())
        self.list = folder / MANIFEST
        self.files: Dict[str, List[str]] = {}  # checksums that a file of ours may have
        if not self.list.exists():
            return
        try:
            there = json.loads(read_text(self.list))
            self.files = {str(k): list(map(str, v)) for k, v in there["files"].items()}
            other = there["run"]
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise UserError(
                f"{self.list}: is damaged ({e}): give another --output_dir"
            ) from None
        if other != self.run:
            raise UserError(
                f"{folder}: holds the export of another run, {other}, and this is "
                f"{self.run}: give another --output_dir"
            )

    def write(self, contents: Dict[str, bytes]) -> None:
        """Write files, in place of those of an earlier export only.

        Raises:
            UserError: naming the file that is not an earlier export's.
            OSError: naming the file that cannot be written.
        """
        for name, content in contents.items():
            file = self.folder / name
            known = self.files.setdefault(name, [])
            new = hashlib.sha256(content).hexdigest()
            if os.path.lexists(file):
                there = None if file.is_symlink() else _checksum(file)
                if there not in (*known, new):
                    raise UserError(
                        f"{file}: is there, and no earlier export of this run wrote it "
                        "as it is: give another --output_dir"
                    )
                known[:] = [there]
            if new not in known:
                known.append(new)
        # First which files are to be ours, so that a killed export can be repeated.
        self._write_list()
        for name, content in contents.items():
            with whole_file(self.folder / name) as f:
                f.write(content)
            del self.files[name][:-1]
        self._write_list()

    def _write_list(self) -> None:
        with whole_file(self.list) as f:
            content = {"run": self.run, "files": self.files}
            f.write(json.dumps(content, indent=1).encode() + b"\n")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait for others that export here: two fine-tunings may start from one run."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _checksum(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

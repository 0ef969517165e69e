"""From a name to a scorer: its kind, its files, what tells it from others.

Nothing here imports torch's models or a toolkit, so that a finished folder of scores, or
a mistake in a name, is told at once.
"""

import errno
import hashlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, NamedTuple, Optional, Tuple, Union

from espnet_atm.errors import UserError, check_file, read_config, read_yaml
from espnet_atm.randomness import random_state_kept

if TYPE_CHECKING:
    from espnet_atm.scorer import Scorer

# A module of espnet_atm.scorers each, and its options beside device and precision.
ESPNET_ASR, OWSM_CTC, HUGGINGFACE_CTC = "espnet_asr", "owsm_ctc", "huggingface_ctc"
OPTIONS = {ESPNET_ASR: (), OWSM_CTC: ("lang", "task"), HUGGINGFACE_CTC: ("lang",)}
# ESPnet's names, in meta.yaml, for the config and the weights of the models that can be one.
PACKED = (
    ("asr_train_config", "asr_model_file"),
    ("s2t_train_config", "s2t_model_file"),
)
# What Hugging Face's loaders read of a folder, beside the weights.
HUGGINGFACE_FILES = (
    *("config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model"),
)
# The weights, in the order in which they are looked for; parts of a large one, too.
HUGGINGFACE_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
ADAPTERS = ("adapter.{}.safetensors", "adapter.{}.bin")  # of MMS, for a language
HELP = (
    "a folder or a hub's tag of a CTC model of Hugging Face's; an ESPnet ASR or OWSM-CTC "
    "model: its folder, .pth, packed file, or tag"
)


class Source(NamedTuple):
    """A scorer that is found and not loaded yet.

    Args:
        kind: its module in :mod:`espnet_atm.scorers`.
        arguments: what the module's ``load`` takes: a folder, or a config and weights.
        config: the small files that the scores depend on.
        weights: the large ones.
        options: ``lang``, ``task``; None where they are left to the model. Only those
            that the kind has.
    """

    kind: str
    arguments: Tuple[Path, ...]
    config: Tuple[Path, ...]
    weights: Tuple[Path, ...]
    options: Dict[str, Optional[str]]

    def load(self, device: str = "cpu", half: bool = False) -> "Scorer":
        """Load the model; draws no random numbers of others.

        Args:
            device: where to run it.
            half: on a GPU, compute in bfloat16 where it can, else in float16.

        Raises:
            UserError: naming the file, when it is no model with CTC, or its weights up
                to the CTC head are not all there, are others, or are not finite.
            OSError: when a file cannot be opened.
        """
        # A kind imports its toolkit, which is slow, or not installed.
        module = importlib.import_module(f"espnet_atm.scorers.{self.kind}")
        with random_state_kept(device):
            return module.load(
                *self.arguments, device=device, half=half, **self.options
            )

    def fingerprint(self) -> Dict[str, Optional[str]]:
        """Checksums of ``config`` and ``model``, and the options: what the scores need."""
        return {
            "model": _digest(self.weights),
            "config": _digest(self.config),
            **self.options,
        }


def find_scorer(
    model: Union[str, Path],
    model_file: Union[str, Path, None] = None,
    lang: Optional[str] = None,
    task: Optional[str] = None,
) -> Source:
    """Find a scorer by what a user calls it.

    Args:
        model: with ``model_file``, the ``config.yaml`` of an ESPnet model. Alone: a folder
            that holds a model of Hugging Face's or ESPnet's, a ``.pth`` with its
            ``config.yaml`` beside it, a packed ESPnet model, or a tag of a hub's, with
            ``@REVISION`` if need be. A tag is downloaded, unless it was before.
        model_file: the weights of an ESPnet model.
        lang, task: of kinds that have a choice.

    Raises:
        UserError: naming what cannot be had, or is no scorer.
        OSError: when a file is not there.
    """
    if model_file is not None:
        found = _espnet(Path(model), Path(model_file))
    else:
        found = _find(str(model), lang and lang.strip("<>"))
    # One word for eng and <eng>.
    given = {x: y and y.strip("<>") for x, y in (("lang", lang), ("task", task))}
    for name, value in given.items():
        if value is not None and name not in OPTIONS[found.kind]:
            raise UserError(
                f"{name}: {value!r}: {found.arguments[0]} has no choice of it; leave it out"
            )
    return found._replace(options={x: given[x] for x in OPTIONS[found.kind]})


def _find(name: str, lang: Optional[str]) -> Source:
    path = Path(name)
    try:
        there = bool(name) and path.exists()
    except (OSError, ValueError):  # too long, or with a null character: no path
        there = False
    if not there:
        looks = name.startswith(("/", ".", "~")) or len(path.parts) > 2 or not name
        if looks and "://" not in name:
            raise FileNotFoundError(errno.ENOENT, "scorer: no such file or folder", name)
        return _from_tag(name, lang)
    if path.is_dir():
        return _from_folder(path, lang)
    check_file(path)
    if path.suffix == ".pth":
        return _espnet(path.parent / "config.yaml", path)
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"{name}: is a config; give the weights, or the folder of both")
    return _packed(name, _espnet_files(name))


def _from_folder(folder: Path, lang: Optional[str]) -> Source:
    if (folder / "meta.yaml").is_file():
        meta = read_yaml(folder / "meta.yaml")
        if not isinstance(meta, dict) or not {"files", "yaml_files"} <= meta.keys():
            raise UserError(
                f"{folder / 'meta.yaml'}: is not what ESPnet packs with a model: it has "
                "no files and yaml_files"
            )
        return _packed(str(folder), _espnet_files(folder))
    if (folder / "config.json").is_file():
        return _huggingface(folder, lang)
    if (folder / "config.yaml").is_file():
        return _espnet(folder / "config.yaml", _only_weights(folder))
    raise UserError(
        f"{folder}: holds no scorer: it has neither config.json, as a model of Hugging "
        "Face's has, nor config.yaml or meta.yaml, as an ESPnet model has"
    )


def _only_weights(folder: Path) -> Path:
    """The one file of weights of an experiment; links to it are the same."""
    files = sorted(folder.glob("*.pth"))
    files = [x for x in files if x.name != "checkpoint.pth"]
    if not files:
        raise UserError(f"{folder}: holds a config.yaml and no weights (.pth)")
    if len({x.resolve() for x in files}) > 1:
        raise UserError(
            f"{folder}: holds {len(files)} files of weights; name one of them: "
            + ", ".join(str(x) for x in files[:5])
            + (", ..." if files[5:] else "")
        )
    return files[0]


def _from_tag(tag: str, lang: Optional[str]) -> Source:
    """A name on a hub, by what its files are."""
    tag = tag.removeprefix("https://huggingface.co/")
    hub = _import("huggingface_hub")
    zoo = _import("espnet_model_zoo.downloader")
    try:
        known = zoo.ModelDownloader().query("name", name=tag)
    except Exception as e:  # its table is downloaded where it is not there
        raise _cannot_be_had(tag, e) from None
    if known or zoo.is_url(tag):
        return _packed(tag, _espnet_files(tag))
    name, _, revision = tag.partition("@")
    try:
        small = hub.snapshot_download(
            name, revision=revision or None, allow_patterns=["meta.yaml", *HUGGINGFACE_FILES]
        )
    except Exception as e:  # whatever a hub or the network raises
        raise _cannot_be_had(tag, e) from None
    if (Path(small) / "meta.yaml").exists():
        return _packed(tag, _espnet_files(tag))
    if not (Path(small) / "config.json").exists():
        raise UserError(
            f"{tag}: holds no scorer: it has neither config.json, as a model of Hugging "
            "Face's has, nor meta.yaml, as an ESPnet model has"
        )
    try:
        for weights in HUGGINGFACE_WEIGHTS:
            # Of the adapters of a thousand languages, one.
            files = [*HUGGINGFACE_FILES, weights, f"{weights}.index.json"]
            files += [x.format(lang) for x in ADAPTERS if lang is not None]
            folder = hub.snapshot_download(
                name, revision=revision or None, allow_patterns=files
            )
            if any(Path(folder).glob(weights)):
                break
    except Exception as e:
        raise _cannot_be_had(tag, e) from None
    return _huggingface(Path(folder), lang)


def _huggingface(folder: Path, lang: Optional[str]) -> Source:
    weights: List[Path] = []
    for pattern in HUGGINGFACE_WEIGHTS:
        weights = weights or sorted(folder.glob(pattern))
    if not weights:
        raise UserError(
            f"{folder}: holds no weights: neither model.safetensors nor pytorch_model.bin"
        )
    adapters = [folder / x.format(lang) for x in ADAPTERS if lang is not None]
    weights += [x for x in adapters if x.is_file()][:1]
    config = [folder / x for x in HUGGINGFACE_FILES if (folder / x).is_file()]
    return Source(HUGGINGFACE_CTC, (folder,), tuple(config), tuple(weights), {})


def _espnet_files(name: Union[str, Path]) -> Dict[str, str]:
    """Where a published model's files are: in a folder (Path), or packed, or at a hub.

    Raises:
        UserError: naming it, when it cannot be had, or is not what ESPnet packs.
    """
    zoo = _import("espnet_model_zoo.downloader")
    try:
        if isinstance(name, Path):
            # What download_and_unpack does to a hub's snapshot: a folder is one, too.
            folder = str(name.absolute())
            return zoo.ModelDownloader._unpack_cache_dir_for_huggingface(folder)
        return zoo.ModelDownloader().download_and_unpack(name)
    except Exception as e:
        if Path(name).exists():
            raise UserError(
                f"{name}: is not what ESPnet packs with a model, or damaged "
                f"({_told(e)})"
            ) from None
        raise _cannot_be_had(str(name), e) from None


def _packed(name: str, files: Dict[str, str]) -> Source:
    for config, weights in PACKED:
        if config in files and weights in files:
            return _espnet(Path(files[config]), Path(files[weights]))
    raise UserError(
        f"{name}: is no ASR model: it has no {' and '.join(PACKED[0])}, only "
        f"{', '.join(sorted(files)) or 'nothing'}"
    )


def _espnet(config: Path, weights: Path) -> Source:
    for file in (config, weights):
        if not file.exists():
            raise FileNotFoundError(errno.ENOENT, "scorer: no such file", str(file))
        check_file(file)
    read = read_config(config)
    s2t = "promptencoder" in read or str(read.get("preprocessor")).startswith("s2t")
    kind = OWSM_CTC if s2t else ESPNET_ASR
    return Source(kind, (config, weights), (config,), (weights,), {})


def _import(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as e:
        package = name.partition(".")[0]
        raise UserError(
            f"{package}, which fetches published models, cannot be imported ({e}): pip "
            f"install {package}"
        ) from None


def _cannot_be_had(name: str, error: Exception) -> UserError:
    return UserError(
        f"{name}: no such scorer could be had: there is no such file or folder here, and "
        f"of the hub: {_told(error)}"
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _digest(files: Tuple[Path, ...]) -> str:
    """SHA-256 of a file; of several, of their names and checksums."""
    digests = {}
    for file in files:
        check_file(file)
        with open(file, "rb") as f:
            digests[file.name] = hashlib.file_digest(f, "sha256").hexdigest()
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{name} {digest}\n" for name, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()

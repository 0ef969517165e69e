"""Clusters of a sample of a corpus; and whatever ends a run."""

import logging
import signal

import numpy as np
import pytest
import soundfile
import torch
from test_label import end_at, finish, on_a_full_disk, processes  # noqa: F401

from espnet_atm import labelling
from espnet_atm.audio import AudioDataset
from espnet_atm.bin import learn_kmeans
from espnet_atm.errors import UserError
from espnet_atm.features import Mfcc
from espnet_atm.kmeans import Kmeans
from espnet_atm.labelling import Sample


def command(wav_scp, km, *options) -> list[str]:
    words = ["--wav_scp", wav_scp, "--km_path", km, "--num_workers", "0"]
    words += ["--num_clusters", "5", "--portion", "0.6"]
    return [*map(str, words), *map(str, options)]


@pytest.fixture
def undisturbed(corpus, tmp_path) -> str:
    """The digest of the model of a run that nothing ended."""
    folder = tmp_path / "undisturbed"
    learn_kmeans.main(command(corpus / "wav.scp", folder / "km"))
    assert [x.name for x in folder.iterdir()] == ["km"]  # the features are gone
    return Kmeans(folder / "km").digest


def sample_of(corpus, folder, portion, seed=0) -> Sample:
    dataset = AudioDataset(corpus / "wav.scp", 16000)
    return Sample(folder / "km", Mfcc(16000), dataset, portion, seed)


def test_the_sample_is_seeded_and_of_its_size(corpus, tmp_path):
    for portion, count in ((0.01, 1), (0.3, 3), (0.55, 6), (1, 10)):
        chosen = sample_of(corpus, tmp_path, portion).chosen.tolist()
        assert len(set(chosen)) == count and chosen == sorted(chosen)
        assert set(chosen) <= set(range(10))
        assert chosen == sample_of(corpus, tmp_path, portion).chosen.tolist()
    drawn = {tuple(sample_of(corpus, tmp_path, 0.3, seed).chosen) for seed in range(20)}
    assert len(drawn) > 10


def test_the_features_are_those_of_the_sample(corpus, tmp_path):
    with sample_of(corpus, tmp_path, 0.6) as sample:
        found = sample.collect(0)
    expected = []
    for number in sample.chosen:
        speech, _ = soundfile.read(corpus / f"utt{number}.wav", dtype="float32")
        expected.append(Mfcc(16000)(speech).numpy())
    assert isinstance(found, np.memmap) and found.dtype == np.float32
    np.testing.assert_array_equal(found, np.concatenate(expected))
    sample.remove()
    assert not list(tmp_path.glob("km*"))


def test_seeds_and_readers(corpus, tmp_path, undisturbed):
    learn_kmeans.main(command(corpus / "wav.scp", tmp_path / "a", "--num_workers", "2"))
    learn_kmeans.main(command(corpus / "wav.scp", tmp_path / "b", "--seed", "1"))
    assert Kmeans(tmp_path / "a").digest == undisturbed != Kmeans(tmp_path / "b").digest


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_and_started_again(corpus, tmp_path, undisturbed, processes, when):  # noqa: F811
    """Each time a little later; what is there is not extracted again."""
    km = tmp_path / "km"
    cmd, main = command(corpus / "wav.scp", km), learn_kmeans.main
    counts, codes = [], []
    for number in (0, 1, 2, 99):
        codes.append(finish(processes, end_at, number, when, main, cmd))
        counts += [x.read_bytes().count(b"\n") for x in tmp_path.glob("km.*.list")]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert counts == [0, 1, 3]
    assert Kmeans(km).digest == undisturbed
    assert [x.name for x in tmp_path.glob("km*")] == ["km"]


def killed(corpus, km, processes, *options) -> None:
    """Leave the features of three utterances behind."""
    cmd = command(corpus / "wav.scp", km, *options)
    code = finish(processes, end_at, 3, "before", learn_kmeans.main, cmd)
    assert code == -signal.SIGKILL


def test_other_features_do_not_go_on_with_what_is_there(
    corpus, tmp_path, undisturbed, processes  # noqa: F811
):
    km = tmp_path / "km"
    killed(corpus, km, processes, "--fs", "8000")
    (left,) = tmp_path.glob("km.*.list")
    learn_kmeans.main(command(corpus / "wav.scp", km))
    assert Kmeans(km).digest == undisturbed
    assert left.exists() and left.read_text().count("\n") == 3


@pytest.mark.parametrize("ending", [".list", ".features"])
def test_what_is_cut_is_extracted_again(
    corpus, tmp_path, undisturbed, processes, ending  # noqa: F811
):
    """No zeros take its place."""
    killed(corpus, tmp_path / "whole", processes)
    (data,) = (x.read_bytes() for x in tmp_path.glob(f"whole.*{ending}"))
    for part in (0, 1, len(data) // 2, len(data) - 1):
        for file in tmp_path.glob("whole.*"):
            content = file.read_bytes()
            own = tmp_path / file.name.replace("whole", "km")
            own.write_bytes(content[:part] if file.suffix == ending else content)
        # The name is that of the features, and not of the model.
        learn_kmeans.main(command(corpus / "wav.scp", tmp_path / "km"))
        assert Kmeans(tmp_path / "km").digest == undisturbed, part
        (tmp_path / "km").unlink()


@pytest.mark.parametrize("line", ["utt0 x y", "utt0 -1 39", "\xff", "utt0 10 20"])
def test_lines_that_are_none_are_not_gone_on_with(corpus, tmp_path, undisturbed, line):
    sample = sample_of(corpus, tmp_path, 0.6)
    first = f"utt{sample.chosen[0]}"
    sample.file.write_bytes(b"\0" * 400)
    sample.list.write_bytes(line.replace("utt0", first).encode("latin1") + b"\n")
    learn_kmeans.main(command(corpus / "wav.scp", tmp_path / "km"))
    assert Kmeans(tmp_path / "km").digest == undisturbed


def test_a_sample_of_other_utterances_is_named(corpus, tmp_path):
    sample = sample_of(corpus, tmp_path, 0.6)
    sample.list.write_text("someone 10 39\n")
    sample.file.write_bytes(b"\0" * 1560)
    with pytest.raises(UserError, match="list: is about other utterances: someone; remove"):
        learn_kmeans.main(command(corpus / "wav.scp", tmp_path / "km"))


def learn_each(cmd) -> None:
    labelling.SECONDS_AT_RISK = -1
    torch.set_num_threads(1)
    learn_kmeans.main(cmd)


def test_two_at_once_do_not_mix(corpus, tmp_path, undisturbed, processes):  # noqa: F811
    """A scheduler may start the same job twice."""
    cmd = command(corpus / "wav.scp", tmp_path / "km")
    both = [processes.Process(target=learn_each, args=[cmd]) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert Kmeans(tmp_path / "km").digest == undisturbed
    assert [x.name for x in tmp_path.glob("km*")] == ["km"]


@pytest.mark.parametrize("most", [30, 20000])
def test_a_full_disk_is_told(corpus, tmp_path, undisturbed, processes, most):  # noqa: F811
    """At once, or somewhere in the features."""
    told, cmd = tmp_path / "told", command(corpus / "wav.scp", tmp_path / "km")
    args = (on_a_full_disk, learn_kmeans.main, cmd, most, told)
    for _ in range(2):
        assert finish(processes, *args) == 0
        assert "km: features and clusters cannot be written: File too large" in told.read_text()
    learn_kmeans.main(cmd)
    assert Kmeans(tmp_path / "km").digest == undisturbed


def test_what_cannot_be_read_is_left_out(corpus, tmp_path, caplog):
    lines = (corpus / "wav.scp").read_text().splitlines()
    soundfile.write(tmp_path / "short.wav", np.zeros(399), 16000)
    lines[2:2] = [f"none {tmp_path}/none.wav", f"short {tmp_path}/short.wav"]
    (tmp_path / "wav.scp").write_text("\n".join(lines) + "\n")
    whole = ("--portion", "1")
    with caplog.at_level(logging.WARNING):
        learn_kmeans.main(command(tmp_path / "wav.scp", tmp_path / "a", *whole))
    assert "not learned from: none: no such file" in caplog.text
    assert "1 of 12 utterances were left out" in caplog.text
    learn_kmeans.main(command(corpus / "wav.scp", tmp_path / "b", *whole))
    assert Kmeans(tmp_path / "a").digest == Kmeans(tmp_path / "b").digest


@pytest.mark.parametrize(
    "options, message",
    [
        (("--num_clusters", "0"), "num_clusters: 0 is not positive"),
        (("--num_clusters", "65537"), "num_clusters: 65537 is too large: 65536 at most"),
        (("--num_clusters", "9999"), "num_clusters: 9999 is more than the [0-9]+ frames"),
        (("--seed", "-1"), "seed: -1 is not 0 or more"),
        *((("--portion", x), f"portion: {float(x)} is not above 0") for x in ("0", "2", "nan")),
        (("--fs", "3999"), "fs: 3999 is not 4000 or more"),
        (("--num_workers", "-1"), "num_workers: -1 is not 0 or more"),
        (("--ssl_model_file", "x"), "the layer: give --ssl_train_config, --ssl_model_file"),
        (("--wav_scp", "{}/empty"), "empty is empty: it has no utterances"),
        (("--wav_scp", "{}/short"), "short: has nothing to learn from"),
    ],
)
def test_impossible_options_are_refused(corpus, tmp_path, options, message):
    (tmp_path / "empty").write_text("")
    soundfile.write(tmp_path / "short.wav", np.zeros(399), 16000)
    (tmp_path / "short").write_text(f"utt {tmp_path}/short.wav\n")
    options = [x.format(tmp_path) for x in options]
    with pytest.raises(UserError, match=message) as e:
        learn_kmeans.main(command(corpus / "wav.scp", tmp_path / "km", *options))
    assert "\n" not in str(e.value) and not (tmp_path / "km").exists()

"""k-means of frames, beside ESPnet's scripts and a search by hand."""

import ast
import pickle

import joblib
import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.cluster import MiniBatchKMeans

from espnet_atm.errors import UserError
from espnet_atm.kmeans import Kmeans, learn_kmeans


def blobs(count=3000, clusters=6, size=39) -> tuple[np.ndarray, np.ndarray]:
    """Frames around centres that are far from each other, and which is whose."""
    rng = np.random.default_rng(0)
    centres = 100 * rng.standard_normal((clusters, size))
    of = rng.integers(0, clusters, count)
    frames = centres[of] + rng.standard_normal((count, size))
    return frames.astype(np.float32), of


def test_separate_blobs_are_found(tmp_path):
    frames, of = blobs()
    learn_kmeans(frames, 6, tmp_path / "km")
    found = Kmeans(tmp_path / "km")(torch.from_numpy(frames))
    assert len(Kmeans(tmp_path / "km")) == 6
    # One label for each blob, and another for another.
    pairs = set(zip(found.tolist(), of.tolist()))
    assert len(pairs) == len({x for x, _ in pairs}) == 6


def test_a_seed_says_what_is_found(tmp_path):
    frames = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        learn_kmeans(frames, 7, tmp_path / name, seed)
    digests = [Kmeans(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    # Of what is mapped, the same.
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    learn_kmeans(mapped, 7, tmp_path / "d", 1)
    assert Kmeans(tmp_path / "d").digest == digests[0]


def espnets_labels(model_file, frames) -> np.ndarray:
    """By ApplyKmeans of dump_km_label.py, whose imports take ten times as long."""
    file = ROOT / "egs2/TEMPLATE/asr1/pyscripts/feats/dump_km_label.py"
    (code,) = (
        x
        for x in ast.parse(file.read_text()).body
        if isinstance(x, ast.ClassDef) and x.name == "ApplyKmeans"
    )
    names = {"joblib": joblib, "np": np, "torch": torch}
    exec(compile(ast.Module([code], []), str(file), "exec"), names)
    return names["ApplyKmeans"](str(model_file), use_gpu=False)(frames)[0]


def test_labels_are_those_of_espnets_script_and_the_nearest(tmp_path):
    """Of what looks like MFCC: some coefficients are far from 0, and much larger."""
    rng = np.random.default_rng(0)
    scale = np.geomspace(100, 0.1, 39)
    frames = (rng.standard_normal((4000, 39)) * scale + scale).astype(np.float32)
    learn_kmeans(frames, 100, tmp_path / "km")
    kmeans = Kmeans(tmp_path / "km")
    found = kmeans(torch.from_numpy(frames))
    assert found.dtype == np.int64 and len(set(found.tolist())) > 90
    # But for ties of float32.
    assert (found == espnets_labels(tmp_path / "km", frames)).mean() > 0.999
    centres = joblib.load(tmp_path / "km").cluster_centers_.astype(np.float64)
    distances = np.square(frames[:, None].astype(np.float64) - centres).sum(axis=2)
    rows = np.arange(len(frames))
    assert (distances[rows, found] <= distances.min(axis=1) + 0.1).all()
    assert (found == distances.argmin(axis=1)).mean() > 0.999


def test_more_clusters_than_frames_are_refused(tmp_path):
    frames, _ = blobs(5)
    with pytest.raises(UserError, match="num_clusters: 6 is more than the 5 frames"):
        learn_kmeans(frames, 6, tmp_path / "km")
    assert not list(tmp_path.iterdir())


def test_features_of_other_dimensions_are_refused(tmp_path):
    learn_kmeans(blobs()[0], 6, tmp_path / "km")
    kmeans = Kmeans(tmp_path / "km")
    kmeans.check_size(39)
    with pytest.raises(UserError, match="km: its clusters are of 39 dim.* features of 16"):
        kmeans.check_size(16)


def km_of(centres) -> MiniBatchKMeans:
    model = MiniBatchKMeans(2)
    model.cluster_centers_ = centres
    return model


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no model at all",
        pickle.dumps({"cluster_centers_": 3}),
        pickle.dumps(km_of([[1.0, 2.0]])),
        pickle.dumps(km_of(np.ones(3))),
        pickle.dumps(km_of(np.ones((0, 3)))),
        pickle.dumps(km_of(np.array([[1.0, np.nan], [0.0, 1.0]]))),
        pickle.dumps(km_of(np.array([["a", "b"]]))),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path, content):
    (tmp_path / "km").write_bytes(content)
    with pytest.raises(UserError, match="km: holds no k-means") as e:
        Kmeans(tmp_path / "km")
    assert "\n" not in str(e.value)


def test_a_model_that_is_cut_off_is_refused_or_not_there(tmp_path):
    learn_kmeans(blobs(size=3)[0], 6, tmp_path / "km")
    data = (tmp_path / "km").read_bytes()
    for end in range(0, len(data), max(len(data) // 50, 1)):
        (tmp_path / "km").write_bytes(data[:end])
        with pytest.raises(UserError, match="km: holds no k-means"):
            Kmeans(tmp_path / "km")
    with pytest.raises(FileNotFoundError, match="none"):
        Kmeans(tmp_path / "none")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_features_need_not_be_where_the_clusters_are(tmp_path):
    frames = torch.from_numpy(blobs()[0])
    learn_kmeans(frames.numpy(), 6, tmp_path / "km")
    expected = Kmeans(tmp_path / "km")(frames)
    np.testing.assert_array_equal(Kmeans(tmp_path / "km", "cuda")(frames), expected)

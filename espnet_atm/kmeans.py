"""k-means of frames: learned from a sample of a corpus, and what is nearest to a frame."""

import hashlib
import logging
from pathlib import Path
from typing import Union

import joblib
import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

from espnet_atm.errors import UserError, check_file
from espnet_atm.files import whole_file

# As ESPnet's learn_kmeans.py has it.
OPTIONS = {
    "init": "k-means++",
    "max_iter": 100,
    "batch_size": 10000,
    "tol": 0.0,
    "max_no_improvement": 100,
    "n_init": 20,
    "reassignment_ratio": 0.0,
    "compute_labels": False,
}


def learn_kmeans(
    features: np.ndarray, num_clusters: int, model_file: Path, seed: int = 0
) -> None:
    """Learn the clusters and write them, as ESPnet's scripts read them.

    In memory are the features, which may be mapped, and some bytes a frame.

    Args:
        features: (F, D), float32.
        num_clusters: K.
        model_file: where to; joblib's.
        seed: of the first centroids and of the batches.

    Raises:
        UserError: when there are fewer frames than clusters.
    """
    if len(features) < num_clusters:
        raise UserError(
            f"num_clusters: {num_clusters} is more than the {len(features)} frames that "
            "they are to be learned from"
        )
    model = MiniBatchKMeans(num_clusters, random_state=seed, **OPTIONS)
    model.fit(features)
    logging.info(
        f"{num_clusters} clusters of {len(features)} frames: {model.n_steps_} batches of "
        f"{OPTIONS['batch_size']}"
    )
    with whole_file(model_file) as f:
        joblib.dump(model, f)


class Kmeans:
    """What is nearest to a frame.

    Args:
        model_file: of :func:`learn_kmeans`, or ESPnet's ``km_<K>.mdl``.
        device: ``cpu``, ``cuda``, ...

    Raises:
        UserError: when it is none.
    """

    def __init__(self, model_file: Union[str, Path], device: str = "cpu"):
        check_file(model_file)
        try:
            centroids = joblib.load(model_file).cluster_centers_.astype(np.float32)
        except Exception as e:  # whatever unpickling raises on what is damaged
            what = " ".join(f"{type(e).__name__}: {e}".split())
            raise UserError(f"{model_file}: holds no k-means: {what}") from None
        if centroids.ndim != 2 or not centroids.size or not np.isfinite(centroids).all():
            raise UserError(
                f"{model_file}: holds no k-means: its clusters, of shape "
                f"{centroids.shape}, are no finite points"
            )
        self.centroids = torch.from_numpy(centroids).T.to(device)
        self.squares = self.centroids.square().sum(dim=0)
        self.path = model_file
        data = np.ascontiguousarray(centroids, "<f4").tobytes()
        self.digest = hashlib.md5(data, usedforsecurity=False).hexdigest()

    def __len__(self) -> int:
        return self.centroids.size(1)

    def check_size(self, size: int) -> None:
        """Refuse features of other dimensions.

        Raises:
            UserError: naming both.
        """
        if size != self.centroids.size(0):
            raise UserError(
                f"{self.path}: its clusters are of {self.centroids.size(0)} dimensions, "
                f"and the features of {size}: it was learned from other ones"
            )

    def __call__(self, features: torch.Tensor) -> np.ndarray:
        """The nearest cluster of each frame.

        Args:
            features: (T, D), float32, on any device.

        Returns:
            (T,), int64.
        """
        features = features.to(self.centroids.device)
        # The frame's own square is the same for all clusters.
        return (self.squares - 2 * features @ self.centroids).argmin(dim=1).cpu().numpy()

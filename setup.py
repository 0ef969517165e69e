"""ESPnet extension: ATM, speech pre-training with guided masks."""

from setuptools import find_packages, setup

setup(
    name="espnet_atm",
    version="0.1.0",
    description="Pre-training of speech encoders with masks guided by a scorer's confidence (ATM), for ESPnet",
    license="Apache-2.0",
    python_requires=">=3.12,<3.14",
    packages=find_packages(include=["espnet_atm", "espnet_atm.*"]),
    install_requires=[
        # Whichever is there, which must not be replaced: espnet_atm says at import which were tested, and
        # tools/setup.sh installs the one whose recipes it fetches. It brings torch, numpy, omniio, ...
        "espnet",
        # what ESPnet's training and recipe scripts import and do not ask for
        "tensorboard",
        "matplotlib",
        "editdistance",
        "h5py",
        "resampy",
        "scikit-learn",
        # ours
        "espeakng-loader",  # the mini corpus's unlabelled speech
        "jiwer",
        "kaldiio",
        "silero-vad>=6,<7",  # the speech gate; parts of its model are called
        "tqdm",
    ],
    extras_require={"test": ["pytest", "pytest-xdist", "hypothesis", "transformers"]},
)

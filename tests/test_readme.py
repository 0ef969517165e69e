"""What README.md tells to do, done."""

import os
import re
import subprocess
import sys

import numpy as np
import soundfile
from conftest import LOSSES, ROOT

from espnet_atm.confidence import align_track
from espnet_atm.task import ATMSSLTask
from espnet_atm.track import TrackReader, read_track_grid

TRACK = re.search(
    r"^### A track of your own\n.*?```python\n(.*?)```",
    (ROOT / "README.md").read_text(),
    re.DOTALL | re.MULTILINE,
)[1]


def test_a_track_of_ones_own(tmp_path, spoken, corpus, ssl_command):
    """The example makes tracks that training takes, in time with the audio."""
    (tmp_path / "dump/raw/train").mkdir(parents=True)
    lines = []
    for utt, speech in spoken.items():
        soundfile.write(tmp_path / f"{utt}.wav", speech.numpy(), 16000)
        lines.append(f"{utt} {tmp_path}/{utt}.wav\n")
    (tmp_path / "dump/raw/train/wav.scp").write_text("".join(lines))
    done = subprocess.run(
        [sys.executable, "-c", TRACK], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    os.chdir(tmp_path)
    scp = tmp_path / "exp/my_track/train/confidence.scp"
    tracks = TrackReader(scp)
    assert set(tracks) == set(spoken)
    grid = read_track_grid(str(scp), 16000)
    for utt, speech in spoken.items():
        shift = 640
        count = len(speech) // shift
        confidence = align_track(tracks[utt], grid.shift, shift, count, grid.offset)
        frames = speech[: count * shift].reshape(-1, shift)
        power = frames.square().mean(dim=1).numpy()
        loud = power > np.quantile(power, 0.6)
        if utt == "clean":
            assert confidence[loud].mean() > confidence[~loud].mean() + 0.2
        assert (confidence.mean() < 0.1) == (utt == "purenoise")

    (tmp_path / "shape").write_text(
        "".join(f"{utt} {len(speech)}\n" for utt, speech in spoken.items())
    )
    loss = [{"name": "best_rq", "conf": LOSSES["best_rq"]}]
    command = ssl_command(("speech", "confidence"), ssl_conf={"masker": "atm"}, loss=loss)
    at = command.index("--token_list")
    del command[at : at + 4]
    own = (tmp_path / "dump/raw/train/wav.scp", scp, tmp_path / "shape")
    for file in own:
        command = [x.replace(f"{corpus}/{file.name}", str(file)) for x in command]
    assert str(corpus) not in " ".join(command)
    ATMSSLTask.main(cmd=command)

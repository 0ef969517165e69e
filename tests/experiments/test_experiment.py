"""What the arms of the experiment share, and what they differ in."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from espnet2.tasks.asr import ASRTask

sys.path.insert(0, str(ROOT / "experiments"))
import experiment  # noqa: E402
import make_data  # noqa: E402
from arms import ARMS, OBJECTIVES, Run, further_runs, main_runs  # noqa: E402

from espnet_atm.bin import export_ssl  # noqa: E402
from espnet_atm.config import SSLConf  # noqa: E402
from espnet_atm.features import Layer  # noqa: E402


def test_arms_differ_in_ssl_conf_alone():
    configs = {a: experiment.ssl_config(Run("hubert", a, 0.4, 3)) for a in ARMS if a != "N"}
    confs = {arm: config.pop("ssl_conf") for arm, config in configs.items()}
    assert all(config == configs["A"] for config in configs.values())
    assert confs["E"]["loss_scale"] == "utterance"
    assert confs["C"]["masker_conf"]["strategy"] == "shuffled"
    assert confs["B"] == confs["F"] and confs["A"] == confs["K"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "N"])
def test_ssl_conf_is_what_it_may_be(objective, arm):
    config = experiment.ssl_config(Run(objective, arm, 0.3, 0))
    found = SSLConf.parse(config["ssl_conf"])
    assert found.mask_ratio == 0.3 and found.exact
    assert found.validation_masker["mask_ratio"] == 0.40


def test_fine_tuning_has_the_scorers_model(tmp_path):
    config = experiment.ssl_config(Run("hubert", "A", 0.4, 0))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    found = experiment.asr_config(tmp_path, "train30", 0)
    scorer = experiment.asr_config(None, "scorer", 0)
    assert found["encoder_conf"]["dropout_rate"] == 0
    for name in ("encoder_conf", "frontend_conf", "preencoder", "specaug_conf"):
        assert found[name] == scorer[name], name
    assert found["optim_conf"]["lr"] < scorer["optim_conf"]["lr"]


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens.txt"
    path.write_text("<blank>\n<unk>\n<space>\na\n<sos/eos>\n")
    return path


def asr_model(folder, tokens):
    """The scorer, with nothing learned, and its config."""
    config = experiment.write_yaml(
        folder / "a.yaml", experiment.asr_config(None, "scorer", 0)
    )
    args = ASRTask.get_parser().parse_args(
        ["--config", str(config), "--output_dir", str(folder), "--token_type", "char",
         "--token_list", str(tokens)]
    )
    return ASRTask.build_model(args), args


def test_the_scorer_is_as_large_as_was_said(tmp_path, tokens):
    model, _ = asr_model(tmp_path, tokens)
    assert 0.8e6 < sum(x.numel() for x in model.parameters()) < 1.1e6


def test_what_runs_share_is_made_before_the_first(work, monkeypatch):
    begun = []

    def carry_out(work, run, plan):
        begun.append(run.name)
        leave_result(work, run)

    monkeypatch.setattr(experiment, "carry_out", carry_out)
    runs = [Run("hubert", arm, 0.4, seed) for seed in (0, 1) for arm in "NAK"]
    for _ in range(2):  # not again, when no run is left
        experiment.carry_out_all(
            work, runs, 1, experiment.WHOLE, lambda: begun.append("prepared")
        )
    assert begun == ["prepared", *(run.name for run in runs)]


def test_the_scorer_becomes_an_ssl_model(tmp_path, tokens):
    """It has the scorer's output at the layer that labels are of, and exports for arm N."""
    scorer = asr_model(tmp_path, tokens)[0].eval()
    torch.save(scorer.state_dict(), tmp_path / experiment.BEST)
    words = experiment.as_ssl_model(tmp_path, tmp_path / "kmeans")
    given = dict(zip(words[::2], words[1::2]))
    before = given["--ssl_model_file"].read_bytes()
    assert experiment.as_ssl_model(tmp_path, tmp_path / "kmeans") == words
    assert given["--ssl_model_file"].read_bytes() == before
    speech = np.random.default_rng(0).normal(size=16000).astype(np.float32) / 10
    outputs = []
    scorer.encoder.encoders[experiment.LAYER - 1].register_forward_hook(
        lambda _, given, output: outputs.append(output[0][0][0])  # of (x, positions), mask
    )
    with torch.no_grad():
        scorer.encode(torch.from_numpy(speech)[None], torch.tensor([16000]))
    features = Layer(given["--ssl_train_config"], given["--ssl_model_file"], experiment.LAYER)
    torch.testing.assert_close(features(speech), outputs[0])
    export_ssl.main([*map(str, words), "--output_dir", str(tmp_path / "start")])
    (exported,) = (tmp_path / "start").glob("*.pth")
    learned = scorer.state_dict()
    for name, weight in torch.load(exported).items():
        if name.startswith(("preencoder.", "encoder.")):
            torch.testing.assert_close(weight, learned.pop(name), rtol=0, atol=0)
    assert not [x for x in learned if x.startswith(("preencoder.", "encoder."))]


def test_how_long_the_rest_takes_is_said(work, monkeypatch, capsys):
    """From the runs that were done before, on whatever machine, and then from this one's."""
    monkeypatch.setattr(
        experiment, "carry_out", lambda work, run, _: leave_result(work, run, 1800)
    )
    runs = [Run("hubert", "A", 0.4, seed) for seed in range(5)]
    leave_result(work, runs[2], 3600)
    experiment.carry_out_all(work, runs, 1, experiment.WHOLE)
    said = capsys.readouterr().out
    assert "5 runs, 1 done already; 4 to go, 4.0 h" in said
    assert "hubert_A_0.40_seed0: done in 30.0 min; 3 to go, 1.5 h" in said
    assert "hubert_A_0.40_seed2" not in said
    experiment.carry_out_all(work, runs, 1, experiment.WHOLE)
    assert capsys.readouterr().out == "5 runs, 5 done already; 0 to go, 0.0 h\n"


def test_without_a_scorer_no_run_begins(work, monkeypatch):
    def prepare():
        raise experiment.Failed("exit code 1, see scorer.log")

    begun = []
    monkeypatch.setattr(experiment, "carry_out", lambda work, run, _: begun.append(run))
    with pytest.raises(SystemExit, match="before the runs: exit code 1, see scorer.log"):
        experiment.carry_out_all(
            work, [Run("hubert", "N", 0.4, 0)], 2, experiment.WHOLE, prepare
        )
    assert not begun


def test_the_scorer_is_kept_with_the_results(work, tokens, monkeypatch):
    """Without what names this machine's folders; a model can be built from it, and is as given."""
    trained = []

    def train_asr(work, folder, train, seed):
        model, args = asr_model(folder, tokens)
        args.token_list = list(model.token_list)
        experiment.write_yaml(folder / "config.yaml", vars(args))
        torch.save(model.state_dict(), folder / experiment.BEST)
        trained.append(model)
        return 0.0

    monkeypatch.setattr(experiment, "train_asr", train_asr)
    scorer = experiment.train_scorer(work)
    assert str(work.root) not in (scorer / "config.yaml").read_text()
    found, _ = ASRTask.build_model_from_file(
        scorer / "config.yaml", scorer / experiment.BEST, "cpu"
    )
    for (name, got), given in zip(
        found.state_dict().items(), trained[0].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(got, given, rtol=1e-3, atol=1e-3, msg=name)
    assert experiment.train_scorer(work) == scorer and len(trained) == 1
    torch.save({}, scorer / experiment.BEST)
    for model in (scorer / experiment.BEST, None):  # another one, and none
        if model is None:
            (scorer / experiment.BEST).unlink()
        with pytest.raises(experiment.Failed, match="of another scorer than .*another --work"):
            experiment.train_scorer(work)
    assert len(trained) == 1


def test_of_what_scorer_a_folder_is_is_written_once(work, tokens, monkeypatch):
    """A kill in the midst of another time would leave that it is of none."""
    model = work.results / "scorer" / experiment.BEST
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    experiment.train_scorer(work)
    written = (work.root / "scorer.md5").stat().st_mtime_ns
    experiment.train_scorer(work)
    assert (work.root / "scorer.md5").stat().st_mtime_ns == written


def test_a_run_that_fails_stops_no_other(work, monkeypatch, capsys):
    """Whatever its fault."""
    runs = [Run("hubert", "A", 0.4, seed) for seed in range(4)]
    faults = {runs[0]: experiment.Failed("exit code 1"), runs[2]: KeyError("weights")}

    def carry_out(work, run, plan):
        if run in faults:
            raise faults[run]
        leave_result(work, run)

    monkeypatch.setattr(experiment, "carry_out", carry_out)
    with pytest.raises(SystemExit) as ended:
        experiment.carry_out_all(work, runs, 1, experiment.WHOLE)
    assert str(ended.value) == (
        "failed:\nhubert_A_0.40_seed0: exit code 1\nhubert_A_0.40_seed2: 'weights'"
    )
    assert "KeyError: 'weights'" in capsys.readouterr().err
    assert all(work.result(run).is_file() != (run in faults) for run in runs)


def test_all_arms_begin_with_what_the_scorer_learned(work):
    words = experiment.pretrain_words(
        work, Run("hubert", "A", 0.4, 0), work.root / "ssl", work.root / "ssl.yaml"
    )
    start = work.root / "kmeans/scorer.pth"
    given = words[words.index("--init_param") + 1 :]
    assert given == [f"{start}:preencoder:preencoder", f"{start}:encoder:encoder"]


def test_each_run_has_a_name_of_its_own():
    runs = main_runs("hubert") + further_runs("hubert", "best_rq")
    assert len({run.name for run in runs}) == len(set(runs)) == len(runs)
    assert len(main_runs("hubert")) == 5 * 13


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{k} {v}\n" for k, v in rows.items()))


def leave_result(work, run, seconds=0):
    experiment.write_json(work.result(run), {"wall_seconds": {"pretrain": seconds}})


@pytest.fixture
def work(tmp_path):
    """A pool of 30 utterances of 1 to 3 s, in three thirds; the gate likes the last ones."""
    work = experiment.Work(tmp_path, tmp_path / "results")
    utts = [f"u{i:02d}" for i in range(30)]
    table(work.lists / "pool_shape", {u: 16000 * (1 + i % 3) for i, u in enumerate(utts)})
    table(work.data / "pool/utt2category",
          {u: ("dutch", "czech", "noise")[i // 10] for i, u in enumerate(utts)})
    table(work.root / "scores/gated/pool/utt2confidence",
          {u: i / 30 for i, u in enumerate(utts)})
    return work


def test_thirds_are_of_hours(work):
    lengths = experiment.read_table(work.lists / "pool_shape")
    third = sum(map(int, lengths.values())) / 3
    for part in ("gate", "random", "dutch"):
        chosen = experiment.read_table(experiment.select_pool(work, part, 1))
        assert sum(map(int, chosen.values())) == pytest.approx(third, abs=3 * 16000)
        assert chosen.items() <= lengths.items()
    gate = experiment.read_table(experiment.select_pool(work, "gate", 1))
    assert min(gate) > "u15"
    dutch = experiment.read_table(experiment.select_pool(work, "dutch", 1))
    assert max(dutch) == "u09"


@pytest.fixture
def data(work):
    """Two utterances of half a second in each set."""
    for name in (*experiment.TRAINED_ON, *experiment.TESTED_ON):
        wavs = {f"{name}{i}": work.data / name / f"{i}.wav" for i in range(2)}
        table(work.data / name / "wav.scp", wavs)
        if name != "pool":
            table(work.data / name / "text", dict.fromkeys(wavs, "ab a"))
        for wav in wavs.values():
            experiment.soundfile.write(wav, np.zeros(8000), 16000)
    return work


def test_lists_are_of_the_data_that_is_there(data):
    experiment.select_pool(data, "gate", 0)
    experiment.write_lists(data)
    assert (data.lists / "tokens.txt").read_text().split() == [
        "<blank>", "<unk>", "<space>", "a", "b", "<sos/eos>"
    ]
    for name in experiment.TRAINED_ON:
        lengths = experiment.read_table(data.lists / f"{name}_shape")
        assert lengths == {f"{name}0": "8000", f"{name}1": "8000"}
    assert not (data.lists / "pool_gate_shape").exists()  # it may be of other scores
    experiment.write_lists(data)


@pytest.mark.parametrize("name, what", [
    (name, what)
    for name in (*experiment.TRAINED_ON, *experiment.TESTED_ON)
    for what in ("ids", "text", "lengths")
    if (name, what) != ("pool", "text")  # it has none
])
def test_data_other_than_the_results_is_refused(data, name, what):
    experiment.write_lists(data)
    wav = data.data / name / "1.wav"
    if what == "ids":
        table(data.data / name / "wav.scp", {f"{name}0": wav})
    elif what == "lengths":
        experiment.soundfile.write(wav, np.zeros(8001), 16000)
    else:
        table(data.data / name / "text", {f"{name}0": "ab a", f"{name}1": "b"})
    with pytest.raises(experiment.Failed, match=f"{name}: is not what .*another --results"):
        experiment.write_lists(data)
    with pytest.raises(SystemExit, match=f"{name}: is not what"):
        experiment.main(["time", "--work", str(data.root), "--results", str(data.results)])


def test_two_runs_write_one_list_at_once(tmp_path, monkeypatch):
    """The second does so just before the first one's is in its place."""
    path, replace, others = tmp_path / "list", experiment.os.replace, []

    def replaced(partial, whole):
        if not others:
            others.append(threading.Thread(target=experiment.write_text, args=(path, "same\n")))
            others[0].start()
            others[0].join()
        replace(partial, whole)

    monkeypatch.setattr(experiment.os, "replace", replaced)
    experiment.write_text(path, "same\n")
    assert [x.name for x in tmp_path.iterdir()] == ["list"]
    assert path.read_text() == "same\n"


def test_the_pilot_is_decided_on_dev():
    assert experiment.PILOT.decoded == ("dev",)
    assert set(experiment.PILOT.labelled) < set(experiment.WHOLE.labelled)


def test_a_random_third_is_of_the_seed(work):
    first, again, other = (
        experiment.select_pool(work, "random", seed).read_text() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_levels_are_dealt_out_whole_and_by_minutes():
    rng = np.random.default_rng(0)
    seconds = {f"level{i}": float(x) for i, x in enumerate(rng.uniform(20, 200, 80))}
    parts = make_data.deal(seconds, {"train": 30.0, "test": 20.0})
    assert parts == make_data.deal(seconds, {"train": 30.0, "test": 20.0})
    assert set(parts) == set(seconds)
    for part, minutes in (("train", 30), ("test", 20)):
        total = sum(s for level, s in seconds.items() if parts[level] == part) / 60
        assert total == pytest.approx(minutes, abs=1)


def test_too_little_audio_is_told():
    with pytest.raises(ValueError, match="czech: 0.5 minutes are there, 2.0 are wanted"):
        make_data.take([10.0] * 3, lambda x: x, 2.0, "czech")


def test_audio_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = make_data.Corpus(Path("data/audio"))
    made = corpus.put("spk", "a", "dutch", lambda: np.sin(np.arange(16000) / 9))
    assert Path(made.wav) == tmp_path / "data/audio/spk/spk-a.flac"
    assert made.duration == 1.0


@pytest.mark.parametrize("how", make_data.DEGRADED)
def test_a_degraded_copy_is_as_long_and_another(how):
    speech = np.sin(np.arange(16001) / 7) * 0.1
    found = make_data.degrade(speech, how, "utt")
    assert len(found) == len(speech)
    assert np.abs(found - speech).max() > 0.01
    assert np.array_equal(found, make_data.degrade(speech, how, "utt"))


# ------------------------------------------------------------------------------------
# Stopped at any moment
# ------------------------------------------------------------------------------------
def wait_for(ready, what):
    end = time.time() + 120
    while not ready():
        assert time.time() < end, f"no {what} after two minutes"
        time.sleep(0.1)


def test_a_stopped_training_goes_on_from_its_last_epoch(work, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("train10", "dev"):
        wavs = {f"{name}{i}": work.data / name / f"{i}.wav" for i in range(4)}
        table(work.data / name / "wav.scp", wavs)
        table(work.data / name / "text", dict.fromkeys(wavs, "aa"))
        for wav in wavs.values():
            experiment.soundfile.write(wav, rng.normal(size=16000) / 10, 16000)
        table(work.lists / f"{name}_shape", dict.fromkeys(wavs, 16000))
    (work.lists / "tokens.txt").write_text("<blank>\n<unk>\n<space>\na\n<sos/eos>\n")
    monkeypatch.setattr(experiment, "ASR_STEPS", 2)
    monkeypatch.setitem(experiment.ASR_EPOCHS, "train10", 30)
    folder, ended = work.root / "run/train10", []

    def train():
        try:
            experiment.train_asr(work, folder, "train10", 0)
        except experiment.Failed as error:
            ended.append(str(error))

    thread = threading.Thread(target=train)
    thread.start()
    wait_for((folder / "2epoch.pth").exists, "second epoch")
    with pytest.raises(SystemExit, match="143"):
        work.stop(signal.SIGTERM, None)
    thread.join()
    assert "see" in ended[0]
    with pytest.raises(experiment.Failed, match="stopped"):  # nothing more is begun
        experiment.train_asr(work, folder, "train10", 0)

    log = folder.with_suffix(".log")
    first = log.read_text()
    work.stopped = False
    experiment.train_asr(work, folder, "train10", 0)
    second = log.read_text().removeprefix(first)
    assert "The training was resumed using" in second
    assert "1epoch started" not in second and "30epoch started" in second


def test_what_is_begun_while_a_signal_comes_ends_too(work, monkeypatch):
    """The handler ends what it knows of, which the newest is not yet."""
    popen = subprocess.Popen

    def begun(*args, **kwargs):
        process = popen(*args, **kwargs)
        with pytest.raises(SystemExit):
            work.stop(signal.SIGTERM, None)
        return process

    monkeypatch.setattr(experiment.subprocess, "Popen", begun)
    with pytest.raises(experiment.Failed, match=f"exit code -{signal.SIGTERM.value}"):
        work.command(work.root / "log", "-c", "import time; time.sleep(300)")


HOLDER = """
import signal, sys
sys.path.insert(0, {here!r})
import experiment
from pathlib import Path
work = experiment.Work(Path({root!r}), Path({root!r}))
work.take()
signal.signal(signal.SIGTERM, work.stop)
work.command(Path({root!r}) / "log", "-c", "import os, time; "
             "open({pid!r}, 'w').write(str(os.getpid())); time.sleep(300)")
"""


def taken(work):
    try:
        work.take()
    except SystemExit:
        return False
    return True


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_started_ends_too_or_keeps_others_out(work, signum):
    pid = work.root / "pid"
    script = HOLDER.format(
        here=str(ROOT / "experiments"), root=str(work.root), pid=str(pid)
    )
    holder = subprocess.Popen([sys.executable, "-c", script])
    try:
        wait_for(lambda: pid.exists() and pid.read_text(), "child")
        child = int(pid.read_text())
        holder.send_signal(signum)
        assert holder.wait() in (128 + signum, -signum)
        if signum == signal.SIGKILL:
            with pytest.raises(SystemExit, match="what a killed one had started"):
                work.take()
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: taken(work), "end of the child")
        work.lock.close()
    finally:
        holder.kill()


def test_a_folder_is_gone_on_with_if_it_is_of_the_same(tmp_path):
    folder = tmp_path / "run"
    for made_of, kept in (({"a": (1, 2)}, False), ({"a": [1, 2]}, True), ({"a": 3}, False)):
        experiment.go_on(folder, made_of)
        assert (folder / "checkpoint.pth").exists() == kept
        (folder / "checkpoint.pth").touch()


def test_what_is_done_of_a_run_is_not_done_again(work, monkeypatch):
    """Until its results are there; without them, or with other inputs, all is done anew."""
    done, faults = [], []

    def command(log, *words):
        words = list(map(str, words))
        if faults and faults[0] == log.stem:
            raise experiment.Failed(faults.pop())
        done.append(log.stem)
        if "--output" in words:
            Path(words[words.index("--output") + 1]).write_text('{"errors": {}}')
        elif "--output_dir" in words:
            folder = Path(words[words.index("--output_dir") + 1])
            folder.mkdir(exist_ok=True)
            (folder / "config.yaml").write_text(json.dumps(
                experiment.ssl_config(Run("hubert", "A", 0.4, 0))
            ))
            torch.save({"reporter": {"stats": {}}}, folder / "checkpoint.pth")
            (folder / "a.pth").touch()
        return 1.0

    monkeypatch.setattr(work, "command", command)
    monkeypatch.setattr(experiment, "init_params", lambda config, weights: [])
    monkeypatch.setattr(experiment, "select_pool", lambda *_: work.lists / "pool_shape")
    scorer = work.results / "scorer" / experiment.BEST
    labels = work.root / "kmeans/pool/labels.bin"
    for file in (scorer, labels):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1")
    run = Run("hubert", "A", 0.4, 0)
    whole = ["ssl", "export", "train30", "train10", "decode"]

    def again():
        done.clear()
        try:
            experiment.carry_out(work, run, experiment.WHOLE)
        except experiment.Failed:
            pass
        return list(done)

    faults.append("train10")
    assert again() == whole[:3]
    faults.append("decode")
    assert again() == ["train10"]
    assert again() == ["decode"]
    work.result(run).unlink()
    assert again() == whole
    work.result(run).unlink()
    faults.append("decode")
    assert again() == whole[:-1]
    labels.write_bytes(b"2")
    assert again() == whole


def test_curves_have_no_nan(tmp_path):
    """JSON has none; of a statistic that never is a number nothing is kept."""
    nan = float("nan")
    stats = {
        epoch: {"valid": {"loss": loss, "acc": nan, "forward_time": 1.0}}
        for epoch, loss in ((1, 0.5), (2, nan))
    }
    torch.save({"reporter": {"stats": stats}}, tmp_path / "checkpoint.pth")
    assert experiment.curves(tmp_path) == {"valid": {"loss": [0.5, None]}}


# ------------------------------------------------------------------------------------
# run.sh
# ------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["pilot", "main", "further"])
def test_whether_runs_are_left_is_said(tmp_path, stage, monkeypatch, capsys):
    words = [stage, "--left", "--results", str(tmp_path)]
    runs = experiment.runs_of(stage, "hubert", "best_rq")
    work = experiment.Work(tmp_path / "work", tmp_path)
    monkeypatch.setattr(experiment, "show_pilot", lambda work: print("CER on dev"))
    for run in runs[1:]:
        leave_result(work, run)
    for code, done in ((0, len(runs) - 1), (experiment.NONE_LEFT, len(runs))):
        with pytest.raises(SystemExit) as ended:
            experiment.main(words)
        assert ended.value.code == code
        told = f"{len(runs)} runs, of which {done} are done\n"
        if stage == "pilot" and done == len(runs):
            told += "CER on dev\n"
        assert capsys.readouterr().out == told
        leave_result(work, runs[0])


def test_other_objectives_than_the_results_have_are_refused(tmp_path, capsys):
    experiment.write_json(
        tmp_path / "setup.json", {"objective": "hubert", "second": "best_rq"}
    )
    words = ["main", "--left", "--results", str(tmp_path)]
    for more in (["--objective", "w2v_bert"], ["--second", "wav2vec2"]):
        with pytest.raises(SystemExit, match="setup.json: .*another --results"):
            experiment.main(words + more)
    with pytest.raises(SystemExit) as ended:
        experiment.main(words)
    assert ended.value.code == 0


@pytest.mark.parametrize("words, told", [
    (["--stage", "mian"], "invalid choice: 'mian'"),
    (["--objective", "hubbert"], "invalid choice: 'hubbert'"),
])
def test_a_fault_is_not_taken_for_nothing_left(tmp_path, words, told):
    ended = subprocess.run(
        [ROOT / "experiments/run.sh", "--results", tmp_path / "results", *words],
        capture_output=True, text=True,
    )
    assert ended.returncode == 2
    assert told in ended.stderr
    assert not (tmp_path / "results").exists()

"""What run.sh and atm.sh make of their options, before the first stage."""

import hashlib
import os
import re
import signal
import subprocess
from pathlib import Path

import check_arguments
import pytest
import score_options
import yaml
from conftest import RECIPE, copy_recipe

from espnet_atm.errors import UserError

TUNING = RECIPE / "conf" / "tuning"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A copy of the recipe without data."""
    return copy_recipe(tmp_path_factory.mktemp("tree"))


def run(recipe, *options, script="./atm.sh", **more):
    return subprocess.run(
        [script, *map(str, options)],
        cwd=recipe,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **more},
    )


def refused(recipe, *options, **more) -> str:
    """The last line that a refused command says; nothing of it was begun."""
    before = sorted(recipe.rglob("*"))
    done = run(recipe, *options, **more)
    assert done.returncode != 0, done.stdout + done.stderr
    assert "Successfully finished" not in done.stdout
    assert "Traceback" not in done.stderr
    assert sorted(recipe.rglob("*")) == before
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "option, value",
    [
        *(("stage", x) for x in ("three", "", "-1", "1.5", "99999999999", " 3")),
        *(("stop_stage", x) for x in ("x", "")),
        *(("nj", x) for x in ("0", "two", "")),
        *(("ngpu", x) for x in ("-1", "one")),
        *(("num_nodes", "0"), ("nbpe", "many"), ("nclusters", "0")),
        *(("head_epochs", x) for x in ("x", "-1")),
        *(("ssl_max_epoch", x) for x in ("abc", "0", "1e3")),
        *(("asr_max_epoch", "abc"), ("max_skipped", "-1"), ("max_skipped", "all")),
        *(("km_portion", x) for x in ("2", "0", "0,5", "nan", "")),
        *(("km_layer", x) for x in ("0", "x", "-1")),
        *(("min_wav_duration", x) for x in ("x", "-1", "nan")),
        *(("max_wav_duration", x) for x in ("0.1", "inf")),
        *(("min_confidence", x) for x in ("0,5", "1.5", "-1", "nan", "abc")),
        *(("fs", x) for x in ("x", "0", "-16k", "")),
        *(("token_type", "letters"), ("skip_data_prep", "yes"), ("skip_packing", "1")),
        *(("expdir", x) for x in ("a b", "a,b", "a:b", "a*", "a'b", "-x")),
        *(("dumpdir", x) for x in ("a b", "a\tb")),
        *(("corpus", x) for x in ("a/b", "a b", "")),
        *(("train_set", x) for x in ("a/b", "a b")),
        *(("test_sets", x) for x in ("a;b", "a/b", "*")),
        *(("sharpness", x) for x in ("x", "0", "-1", "101", "nan")),
        *(("speech_gate", x) for x in ("yes", "1", "")),
        *(("exact", x) for x in ("yes", "1", "True")),
        *(("asr_config", "my conf.yaml"), ("scorer_name", "a b")),
    ],
)
@pytest.mark.parametrize("dashes", [False, True])
def test_an_impossible_value_is_refused_by_name(recipe, option, value, dashes):
    name = f"--{option.replace('_', '-') if dashes else option}"
    if dashes and name == f"--{option}":
        pytest.skip("the option has no dash")
    line = refused(recipe, "--corpus", "mine", name, value)
    assert f"--{option} {value}".strip() in line or f"{name} {value}" in line


@pytest.mark.parametrize(
    "options, message",
    [
        (("--stage",), "--stage has no value"),
        (("--nj", "--stage", "3"), "--nj has no value: an option, --stage, comes next"),
        (("--stage=3",), "write --name value, not --stage=3"),
        (("--corpus=mini", "--stage", "3"), "not --corpus=mini"),
        (("--stages", "3"), "there is no option --stages"),
        (("--PATH", "/"), "there is no option --PATH"),
        (("--stage", "9", "--stop_stage", "3"), "nothing would be run"),
        (("--ssl_args", "$(touch evil)"), "not allowed in a value"),
        (("--expdir", "`touch evil`"), "not allowed in a value"),
        (("--asr_args", '"; touch evil; "'), "not allowed in a value"),
        (("--fs", "1k'); open('evil', 'w'); ('"), "is no sampling rate"),
        (("--corpus", "nothing"), "no data preparation for --corpus nothing"),
        (("--fs", "8k"), "conf/train.yaml: its front end is for audio of 16000 Hz"),
        (("--fs", "48k", "--objective", "best_rq"), "and --fs is 48000 Hz"),
        (("--train_config", "conf/train_asr.yaml"), "is no SSL config"),
        (("--asr_config", "conf/train.yaml"), "is an SSL config, with a loss"),
        (("--asr_config", "conf"), "no such file, or an empty one: conf"),
        (("positional",), "No positional arguments"),
        (("--ngpu", "x"), "--ngpu x: is no whole number"),
        (("--seed", "-1"), "--seed -1: is no whole number"),
        (
            ("--speech_gate", "true", "--score_opts", "--speech_gate false"),
            "--speech_gate true, and --score_opts says --speech_gate false",
        ),
    ],
)
@pytest.mark.parametrize("script", ["./atm.sh", "./run.sh"])
def test_what_would_be_misread_is_refused(recipe, options, message, script):
    assert message in refused(recipe, *options, script=script)
    assert not (recipe / "evil").exists()


def test_a_byte_order_mark_or_crlf_in_db_sh_is_named(recipe, tmp_path):
    own = copy_recipe(tmp_path)
    db = own / "db.sh"
    text = db.read_text()
    db.write_bytes(text.replace("\n", "\r\n").encode())
    assert "db.sh:1: has a byte-order mark or the line ends" in refused(own)
    db.write_text(f"\ufeff{text}")
    assert "db.sh:1: has a byte-order mark" in refused(own)


@pytest.mark.parametrize(
    "options, expected",
    [
        (("--model-size", "mini"), {"asr_config": "mini", "head_epochs": "2"}),
        (("--model_size", "mini"), {"asr_config": "mini", "head_epochs": "2"}),
        (("--model_size", ""), {"asr_config": "mini"}),
        ((), {"asr_config": "l", "model_size": "l", "objective": "w2v_bert"}),
        (("--asr-max-epoch", "24"), {"head_epochs": "3"}),
        (("--asr_max_epoch", "8", "--asr-max-epoch", "24"), {"head_epochs": "3"}),
        (("--train-config", "conf/train.yaml"), {"objective": None}),
    ],
)
@pytest.mark.parametrize("corpus", ["--corpus librilight", "--corpus mini --corpus librilight"])
def test_run_sh_reads_options_as_atm_sh_does(recipe, tmp_path, corpus, options, expected):
    own = tmp_path / "recipe"
    own.mkdir()
    for name in ("run.sh", "conf", "local"):
        (own / name).symlink_to(recipe / name)
    (own / "atm.sh").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (own / "atm.sh").chmod(0o755)
    done = run(own, *corpus.split(), *options, script="./run.sh")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    given = dict(zip(words[::2], words[1::2]))
    for name, value in expected.items():
        if name == "asr_config":
            value = f"conf/tuning/train_asr_conformer_{value}.yaml"
        assert given.get(f"--{name}") == value


@pytest.mark.parametrize("fs", ["16k", "16000", "16 k"])
def test_rates_that_are_the_same(recipe, fs):
    done = run(recipe, "--fs", fs, "--skip_data_prep", "true", "--corpus", "mine")
    assert "no test set: name them" in done.stderr


@pytest.mark.parametrize(
    "options, gated",
    [
        (("--score_opts", "--speech_gate=false"), False),
        (("--score_opts", "--measure max --speech_gate"), True),
        (("--speech_gate", "true", "--score_opts", " --speech_gate"), True),
    ],
)
def test_one_name_for_gated_scores(recipe, tmp_path, options, gated):
    run(recipe, "--corpus", "mine", "--expdir", tmp_path, "--skip_data_prep", "true", *options)
    (config,) = tmp_path.glob("conf/*.yaml")
    assert config.stem.endswith("_atm_high_0.4x10" + "_gated" * gated)


@pytest.mark.parametrize(
    "text, line, gate",
    [
        ("", "", ""),
        ("--measure max --temperature 1.0 --num_workers 4 --batch_bins=9", "", ""),
        ("--temperature=2 --measure entropy", "--measure entropy --temperature 2", ""),
        ("--exclude_blank --energy_gate 20.50", "--exclude_blank --energy_gate 20.5", ""),
        ("--speech_gate --smooth 3", "--smooth 3", "true"),
        ("--speech_gate false", "", "false"),
    ],
)
def test_the_same_scores_have_one_name(text, line, gate):
    assert score_options.read_options(text) == (line, gate)


@pytest.mark.parametrize(
    "text, message",
    [
        ("--measure nonsense", "argument --measure: invalid choice: 'nonsense'"),
        ("--temperature 0", "temperature: 0.0 is not a positive"),
        ("--measur entropy", "unrecognized arguments: --measur entropy"),
        ("--ngpu 1", "--ngpu is an option of its own"),
        ("--max_skipped 3", "--max_skipped is an option of its own"),
        ("--output_dir x", "--output_dir is what the recipe says itself"),
        ("entropy", "unrecognized arguments: entropy"),
    ],
)
def test_wrong_score_opts_are_named(text, message):
    with pytest.raises(UserError, match=f"--score_opts {text}: {message}"):
        score_options.read_options(text)


def names(done) -> dict[str, str]:
    """What a run would be called."""
    assert done.returncode == 0, done.stderr
    found = re.findall(r"\) (Scorer|Pre-training|Fine-tuning on \S+): (.*)", done.stdout)
    return {key.split()[0]: value for key, value in found}


@pytest.mark.parametrize("script", ["./atm.sh", "./run.sh"])
def test_a_model_to_label_by_is_looked_for_at_once(recipe, tmp_path, script):
    """Both options, and both files of the model."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "empty.pth").touch()
    (run_dir / "5epoch.pth").write_text("weights")
    for options, message in (
        (("--km_model", run_dir), "--km_model and --km_layer go together"),
        (("--km_layer", "6"), "--km_model and --km_layer go together"),
        (("--km_model", tmp_path / "x", "--km_layer", "6"), f"an empty one: {tmp_path}/x"),
        (("--km_model", run_dir, "--km_layer", "6"), f"an empty one: {run_dir}/latest.pth"),
        (
            ("--km_model", run_dir / "empty.pth", "--km_layer", "6"),
            f"an empty one: {run_dir}/empty.pth",
        ),
        (
            ("--km_model", run_dir / "5epoch.pth", "--km_layer", "6"),
            f"an empty one: {run_dir}/config.yaml",
        ),
        (("--km_model", "5epoch.pth", "--km_layer", "6"), "an empty one: 5epoch.pth"),
        (("--km_model", "a b", "--km_layer", "6"), "--km_model a b"),
    ):
        assert message in refused(recipe, "--corpus", "mini", *options, script=script)


def test_a_model_to_label_by_is_in_the_name(recipe, tmp_path):
    for name in ("latest.pth", "5epoch.pth", "config.yaml"):
        (tmp_path / name).write_text(name)
    options = ("--corpus", "mine", "--skip_data_prep", "true", "--km_layer", "6")
    for model, weights in ((tmp_path, "latest.pth"), (tmp_path / "5epoch.pth", "5epoch.pth")):
        expdir = tmp_path / f"exp_{weights}"
        words = ["./atm.sh", *options, "--expdir", str(expdir), "--km_model", str(model)]
        process = subprocess.Popen(
            words,
            cwd=recipe,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # What comes after its name takes long.
        while not (found := list(expdir.glob("conf/*.yaml"))):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        digest = hashlib.md5(f"config.yaml{weights}".encode()).hexdigest()[:8]
        assert found[0].stem.endswith(f"_atm_high_0.4x10_km{digest}_layer6")


LONG = "--optim_conf lr=0.001 --optim_conf weight_decay=0.01 --grad_clip 5"
RUN = "hubert_conformer_mini_km64_atm_high_0.4x10"


def test_what_is_default_is_in_no_name(recipe, tmp_path):
    """Also where it is given, and where it is the corpus's."""
    given = ("--ssl_max_epoch", "6", "--asr-max-epoch", "15", "--seed", "0", "--nbpe", "9")
    given += ("--score_opts", "--measure max", "--valid_set", "mini_unlabelled_dev")
    for options in ((), given):
        options += ("--expdir", tmp_path, "--stop_stage", "0")
        found = names(run(recipe, *options, script="./run.sh"))
        assert found == {
            "Scorer": f"{tmp_path}/asr_scorer",
            "Pre-training": f"{tmp_path}/ssl_{RUN}_raw",
            "Fine-tuning": f"{tmp_path}/asr_{RUN} (in RESULTS.md {RUN}, seed 0)",
        }


@pytest.mark.parametrize(
    "options, scorer, pretrained, finetuned",
    [
        (
            ("--seed", "1", "--ssl_max_epoch", "8", "--km_portion", "0.3")
            + ("--score_opts", "--measure entropy --speech_gate", "--min_confidence", "0.7")
            + ("--head_epochs", "3", "--inference_asr_model", "latest.pth"),
            "scorer",
            "{}_min0.7_measure_entropy_gated_ep8",
            "_head3",
        ),
        (
            ("--asr_max_epoch", "20", "--train_set", "pool", "--valid_set", "pool_dev")
            + ("--asr_config", "conf/tuning/train_asr_conformer_mini_rnnt.yaml")
            + ("--token_type", "bpe", "--nbpe", "40", "--ssl_args", "--accum_grad 3"),
            "scorer_rnnt_bpe40_ep20",
            "{}_pool_rnnt_bpe40_ep20_scorer_accum_grad_3",
            "_rnnt",
        ),
        (
            ("--scorer_name", "big", "--asr_train_set", "other_train")
            + ("--ssl_args", LONG),
            "scorer_big",
            "{}_big_scorer_" + hashlib.md5(f"{LONG}\n".encode()).hexdigest()[:8],
            "",
        ),
        (
            ("--asr_train_set", "other_train", "--asr_valid_set", "held_out"),
            "scorer_other_held_out",
            "{}_other_held_out_scorer",
            "",
        ),
    ],
)
def test_what_makes_another_run_is_in_its_name(
    recipe, tmp_path, options, scorer, pretrained, finetuned
):
    options += ("--expdir", tmp_path, "--stop_stage", "0")
    found = names(run(recipe, *options, script="./run.sh"))
    name = RUN.replace("64", "64_portion0.3") if "--km_portion" in options else RUN
    name = pretrained.format(name)
    seed = "_seed1" if "--seed" in options else ""
    row = f"{name}{finetuned}" + "_latest" * ("latest.pth" in options)
    assert found == {
        "Scorer": f"{tmp_path}/asr_{scorer}",
        "Pre-training": f"{tmp_path}/ssl_{name}{seed}_raw",
        "Fine-tuning": f"{tmp_path}/asr_{name}{finetuned}{seed} (in RESULTS.md {row}, "
        f"seed {seed[-1:] or 0})",
    }


def test_a_scorer_from_elsewhere_is_named_by_its_weights(recipe, asr, tmp_path):
    options = ("--scorer_config", asr[0], "--scorer_model", asr[1], "--asr_max_epoch", "9")
    options += ("--expdir", tmp_path, "--stop_stage", "0")
    found = names(run(recipe, *options, script="./run.sh"))
    digest = hashlib.md5(Path(asr[0]).read_bytes() + Path(asr[1]).read_bytes()).hexdigest()
    name = f"{RUN}_{digest[:8]}_scorer"
    assert found["Scorer"] == str(asr[1])
    assert found["Pre-training"] == f"{tmp_path}/ssl_{name}_raw"
    assert f"/asr_{name}_ep9 (" in found["Fine-tuning"]
    found = names(run(recipe, *options, "--scorer_name", "mine", script="./run.sh"))
    assert found["Pre-training"] == f"{tmp_path}/ssl_{RUN}_mine_scorer_raw"


def test_gpus_that_are_not_there(recipe):
    import torch

    count = torch.cuda.device_count() + 1
    message = f"--ngpu {count}: torch finds {count - 1} GPUs on this machine"
    assert message in refused(recipe, "--ngpu", count)


def test_arguments_are_read_before_the_first_stage(recipe):
    done = run(recipe, "--corpus", "mini", "--asr_args", "--no_such_option 3")
    assert done.returncode != 0 and "Stage 1" not in done.stdout
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("check_arguments.py: error: --asr_args --no_such_option 3: ")


@pytest.mark.parametrize(
    "option, value",
    [
        ("ssl_args", "--no_such_option 3"),
        ("ssl_args", "--max_epoch three"),
        ("asr_args", "--max_epoch three"),
        ("head_args", "--optim nonsense"),
    ],
)
def test_arguments_that_a_command_does_not_take(option, value):
    conf = RECIPE / "conf"
    configs = ["--ssl_config", conf / "train.yaml", "--asr_config", conf / "train_asr.yaml"]
    check_arguments.main(list(map(str, configs)))
    with pytest.raises(UserError, match=f"--{option} {value}: "):
        check_arguments.main([*map(str, configs), f"--{option}", f" {value}"])


@pytest.fixture
def config_at_8k(tmp_path):
    """Configs whose front ends are for 8 kHz; makes them with another hop."""

    def make(hop=80, labels=4):
        files = []
        for name in ("hubert_conformer_mini_atm", "asr_conformer_mini"):
            config = yaml.safe_load((TUNING / f"train_{name}.yaml").read_text())
            config["frontend_conf"].update(
                fs="8k", n_fft=256, win_length=200, hop_length=hop
            )
            if "hubert" in name:
                config["collate_fn_conf"] = {"label_downsampling": labels}
            files.append(tmp_path / f"train_{name}_8k.yaml")
            files[-1].write_text(yaml.safe_dump(config))
        return "--train_config", files[0], "--asr_config", files[1]

    return make


def test_configs_of_8_khz(recipe, config_at_8k):
    options = ("--corpus", "mine", "--skip_data_prep", "true")
    done = run(recipe, *options, "--fs", "8k", *config_at_8k())
    assert "no test set: name them" in done.stderr
    assert "is for audio of 8000 Hz" in run(recipe, *options, *config_at_8k()).stderr
    line = run(recipe, *options, "--fs", "8000", *config_at_8k(hop=160)).stderr
    assert "takes 640 samples of 8000 Hz, 80 ms, but label_downsampling: 4" in line
    done = run(recipe, *options, "--fs", "8000", *config_at_8k(hop=160, labels=1))
    assert "no test set: name them" in done.stderr


def test_a_scorer_without_weights_is_refused_at_the_start(recipe, asr, tmp_path):
    import torch

    config, model = asr
    weights = torch.load(model, weights_only=True)
    state = tmp_path / "checkpoint.pth"
    torch.save({"model": weights, "optimizers": [], "reporter": {}}, state)
    headless = tmp_path / "headless.pth"
    torch.save({k: v for k, v in weights.items() if not k.startswith("ctc.")}, headless)
    for file, message in (
        (state, "is the trainer's state (checkpoint.pth)"),
        (headless, "ctc.ctc_lo"),
        (config, "cannot be read as weights"),
    ):
        done = run(
            recipe, "--corpus", "mini", "--scorer_config", config, "--scorer_model", file
        )
        assert done.returncode != 0 and "Stage 1" not in done.stdout
        line = done.stderr.strip().splitlines()[-1]
        assert str(file) in line and message in line, done.stderr
        assert not (recipe / "data").exists()


def test_jobs_are_as_many_as_cores(recipe, tmp_path):
    """Of the machine: OMP_NUM_THREADS, which nproc heeds, is about threads."""
    done = subprocess.run(
        ["./atm.sh", "--help"],
        cwd=recipe,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    cores = len(os.sched_getaffinity(0))
    assert f"--nj               # Jobs at a time (default: {cores}, the" in done.stderr

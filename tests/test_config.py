from argparse import Namespace

import pytest

from espnet_atm.config import SSLConf, find_track
from espnet_atm.errors import UserError

SCORER = {"asr_train_config": "config.yaml", "asr_model_file": "x.pth"}


def test_defaults_are_the_papers():
    conf = SSLConf.parse({"masker": "atm"})
    assert (conf.mask_ratio, conf.span, conf.strategy) == (0.40, 10, "high")
    assert conf.loss_scale == "none" and conf.needs_track
    baseline = SSLConf.parse({"masker": "random"})
    assert (baseline.mask_ratio, baseline.strategy) == (0.49, "random")
    assert not baseline.needs_track
    assert SSLConf.parse({"masker": "random", "loss_scale": "utterance"}).needs_track
    scored = SSLConf.parse({"masker": "atm", "scorer": SCORER})
    assert scored.needs_confidence and not scored.needs_track


@pytest.mark.parametrize(
    "conf, message",
    [
        (
            {"masker": "best"},
            r"ssl_conf.masker: 'best' is not known; write one of \('atm'",
        ),
        (
            {"masker_conf": {"mask_ratio": 1.5}},
            r"ssl_conf.masker_conf.mask_ratio: 1.5 is not in \[0, 1\].*mask_ratio: 0.40",
        ),
        ({"masker_conf": {"mask_ratio": "half"}}, "mask_ratio: 'half' is not a number"),
        (
            {"masker_conf": {"strategy": "highest"}},
            "ssl_conf.masker_conf.strategy: 'highest' is not known; write one of high",
        ),
        ({"masker_conf": {"span": 0}}, "span: 0 is not a positive number of frames"),
        (
            {"masker": "random", "masker_conf": {"strategy": "low"}},
            "'low' needs masker: atm",
        ),
        (
            {"loss_scale": "utt"},
            "ssl_conf.loss_scale: 'utt' is not known; write one of",
        ),
        (
            {"mask_ratio": 0.4},
            "ssl_conf: unknown 'mask_ratio'; known are masker, masker_conf",
        ),
        ({"masker_conf": {"ratio": 0.4}}, "ssl_conf.masker_conf: unknown 'ratio'"),
        ({"loss_scale_conf": {"average": "all"}}, "loss_scale_conf.average: 'all'"),
        ({"loss_scale_conf": {"frame_prob": 2}}, r"frame_prob: 2.0 is not in \[0, 1\]"),
        (
            {"scorer": {"asr_model_file": "x"}},
            "ssl_conf.scorer: asr_train_config is missing; write scorer: {asr_train",
        ),
        ({"scorer": {**SCORER, "beam": 3}}, "ssl_conf.scorer: unknown 'beam'; known"),
        ({"scorer": {**SCORER, "measure": "best"}}, "ssl_conf.scorer.measure: 'best'"),
        ({"scorer": {**SCORER, "temperature": 0}}, "temperature: 0 is not positive"),
        (
            {"scorer": {**SCORER, "smooth": 0}},
            "ssl_conf.scorer.smooth: 0 is not a positive number of frames",
        ),
        (
            {"track_conf": {"energy_gate": -30}},
            "ssl_conf.track_conf.energy_gate: -30 is not a positive number of dB",
        ),
        ({"crop_seconds": 0}, "ssl_conf.crop_seconds: 0 is not positive"),
        ({"crop_seconds": "32"}, "crop_seconds: '32' is not a number"),
        ({"track_conf": {"gate": 30}}, "ssl_conf.track_conf: unknown 'gate'"),
        (
            {"track_conf": {"smooth": 5}, "scorer": SCORER},
            "track_conf is for stored tracks; write its options under scorer",
        ),
        ({"scorer": "exp/asr"}, "ssl_conf.scorer: 'exp/asr' is not a mapping"),
        (
            {"scorer": {**SCORER, "model": "someone/model"}},
            "ssl_conf.scorer: model and asr_train_config both say what scores",
        ),
        ({"scorer": {"model": ""}}, "asr_train_config is missing; .* or scorer: {model"),
        ({"scorer": {"model": 5}}, "ssl_conf.scorer.model: 5 is not a name"),
        ({"scorer": {"model": "x", "lang": False}}, "scorer.lang: False is not a name"),
        ({"scorer": {"model": "x", "lang": ""}}, "scorer.lang: '' is not a name"),
    ],
)
def test_impossible_settings_are_refused_with_what_to_write(conf, message):
    with pytest.raises(ValueError, match=message):
        SSLConf.parse(conf)


def test_sharpness():
    conf = SSLConf.parse(
        {
            "masker_conf": {"strategy": "shuffled", "sharpness": 2},
            "loss_scale": "utterance",
            "loss_scale_conf": {"sharpness": 0.5},
        }
    )
    assert conf.masking()["sharpness"] == 2.0 and conf.weight_sharpness == 0.5
    assert SSLConf.parse({}).masking()["sharpness"] == 1.0
    one = {"masker": "random", "masker_conf": {"sharpness": 1.0}}
    assert SSLConf.parse(one) == SSLConf.parse({"masker": "random"})


@pytest.mark.parametrize("masker", ["atm", "random"])
def test_exact(masker):
    conf = SSLConf.parse({"masker": masker, "masker_conf": {"exact": True}})
    assert conf.masking()["exact"] is True
    plain = SSLConf.parse({"masker": masker})
    assert plain.masking()["exact"] is False
    assert SSLConf.parse({"masker": masker, "masker_conf": {"exact": False}}) == plain


def test_the_masker_of_validation():
    assert SSLConf.parse({}).validation_masker is None
    common = {"strategy": "random", "mask_ratio": 0.49, "span": 10}
    common |= {"sharpness": 1.0, "exact": False}
    for masker in ("atm", "random"):
        conf = SSLConf.parse({"masker": masker, "validation_masker": {}})
        assert conf.validation_masker == common
        assert conf.needs_track == (masker == "atm")
    given = {"strategy": "low", "span": 5, "exact": True}
    conf = SSLConf.parse({"masker": "random", "validation_masker": given})
    assert conf.validation_masker == {**common, **given, "mask_ratio": 0.40}
    assert conf.needs_track and conf.masking()["strategy"] == "random"


@pytest.mark.parametrize("span", [None, 1, 10])
def test_a_span_that_has_no_part_is_told(span, caplog):
    more = {} if span is None else {"span": span}
    SSLConf.parse({"masker_conf": {"strategy": "topk", **more}})
    assert ("span: 10 has no part in strategy: topk" in caplog.text) == (span == 10)


NO_NUMBERS = [True, "30", "0.4", [], [3], {}, float("nan"), float("inf"), "many"]


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize(
    "where",
    [
        ("masker_conf", "mask_ratio"),
        ("masker_conf", "span"),
        ("masker_conf", "sharpness"),
        ("validation_masker", "mask_ratio"),
        ("validation_masker", "span"),
        ("loss_scale_conf", "sharpness"),
        ("loss_scale_conf", "frame_prob"),
        ("track_conf", "smooth"),
        ("track_conf", "energy_gate"),
        ("scorer", "temperature"),
        ("scorer", "smooth"),
        ("scorer", "energy_gate"),
        ("crop_seconds",),
    ],
    ids=".".join,
)
def test_what_is_no_number_is_refused(where, value):
    conf = {where[-1]: value}
    if len(where) == 2:
        conf = {where[0]: {**(SCORER if where[0] == "scorer" else {}), **conf}}
    with pytest.raises(UserError, match=f"ssl_conf.{'.'.join(where)}: .* is not a"):
        SSLConf.parse(conf)


@pytest.mark.parametrize("value", [True, 3, [], ["atm"], {}, {"a": 1}, ""])
@pytest.mark.parametrize(
    "where",
    [
        ("masker",),
        ("loss_scale",),
        ("masker_conf", "strategy"),
        ("validation_masker", "strategy"),
        ("loss_scale_conf", "average"),
        ("scorer", "measure"),
        ("scorer", "asr_train_config"),
        ("scorer", "asr_model_file"),
    ],
    ids=".".join,
)
def test_what_is_no_word_is_refused(where, value):
    conf = {where[-1]: value}
    if len(where) == 2:
        conf = {where[0]: {**(SCORER if where[0] == "scorer" else {}), **conf}}
    with pytest.raises(UserError, match=f"ssl_conf.*{where[-1]}"):
        SSLConf.parse(conf)


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"masker_conf": {"span": 10**12}}, "span: 1000000000000 is too large: 10000"),
        ({"masker_conf": {"span": 10.0}}, "span: 10.0 is not a number of .*; write 10"),
        ({"masker_conf": {"sharpness": 0}}, "masker_conf.sharpness: 0 is not positive"),
        ({"masker_conf": {"sharpness": 1e3}}, "sharpness: 1000.0 is too large; write 100"),
        (
            {"masker": "random", "masker_conf": {"sharpness": 2}},
            "sharpness: 2 changes nothing with strategy: random; leave it out",
        ),
        (
            {"masker_conf": {"sharpness": 0.5, "strategy": "topk"}},
            "sharpness: 0.5 changes nothing with strategy: topk",
        ),
        (
            {"loss_scale_conf": {"sharpness": 2}},
            "loss_scale_conf.sharpness: 2 changes nothing with loss_scale: none",
        ),
        (
            {"loss_scale": "frame", "loss_scale_conf": {"sharpness": 2}},
            "loss_scale_conf.sharpness: 2 changes nothing with loss_scale: frame",
        ),
        (
            {"loss_scale": "utterance", "loss_scale_conf": {"sharpness": 1e9}},
            "loss_scale_conf.sharpness: 1000000000.0 is too large",
        ),
        ({"masker_conf": {"span": -1}}, "span: -1 is not a positive number of frames"),
        ({"track_conf": {"smooth": 10**9}}, "smooth: 1000000000 is too large"),
        ({"scorer": {**SCORER, "smooth": 10**9}}, "scorer.smooth: .* is too large"),
        ({"crop_seconds": 10**400}, "crop_seconds: inf is not a finite number"),
        (
            {"scorer": {**SCORER, "include_blank": "false"}},
            "ssl_conf.scorer.include_blank: 'false' is not true or false; .*quotes",
        ),
        ({"scorer": {**SCORER, "include_blank": 0}}, "include_blank: 0 is not true or"),
        ({"scorer": {**SCORER, "speech_gate": 1}}, "scorer.speech_gate: 1 is not true or"),
        ({"scorer": {**SCORER, "speech_gate": "yes"}}, "speech_gate: 'yes' is not true"),
        ({"masker_conf": {"exact": 1}}, "masker_conf.exact: 1 is not true or false"),
        ({"masker_conf": {"exact": "true"}}, "exact: 'true' is not true or .*quotes"),
        ({"masker_conf": {"exact": None}}, "masker_conf.exact: None is not true or false"),
        (
            {"validation_masker": {"strategy": "highest"}},
            "ssl_conf.validation_masker.strategy: 'highest' is not known; write one of",
        ),
        (
            {"validation_masker": {"sharpness": 2}},
            "validation_masker.sharpness: 2 changes nothing with strategy: random",
        ),
        (
            {"validation_masker": {"masker": "random"}},
            "ssl_conf.validation_masker: unknown 'masker'; known are mask_ratio, span",
        ),
        ({"validation_masker": "random"}, "validation_masker: 'random' is not a mapping"),
        ({"loss_scale": []}, r"ssl_conf.loss_scale: \[\] is not known"),
        ({"loss_scale": False}, "ssl_conf.loss_scale: False is not known"),
        ({"scorer": []}, r"ssl_conf.scorer: \[\] is not a mapping"),
        ({"scorer": False}, "ssl_conf.scorer: False is not a mapping"),
        ({"track_conf": "smooth"}, "ssl_conf.track_conf: 'smooth' is not a mapping"),
        ({3: 4}, "ssl_conf: 3 is not the name of an option"),
        ({"masker_conf": {True: 4}}, "masker_conf: True is not the name of an option"),
        (False, "ssl_conf: False is not a mapping"),
        ([], r"ssl_conf: \[\] is not a mapping"),
        ("x", "ssl_conf: 'x' is not a mapping"),
        (3, "ssl_conf: 3 is not a mapping"),
    ],
)
def test_values_of_a_wrong_kind_are_refused_by_name(conf, message):
    with pytest.raises(UserError, match=message):
        SSLConf.parse(conf)


@pytest.mark.parametrize("masker", ["atm", "random"])
@pytest.mark.parametrize(
    "ratio, message", [(0, "no frame is predicted"), (0.0, "no"), (1, "none is heard")]
)
def test_masks_that_teach_nothing_are_not_trained_with(masker, ratio, message):
    conf = SSLConf.parse({"masker": masker, "masker_conf": {"mask_ratio": ratio}})
    with pytest.raises(UserError, match=f"mask_ratio: .* teaches nothing: {message}"):
        conf.check_trainable()
    SSLConf.parse({"masker": masker}).check_trainable()


def test_what_was_possible_still_is():
    conf = SSLConf.parse(
        {
            "masker": "atm",
            "masker_conf": {"mask_ratio": 0.999, "span": 1, "strategy": "topk"},
            "loss_scale": None,
            "loss_scale_conf": None,
            "track_conf": {"smooth": 10, "energy_gate": 30},
            "crop_seconds": 32,
        }
    )
    assert (conf.mask_ratio, conf.span, conf.crop_seconds) == (0.999, 1, 32)
    assert (conf.smooth, conf.energy_gate, conf.loss_scale) == (10, 30, "none")
    scorer = {**SCORER, "temperature": 2, "include_blank": False, "energy_gate": 1.5}
    assert SSLConf.parse({"scorer": scorer}).scorer == scorer


def test_missing_track_is_refused_with_what_to_add():
    option = "train_data_path_and_name_and_type"
    paths = Namespace(paths=[("wav.scp", "speech", "sound")]).paths
    with pytest.raises(ValueError, match=f"--{option} DIR/confidence.scp,confidence"):
        find_track(paths, option)
    paths.append(("c/confidence.scp", "confidence", "kaldi_ark"))
    assert find_track(paths, option) == "c/confidence.scp"

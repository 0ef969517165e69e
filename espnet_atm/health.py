"""What the statistics of an epoch say about it, before they are averaged."""

import logging
import math

from espnet2.train.reporter import SubReporter

from espnet_atm.errors import UserError


def check_epoch(reporter: SubReporter, all_invalid: bool = False) -> None:
    """Refuse to go on when an epoch taught nothing, and tell of losses left out.

    ESPnet's averages leave out what is not finite without a word, an epoch in which no
    update could be made ends the training with exit code 0, and a loss of 0 throughout
    looks like any other. The numbers are on the host already, and alike in all
    processes.

    Args:
        reporter: what ``train_one_epoch`` or ``validate_one_epoch`` filled.
        all_invalid: what ``train_one_epoch`` returned: no step had finite gradients.

    Raises:
        UserError: naming set and epoch.
    """
    where = f"epoch {reporter.get_epoch()}, {reporter.key}"
    values = {
        name: [x.value for x in reporter.stats.get(name, ())]
        for name in ("loss", "weight")
    }
    losses, weights = values["loss"], values["weight"]
    bad = sum(not math.isfinite(x) for x in losses)
    if losses and bad == len(losses):
        raise UserError(
            f"{where}: the loss of all {bad} batches is not finite: the model is lost; "
            "go on from an earlier epoch's weights, with a lower learning rate"
        )
    if bad:
        logging.warning(
            f"{where}: the loss of {bad} of {len(losses)} batches is not finite; they "
            "are LEFT OUT of the means"
        )
    if all_invalid:
        raise UserError(
            f"{where}: no step had finite gradients, so nothing was learnt; lower the "
            "learning rate, or train without use_amp"
        )
    if weights and not any(weights):
        raise UserError(
            f"{where}: ssl_conf.loss_scale weighs every loss by 0, so nothing is learnt: "
            "the confidences of the masked frames are all 0; look at the tracks, and at "
            "energy_gate"
        )
    if losses and not any(losses):
        raise UserError(
            f"{where}: the loss of all {len(losses)} batches is 0, so nothing is learnt: "
            "no masked frame counts; train on longer audio, and look at mask_ratio and "
            "the labels"
        )

"""Span masks guided by confidence (Ask2Mask, Eq. 3 and 4)."""

import math
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from espnet_atm.confidence import check_track
from espnet_atm.errors import UserError
from espnet_atm.values import MOST_FRAMES, flag, number, whole

STRATEGIES = ("high", "low", "mixed", "random", "topk", "shuffled")
UNDRAWN = ("random", "topk")  # where no weight is drawn by, so that none can be sharper
MOST_SHARPNESS = 100

# Frames that are looked at together on a CPU, so that what is made of them stays in its
# cache.
BLOCK = 1 << 17

# The weight of a frame of confidence 0: drawn only after every other frame, and then
# as likely as any other of its kind.
TINY = 1e-38
# The same for logarithms: below those of all float32 weights, however sharp.
NEVER = -1e6


def check_mask_options(
    mask_ratio: float,
    span: int,
    strategy: str,
    sharpness: float = 1.0,
    exact: bool = False,
) -> None:
    """Refuse impossible settings, saying what to write instead.

    Raises:
        UserError: naming the option, its value and what is possible.
    """
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise UserError(
            f"strategy: {strategy!r} is not known; write one of {', '.join(STRATEGIES)}"
        )
    try:
        number("mask_ratio", mask_ratio, within=(0, 1))
    except UserError as e:
        raise UserError(
            f"{e}; it is the fraction of frames masked, e.g. mask_ratio: 0.40"
        ) from None
    whole("span", span, most=MOST_FRAMES, what="number of frames")
    check_sharpness("sharpness", sharpness)
    flag("exact", exact)


def check_sharpness(name: str, value: float) -> None:
    """Refuse what is no exponent.

    Raises:
        UserError: naming ``name``, the value and what is possible.
    """
    number(name, value, positive=True)
    if value > MOST_SHARPNESS:
        raise UserError(
            f"{name}: {value} is too large; write {MOST_SHARPNESS} or less: 1 leaves the "
            "confidence as it is, 2 squares it"
        )


def _drawing_order(
    weight: torch.Tensor, sharpness: float, uniform: torch.Tensor
) -> torch.Tensor:
    """Keys whose descending order is a weighted draw without replacement.

    w / E with exponential E (Efraimidis and Spirakis 2006), which orders as log w plus
    Gumbel noise does (Kool et al. 2019); in float64, so that no two starts tie.

    Args:
        weight: (B, T), non-negative.
        sharpness: exponent on it. With another than 1 the key is a logarithm, which
            neither vanishes nor overflows.
        uniform: evenly drawn from [0, 1), (B, T), float64; overwritten.

    Returns:
        (B, T), float64.
    """
    exponential = uniform.neg_().log1p_().neg_()
    weight = weight.to(torch.float64, copy=True)
    if sharpness == 1:
        return weight.clamp_(min=TINY).div_(exponential)
    return weight.log_().mul_(sharpness).clamp_(min=NEVER).sub_(exponential.log_())


def _placed(key: torch.Tensor, signed: bool) -> torch.Tensor:
    """Numbers that order as the keys of each row do, each with its place in the row.

    Numbers are sorted many times faster than places by them. Keys that agree in all but
    the digits that give way to the place, 10 of 52 up to 1024 frames, order by place.

    Args:
        key: (B, T), float64; overwritten.
        signed: whether some are negative.

    Returns:
        (B, T), int64. :func:`_places` reads the places.
    """
    number = key.view(torch.int64)
    if signed:  # the bits of negative ones order the other way round
        number ^= (number >> 63).bitwise_and_((1 << 63) - 1)
    digits = _place_digits(key.size(1))
    number &= -1 << digits
    return number.bitwise_or_(torch.arange(key.size(1), device=key.device))


def _places(number: torch.Tensor, num_frames: int) -> torch.Tensor:
    """The places in numbers of :func:`_placed`, of rows of so many frames."""
    return number & ((1 << _place_digits(num_frames)) - 1)


def _place_digits(num_frames: int) -> int:
    return max(num_frames - 1, 1).bit_length()


def _shuffle(
    confidence: torch.Tensor, outside: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """The frames of each row that are not outside in another order: (B, T) -> (B, T)."""
    # They come first, and stay first.
    number = _placed(uniform.masked_fill_(outside, torch.inf), signed=False)
    if number.device.type == "cpu":  # NumPy sorts ten times faster there
        number.numpy().sort(axis=1)
    else:
        number = number.sort(dim=1).values
    return confidence.gather(1, _places(number, number.size(1)))


def _first(number: torch.Tensor, num: int) -> torch.Tensor:
    """Where the ``num`` largest keys of each row are, the largest first.

    Args:
        number: from :func:`_placed` (B, T); put into another order.
        num: in [1, T].

    Returns:
        (B, num), int64.
    """
    num_frames = number.size(1)
    if number.device.type == "cpu":  # NumPy selects ten times faster there
        split = num_frames - num
        number.numpy().partition(split, axis=1)
        largest = torch.from_numpy(np.sort(number[:, split:].numpy(), axis=1)).flip(1)
    else:
        largest = number.topk(num, dim=1).values
    return _places(largest, num_frames)


def _turns(
    high: torch.Tensor, low: torch.Tensor, coin: torch.Tensor, num: int
) -> torch.Tensor:
    """Keys in whose descending order two draws take turns.

    Args:
        high, low: the keys of either draw, from :func:`_placed` (B, T).
        coin: 0 where the first draw begins, 1 where the second does (B, 1), int.
        num: turns of each draw that are wanted.

    Returns:
        Minus the turn of each start, -inf where it is a later one, (B, T), float32, which
        holds these numbers to the digit. A start that both draw counts once, at its
        earlier turn.
    """
    turn = -2.0 * torch.arange(num, device=high.device)  # (num,), float32
    first, second = _first(high, num), _first(low, num)
    key = torch.full(high.shape, -torch.inf, device=high.device)
    key.scatter_(1, first, turn - coin)
    return key.scatter_(1, second, torch.maximum(key.gather(1, second), turn - 1 + coin))


def _nth_largest(values: torch.Tensor, n: int) -> torch.Tensor:
    """The n-th largest value of each row, n counting from 1: (B, T) -> (B, 1)."""
    if values.device.type == "cpu":  # NumPy selects ten times faster there
        place = values.size(1) - n
        ordered = np.partition(values.numpy(), place, axis=1)
        return torch.from_numpy(ordered[:, place : place + 1])
    return values.topk(n, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


def sample_span_mask(
    confidence: torch.Tensor,
    lengths: torch.Tensor,
    mask_ratio: float = 0.40,
    span: int = 10,
    strategy: str = "high",
    generator: Optional[torch.Generator] = None,
    sharpness: float = 1.0,
    exact: bool = False,
) -> torch.Tensor:
    """Draw span starts without replacement until enough frames are covered.

    Every valid frame can start a span; a span stops at the end of its row. Sequential
    drawing that stops at ``ceil(mask_ratio * length)`` covered frames covers exactly
    the frames whose window of ``span`` possible starts holds a key as large as that
    order statistic of the windows, so one sliding maximum and one sort do it, row by
    row, without a loop or a device synchronisation.

    Args:
        confidence: s_t (B, T), float, in [0, 1]; for ``random`` only its shape matters.
        lengths: valid frames of each row (B,), int, on the same device.
        mask_ratio: fraction of a row's valid frames to mask. At least
            ``ceil(mask_ratio * length)`` of them are, in double precision, and less than
            a span more: of a short row noticeably more than the fraction.
        span: length c of a span in frames.
        strategy: ``high`` draws starts in proportion to s_t (Eq. 3), ``low`` to 1 - s_t
            (Eq. 4), ``mixed`` takes half of the spans from each draw in turn, ``random``
            draws evenly, ``shuffled`` is ``high`` on the row's confidences in another
            order, anew at each call: the control that guidance has to beat. ``topk``
            masks the most confident frames without drawing, as the patent text has it:
            single frames, whatever ``span`` is.
        generator: source of randomness, on the same device.
        sharpness: exponent on what is drawn by, s_t or 1 - s_t; above 1 the draws differ
            more from even ones. Changes nothing for ``random`` and ``topk``.
        exact: mask ``ceil(mask_ratio * length)`` frames and no more: the last span is
            cut. Of the frames that it alone masks the first ones are kept: those at its
            start, where the confidence drew it, or behind an earlier span. With it or
            without, the first ``span - 1`` frames of a row are masked less often than
            others alike, because fewer spans reach them.

    Returns:
        True where masked, (B, T), bool. Padding is never masked.

    Raises:
        ValueError: on impossible options or shapes; for tensors on the CPU also on
            confidence outside of [0, 1] or NaN, naming the row. On an accelerator that
            check would stall the device: there the collate function has made it.
    """
    check_mask_options(mask_ratio, span, strategy, sharpness, exact)
    if confidence.dim() != 2 or lengths.shape != confidence.shape[:1]:
        raise ValueError(
            f"confidence must be (B, T) and lengths (B,), got {tuple(confidence.shape)} "
            f"and {tuple(lengths.shape)}"
        )
    confidence = confidence.detach()
    num_rows, num_frames = confidence.shape
    on_cpu = confidence.device.type == "cpu"
    if on_cpu:
        _check_rows(confidence, lengths, strategy)
    draws = [
        torch.rand(
            confidence.shape,
            dtype=torch.float64,
            device=confidence.device,
            generator=generator,
        )
        for _ in range(2 if strategy in ("mixed", "shuffled") else 1)
    ]
    if strategy == "mixed":  # which of two draws begins
        draws.append(
            torch.randint(
                2, (num_rows, 1), device=confidence.device, generator=generator
            )
        )
    block = max(BLOCK // num_frames, 1) if on_cpu else max(num_rows, 1)
    masks = [
        _mask(
            *(confidence[first : first + block], lengths[first : first + block]),
            *([draw[first : first + block] for draw in draws], mask_ratio),
            *(span, strategy, sharpness, exact),
        )
        for first in range(0, max(num_rows, 1), block)
    ]
    return masks[0] if len(masks) == 1 else torch.cat(masks)


def _mask(
    confidence: torch.Tensor,
    lengths: torch.Tensor,
    draws: List[torch.Tensor],
    mask_ratio: float,
    span: int,
    strategy: str,
    sharpness: float,
    exact: bool,
) -> torch.Tensor:
    """As :func:`sample_span_mask`, with what is random in it.

    Args:
        draws: of [0, 1), (B, T), float64, overwritten: one, two for ``mixed`` and
            ``shuffled``; then for ``mixed`` 0 or 1, (B, 1), int.
    """
    num_frames = confidence.size(1)
    steps = torch.arange(num_frames, device=confidence.device)
    outside = steps >= lengths[:, None]  # (B, T)
    on_cpu = confidence.device.type == "cpu"
    padded = not on_cpu or bool((lengths < num_frames).any())
    wanted = (lengths.double() * mask_ratio).ceil().long()  # (B,)
    most = max(math.ceil(num_frames * mask_ratio), 1)  # of a row without padding
    turns = 0
    if strategy == "topk":
        span = 1
    if strategy == "random":
        (key,) = draws
    elif strategy == "topk":
        # Confidence stored in bytes has many ties; they are broken at random.
        key = confidence + 1e-9 * draws[0]
    elif strategy == "mixed":
        # The two draws take turns.
        high, low = (
            _drawing_order(weight, sharpness, uniform)
            for weight, uniform in zip((confidence, 1 - confidence), draws)
        )
        signed = sharpness != 1  # then keys are logarithms
        if padded:
            least = -torch.inf if signed else 0
            high.masked_fill_(outside, least)
            low.masked_fill_(outside, least)
        high, low = _placed(high, signed), _placed(low, signed)
        # As many turns as frames always suffice, and nearly always far fewer.
        turns = min(2 * most // span + 16, most) if on_cpu else most
        key = _turns(high, low, draws[2], turns)
    else:
        if strategy == "shuffled":
            confidence = _shuffle(confidence, outside, draws[0])
        weight = 1 - confidence if strategy == "low" else confidence
        key = _drawing_order(weight, sharpness, draws[-1])

    def spread(key: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """The largest key among the starts t - span + 1 .. t that reach frame t (B, T),
        and the one that a row's last masked frames have (B, 1)."""
        cover = key
        if span > 1:
            reaching = F.pad(key[:, None], (span - 1, 0), value=-torch.inf)
            cover = F.max_pool1d(reaching, span, 1)[:, 0]
        if padded:
            # One order statistic of all rows is found faster than one of each: rows that
            # want fewer frames than others get infinite ones in their padding instead.
            spare = (most - wanted.clamp(min=1))[:, None]  # (B, 1)
            beyond = steps >= lengths[:, None] + spare
            cover = cover.masked_fill(outside, torch.inf).masked_fill_(beyond, -torch.inf)
        return cover, _nth_largest(cover, most)

    cover, last = spread(key)
    if on_cpu and 0 < turns < most and bool(last.isneginf().any()):
        cover, last = spread(_turns(high, low, draws[2], most))
    mask = cover >= last
    if padded:
        mask &= ~outside
    if mask_ratio == 0:
        mask.zero_()
    if exact:
        earlier = mask & (cover > last)
        room = wanted - earlier.sum(dim=1)  # (B,)
        others = (mask ^ earlier).cumsum(dim=1, dtype=torch.int32)
        mask &= earlier | (others <= room[:, None])
    return mask


def _check_rows(
    confidence: torch.Tensor, lengths: torch.Tensor, strategy: str
) -> None:
    if bool(((lengths < 0) | (lengths > confidence.size(1))).any()):
        raise ValueError(
            f"lengths must be in [0, {confidence.size(1)}], got {lengths.tolist()}"
        )
    if strategy == "random" or not confidence.numel():
        return
    least, most = confidence.aminmax()
    if bool((least >= 0) & (most <= 1)):  # NaN would be either
        return
    valid = torch.arange(confidence.size(1)) < lengths[:, None]
    bad = valid & ~((confidence >= 0) & (confidence <= 1))
    if bool(bad.any()):
        row = int(bad.any(dim=1).nonzero()[0])
        check_track(confidence[row, : lengths[row]].numpy(), f"row {row}")


class GuidedMasking(torch.nn.Module):
    """Replaces frames by a learned embedding where the policy says so.

    Takes the place of ESPnet's ``Masking`` under the same parameter name, so weights
    go from one to the other.

    Args:
        mask_embedding: (C,), the parameter of the module that this one replaces.
        mask_ratio, span, strategy, sharpness, exact: as in :func:`sample_span_mask`.
        validation: these options where the module does not train; None: the same.
    """

    def __init__(
        self,
        mask_embedding: torch.nn.Parameter,
        mask_ratio: float,
        span: int,
        strategy: str,
        sharpness: float = 1.0,
        exact: bool = False,
        validation: Optional[Dict[str, Any]] = None,
    ):
        super().__init__()
        self.mask_embedding = mask_embedding
        self.options = {
            "mask_ratio": mask_ratio,
            "span": span,
            "strategy": strategy,
            "sharpness": sharpness,
            "exact": exact,
        }
        self.validation = self.options if validation is None else validation
        for options in (self.options, self.validation):
            check_mask_options(**options)

    def extra_repr(self) -> str:
        def told(options: Dict[str, Any]) -> str:
            return ", ".join(f"{k}={v}" for k, v in options.items())

        if self.validation is self.options:
            return told(self.options)
        return f"{told(self.options)}; validation: {told(self.validation)}"

    def forward(
        self,
        x: torch.Tensor,
        padding_mask: torch.Tensor,
        confidence: Optional[torch.Tensor] = None,
        generator: Optional[torch.Generator] = None,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Mask a batch; ``x`` itself stays as it is.

        Args:
            x: encoded frames (B, T, C), float.
            padding_mask: True at padding (B, T), bool.
            confidence: s_t (B, T), float; may be None for ``random`` only.
            generator: source of randomness, on the device of ``x``.

        Returns:
            The masked frames (B, T, C), zero at padding, and ``mask_m`` and ``mask_u``,
            True at the masked and at the unmasked valid frames, (B, T), bool.
        """
        options = self.options if self.training else self.validation
        if confidence is None:
            if options["strategy"] != "random":
                raise ValueError(
                    f"strategy: {options['strategy']} needs confidence, got none"
                )
            confidence = x.new_zeros(x.shape[:2])
        mask = sample_span_mask(
            confidence, (~padding_mask).sum(dim=1), generator=generator, **options
        )
        masked = torch.where(mask[..., None], self.mask_embedding.to(x.dtype), x)
        # Convolutions of the encoder, of positions above all, see beyond an utterance's
        # end: there they find what they find when it is alone.
        masked = masked.masked_fill(padding_mask[..., None], 0)
        return masked, {"mask_m": mask, "mask_u": ~mask & ~padding_mask}

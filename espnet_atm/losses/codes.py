"""Which codes of a codebook are in use."""

import logging
from typing import Dict, List, Optional

import torch

# The codes of so many frames for each code of a codebook are looked back on. With even
# use, one code in 22,000 would be missed.
FRAMES_PER_CODE = 10
# A codebook of which only this part does its work has collapsed.
COLLAPSED = 0.1
# Batches between two looks at the health of the codebook, each of which waits for the
# device.
CHECK_INTERVAL = 100


class CodeUsage:
    """Statistics of the codes that the latest frames chose, and an alarm.

    Training and validation are counted apart, and each goes on where it was: a count
    that began anew at each validation would be low in its first batches, and so in the
    mean that is logged. Nothing of it is saved: after a restart the count begins anew.
    Each process counts its own.

    Args:
        name: what the statistics and the alarm are to be called by.
        num_groups: codebooks G that choose side by side.
        num_codes: codes V of each.
        learned: whether the choice is learned. Then its perplexity tells a collapse:
            the noise in it touches many codes even where one takes nearly all frames.
            A choice that is given collapses when few codes are used at all.
    """

    def __init__(self, name: str, num_groups: int, num_codes: int, learned: bool):
        self.name = name
        self.learned = learned
        self.shape = (num_groups, num_codes)
        self.window = FRAMES_PER_CODE * num_codes
        self.latest: Dict[bool, Optional[torch.Tensor]] = {True: None, False: None}
        self.batches = 0
        self.collapsed = False

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor, training: bool) -> Dict[str, torch.Tensor]:
        """Count the codes of one batch in.

        Args:
            ids: chosen codes (N, G), int64.
            training: whether the batch is one of training.

        Returns:
            ``*_codes_used``: codes chosen at least once in the latest ``10 * V`` frames,
            in percent; ``*_code_perplexity``: exp of the entropy of their choice, summed
            over groups, so G * V at best. Scalars, float32.
        """
        latest = self.latest[training]
        if latest is not None:
            ids = torch.cat([latest.to(ids.device), ids])
        ids = self.latest[training] = ids[-self.window :]
        groups, codes = self.shape
        counts = torch.zeros(groups, codes, device=ids.device)
        counts.scatter_add_(1, ids.T, torch.ones_like(ids.T, dtype=counts.dtype))
        share = counts / max(len(ids), 1)
        used = (counts > 0).float().mean()
        perplexity = torch.xlogy(share, share).sum(dim=1).neg().exp()  # (G,)
        if training:
            self.batches += 1
            if self.batches % CHECK_INTERVAL == 0 and len(ids) == self.window:
                self._check(float(used), perplexity.tolist())
        return {
            f"{self.name}_codes_used": 100 * used,
            f"{self.name}_code_perplexity": perplexity.sum(),
        }

    def _check(self, used: float, perplexity: List[float]) -> None:
        groups, codes = self.shape
        total = groups * codes
        seen = (
            f"{self.name}: {round(used * total)} of {total} codes were chosen by the "
            f"latest {self.window} frames, perplexity "
            + " + ".join(f"{x:.1f}" for x in perplexity)
        )
        if self.learned:
            # However few the codes, one that takes all frames is no choice. One group
            # that chooses nothing is not made good by another.
            collapsed = min(perplexity) < max(COLLAPSED * codes, 1.5)
            advice = (
                "raise diversity_weight, lower the learning rate or warm up for longer"
            )
        else:
            collapsed = used < COLLAPSED
            advice = "training cannot mend that: look at the features or labels"
        if collapsed and not self.collapsed:
            self.collapsed = True
            logging.warning(
                f"{seen}: THE CODEBOOK HAS COLLAPSED, and what is learnt now is worth "
                f"little; {advice}"
            )
        elif not collapsed and self.collapsed:
            self.collapsed = False
            logging.info(f"{seen}: the codebook has recovered")

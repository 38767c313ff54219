"""Flat trajectory distillation (FTD): MTT on flat experts, with an average of the synthetic set.

Composition of `ftd`: experts flat; init real; labels hard; segments uniform; objective match; estimator exact; step
size exact; outer descent + ema.

`mtt-robust`: as `mtt`, objective match from noisy weights.

Source: Du et al. 2023, Algorithm 1, section 3.3 and Table 7, whose decay of the average is the presets'; the text says
    0.999. Its public code trains the experts by another rule, which the experts `flat-code` follow. Robust learning:
    FTD Eq. 9 and Table 1.
Not given: the standard deviation of robust learning's noise.
Differs: the best iteration, if one is selected, is that of the averaged set; the public code also selects one of the
    set that is not averaged. It tests the averaged set on the networks that it has just trained on the other one, which
    go on from there; here each set is tested on newly initialised networks.
"""

from satm.config.methods import MatchingOptions
from satm.methods.mtt import step
from satm.methods.recipe import MATCHING, recipe

recipe("ftd", MATCHING, MatchingOptions, step, experts="flat", ema=0.999)
recipe("mtt-robust", MATCHING, MatchingOptions, step, start_noise=0.001)

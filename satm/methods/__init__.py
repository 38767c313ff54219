"""The methods by name, and how one's options are resolved. A new method is a file and one import line here."""

from collections.abc import Mapping
from typing import Any

from satm.config import parse
from satm.errors import pick
from satm.methods.base import METHODS, IterativeMethod, IterativeOptions, Method, MethodOptions, Problem, Synthetic
from satm.methods.bptt import Bptt
from satm.methods.contra import Contra
from satm.methods.datm import Datm
from satm.methods.dc import Dc
from satm.methods.dm import Dm
from satm.methods.dsa import Dsa
from satm.methods.files import Files
from satm.methods.ftd import Ftd
from satm.methods.herding import Herding
from satm.methods.k_center import KCenter
from satm.methods.mtt import Mtt
from satm.methods.mtt_asam import MttAsam
from satm.methods.mtt_ema import MttEma
from satm.methods.mtt_gsam import MttGsam
from satm.methods.mtt_robust import MttRobust
from satm.methods.mtt_sam import MttSam
from satm.methods.mtt_vasso import MttVasso
from satm.methods.r_bptt import RandomBptt
from satm.methods.random import Random
from satm.methods.ratbptt import RatBptt
from satm.methods.satm import Satm
from satm.methods.satm_da import SatmDa
from satm.methods.satm_fi import SatmFi
from satm.methods.t_bptt import TruncatedBptt
from satm.methods.tesla import Tesla

__all__ = [
    "METHODS",
    "Bptt",
    "Contra",
    "Datm",
    "Dc",
    "Dm",
    "Dsa",
    "Files",
    "Ftd",
    "Herding",
    "IterativeMethod",
    "IterativeOptions",
    "KCenter",
    "Method",
    "MethodOptions",
    "Mtt",
    "MttAsam",
    "MttEma",
    "MttGsam",
    "MttRobust",
    "MttSam",
    "MttVasso",
    "Problem",
    "Random",
    "RandomBptt",
    "RatBptt",
    "Satm",
    "SatmDa",
    "SatmFi",
    "Synthetic",
    "Tesla",
    "TruncatedBptt",
    "resolve",
]


def resolve(values: Mapping[str, Any]) -> tuple[type[Method], MethodOptions]:
    """Return the class and the checked options of `{"method": name, option: value…}`.

    Raises:
        UsageError: an unknown method or option, or an unusable value.
    """
    held = dict(values)
    name = str(held.pop("method"))
    method = pick(name, METHODS, "method")
    return method, parse(method.options, held, f"method {name}")

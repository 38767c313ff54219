"""Typed, closed options; a campaign (one YAML file) resolved to the options of each job; the paths of its files.

Nothing here imports torch: a Snakefile reads a campaign each time it is parsed, on every cluster job.
"""

from satm.config.analysis import ANALYSES, RHOS, AnalyseOptions
from satm.config.base import (
    NAME,
    REVISIONS,
    OneOrMore,
    Options,
    budgets,
    canonical,
    check_name,
    idle_options,
    refuse_idle,
    refuse_many,
)
from satm.config.by_hand import HAND, UNNAMED, ByHand
from satm.config.campaign import Campaign, Setting
from satm.config.cell import PATTERN, Cell
from satm.config.datasets import (
    BUILTIN_DATASETS,
    CLASSES,
    SOURCES,
    Contents,
    DatasetOptions,
    data_path,
    existing,
    expand,
    lost_options,
    stated_contents,
)
from satm.config.exhibits import FIGURES, TABLES, Cells, Exhibit, FigureOptions, Ipc, Seeds, SomeDatasets, TableOptions
from satm.config.experts import BUILTIN_EXPERTS, ExpertsOptions, parts
from satm.config.layout import ACCOUNTING, OVERVIEW, PAIRED, PLACES, Layout, place_of
from satm.config.parsing import parse
from satm.config.resolver import AT_EPOCH, Resolver, load_campaign, load_presets, root_of
from satm.config.site import Site
from satm.config.training import (
    CANDIDATES,
    FULL,
    CandidateOptions,
    EvaluateOptions,
    LearnOptions,
    SearchOptions,
    StepsOptions,
)
from satm.config.yaml_file import load_yaml

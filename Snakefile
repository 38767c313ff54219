from snakemake.utils import min_version

from satm.config import PATTERN, REVISIONS, Layout
from satm.workflow.recovery import follow_up, forget_results
from satm.workflow.slurm import check_cluster
from satm.workflow.campaigns import open_campaigns

min_version("9.19")


report: "workflow/report/workflow.rst"


campaigns = open_campaigns(workflow)

# The same layout as everywhere, with wildcards for names: `{root}` is the folder of a campaign, so a path says it all.
layout = Layout("{root}")


wildcard_constraints:
    **campaigns.constraints(),


# Report what SLURM would refuse before anything is submitted; cancel waiting jobs of a Snakemake that was killed.
onstart:
    check_cluster(workflow),
    follow_up(workflow),


onsuccess:
    forget_results(workflow),


localrules:
    all,


rule all:
    default_target: True
    input:
        campaigns.defaults,


include: "workflow/rules/data.smk"
include: "workflow/rules/experts.smk"
include: "workflow/rules/distill.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/continual.smk"
include: "workflow/rules/nas.smk"
include: "workflow/rules/analyse.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"

from snakemake.utils import min_version

from satm.workflow.campaigns import open_campaigns, share_starts
from satm.workflow.recovery import follow_up, forget_results
from satm.workflow.rules import ALL
from satm.workflow.slurm import check_cluster

min_version("9.19")


report: "workflow/report/workflow.rst"


campaigns = open_campaigns(workflow)

# The table of jobs: inputs, outputs, params, log and benchmark of each rule. A path says which campaign it is of.
jobs = campaigns.rules()


wildcard_constraints:
    **campaigns.constraints(),


# Report what SLURM would refuse before anything is submitted; cancel waiting jobs of a Snakemake that was killed; let jobs
# on this machine fork from one process that has imported torch.
onstart:
    check_cluster(workflow),
    follow_up(workflow),
    share_starts(workflow),


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

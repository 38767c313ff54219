# A table of accuracies also writes paired differences, a file that is no output here: other kinds of table have none.
rule table:
    input:
        unpack(jobs.table.inputs),
    output:
        csv=jobs.table.outputs["csv"],
        md=jobs.table.outputs["md"],
        tex=jobs.table.outputs["tex"],
        html=report(
            jobs.table.outputs["html"],
            caption="../report/table.rst",
            category="Tables",
            labels={"campaign": "{root}", "table": "{table}"},
        ),
    log:
        jobs.table.log,
    benchmark:
        jobs.table.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
        gpu=0,
    params:
        **jobs.table.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm table --config {params.config:q} --name {wildcards.table} {params.partial}"


# The progress of all tables, for the first page of the report.
rule overview:
    input:
        unpack(jobs.overview.inputs),
    output:
        csv=jobs.overview.outputs["csv"],
        md=jobs.overview.outputs["md"],
        html=report(
            jobs.overview.outputs["html"],
            caption="../report/overview.rst",
            category="Overview",
            labels={"campaign": "{root}"},
        ),
    log:
        jobs.overview.log,
    benchmark:
        jobs.overview.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
        gpu=0,
    params:
        **jobs.overview.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm table --config {params.config:q} --name overview"


# The cost of the jobs so far. It is made after all tables, so that it covers the jobs behind them.
rule accounting:
    input:
        unpack(jobs.accounting.inputs),
    output:
        csv=jobs.accounting.outputs["csv"],
        md=jobs.accounting.outputs["md"],
        tex=jobs.accounting.outputs["tex"],
        html=report(
            jobs.accounting.outputs["html"],
            caption="../report/accounting.rst",
            category="Accounting",
            labels={"campaign": "{root}"},
        ),
    log:
        jobs.accounting.log,
    benchmark:
        jobs.accounting.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
        gpu=0,
    params:
        **jobs.accounting.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm table --config {params.config:q} --name accounting"

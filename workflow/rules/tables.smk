# A results table has -paired.csv beside these, which the other kinds of table lack.
rule table:
    input:
        measured=campaigns.measured,
    output:
        csv=layout.table("{table}", "csv"),
        md=layout.table("{table}", "md"),
        tex=layout.table("{table}", "tex"),
        page=report(
            layout.table("{table}", "html"),
            caption="../report/table.rst",
            category="Tables",
            labels={"campaign": "{root}", "table": "{table}"},
        ),
    log:
        layout.log("table", "{table}"),
    benchmark:
        layout.benchmark("table", "{table}")
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.table_options,
        partial=campaigns.partial,
        revision=REVISIONS["table"],
    shell:
        "python -m satm table --config {params.config:q} --name {wildcards.table} {params.partial} > {log} 2>&1"


# The progress of all tables, for the first page of the report.
rule overview:
    input:
        tables=campaigns.tabulated,
    output:
        csv=layout.table("overview", "csv"),
        md=layout.table("overview", "md"),
        page=report(
            layout.table("overview", "html"),
            caption="../report/overview.rst",
            category="Overview",
            labels={"campaign": "{root}"},
        ),
    log:
        layout.log("table", "overview"),
    benchmark:
        layout.benchmark("table", "overview")
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
        gpu=0,
    params:
        config=campaigns.config,
        revision=REVISIONS["table"],
    shell:
        "python -m satm table --config {params.config:q} --name overview > {log} 2>&1"


# The cost of the jobs so far; made after all tables, so that it covers the jobs behind them.
rule accounting:
    input:
        tables=campaigns.tabulated,
    output:
        csv=layout.table("accounting", "csv"),
        md=layout.table("accounting", "md"),
        tex=layout.table("accounting", "tex"),
        page=report(
            layout.table("accounting", "html"),
            caption="../report/accounting.rst",
            category="Accounting",
            labels={"campaign": "{root}"},
        ),
    log:
        layout.log("table", "accounting"),
    benchmark:
        layout.benchmark("table", "accounting")
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
        gpu=0,
    params:
        config=campaigns.config,
        revision=REVISIONS["table"],
    shell:
        "python -m satm table --config {params.config:q} --name accounting > {log} 2>&1"

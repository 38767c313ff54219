rule figure:
    input:
        unpack(jobs.figure.inputs),
    output:
        png=report(
            jobs.figure.outputs["png"],
            caption="../report/figure.rst",
            category="Figures",
            labels={"campaign": "{root}", "figure": "{figure}"},
        ),
        pdf=jobs.figure.outputs["pdf"],
        csv=jobs.figure.outputs["csv"],
    log:
        jobs.figure.log,
    benchmark:
        jobs.figure.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
        gpu=0,
    params:
        **jobs.figure.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm figure --config {params.config:q} --name {wildcards.figure} {params.partial}"


rule all_figures:
    input:
        campaigns.figures,
    output:
        touch(ALL["figures"]),
    localrule: True


rule all_tables:
    input:
        campaigns.tables,
    output:
        touch(ALL["tables"]),
    localrule: True

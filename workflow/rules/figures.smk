rule figure:
    input:
        measured=campaigns.drawn,
    output:
        png=report(
            layout.figure("{figure}", "png"),
            caption="../report/figure.rst",
            category="Figures",
            labels={"campaign": "{root}", "figure": "{figure}"},
        ),
        pdf=layout.figure("{figure}", "pdf"),
        csv=layout.figure("{figure}", "csv"),
    log:
        layout.log("figure", "{figure}"),
    benchmark:
        layout.benchmark("figure", "{figure}")
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.figure_options,
        partial=campaigns.partial,
        revision=REVISIONS["figure"],
    shell:
        "python -m satm figure --config {params.config:q} --name {wildcards.figure} {params.partial} > {log} 2>&1"


rule all_figures:
    input:
        campaigns.figures,
    output:
        touch(layout.all("figures")),
    localrule: True


rule all_tables:
    input:
        campaigns.tables,
    output:
        touch(layout.all("tables")),
    localrule: True

rule synthetic:
    input:
        distilled=campaigns.pictured,
    output:
        picture=report(
            layout.synthetic("{dataset}", "{ipc}"),
            caption="../report/synthetic.rst",
            category="Synthetic images",
            labels={
                "campaign": "{root}",
                "dataset": "{dataset}",
                "images per class": "{ipc}",
            },
        ),
    log:
        layout.log("figure", "synthetic-{dataset}-ipc-{ipc}"),
    benchmark:
        layout.benchmark("figure", "synthetic-{dataset}-ipc-{ipc}")
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=30,
        gpu=0,
    params:
        config=campaigns.config,
        revision=REVISIONS["figure"],
    shell:
        "python -m satm figure --config {params.config:q} --name synthetic --dataset {wildcards.dataset}"
        " --ipc {wildcards.ipc} > {log} 2>&1"

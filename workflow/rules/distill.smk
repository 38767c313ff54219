rule distill:
    input:
        data=campaigns.prepared,
        experts=campaigns.manifest,
    output:
        distilled=layout.distilled("{dataset}", "{ipc}", "{method}", "{seed}"),
        metrics=layout.metrics("{dataset}", "{ipc}", "{method}", "{seed}"),
    log:
        layout.log("distill", "{dataset}", "ipc-{ipc}", "{method}", "seed-{seed}"),
    benchmark:
        layout.benchmark("distill", "{dataset}", "ipc-{ipc}", "{method}", "seed-{seed}")
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=2880,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.distill_options,
        revision=REVISIONS["distill"],
    shell:
        "python -m satm distill --config {params.config:q} --dataset {wildcards.dataset} --ipc {wildcards.ipc}"
        " --method {wildcards.method} --seed {wildcards.seed} --threads {threads} > {log} 2>&1"

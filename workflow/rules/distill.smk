rule distill:
    input:
        data=campaigns.prepared,
        experts=campaigns.manifest,
    output:
        distilled=layout.distilled(PATTERN),
        metrics=layout.metrics(PATTERN),
    log:
        layout.log("distill", *PATTERN.place),
    benchmark:
        layout.benchmark("distill", *PATTERN.place)
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

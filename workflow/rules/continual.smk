rule continual:
    input:
        data=campaigns.prepared,
        distilled=campaigns.learned,
    output:
        accuracies=layout.continual(PATTERN, "{protocol}"),
    log:
        layout.log(
            "continual",
            *PATTERN.place,
            "{protocol}",
        ),
    benchmark:
        layout.benchmark(
            "continual",
            *PATTERN.place,
            "{protocol}",
        )
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=2880,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.continual_options,
        revision=REVISIONS["continual"],
    shell:
        "python -m satm continual --config {params.config:q} --dataset {wildcards.dataset} --ipc {wildcards.ipc}"
        " --method {wildcards.method} --seed {wildcards.seed} --protocol {wildcards.protocol} --threads {threads}"
        " > {log} 2>&1"

rule evaluate:
    input:
        data=campaigns.prepared,
        distilled=rules.distill.output.distilled,
    output:
        evaluation=layout.evaluation(PATTERN, "{network}"),
    log:
        layout.log(
            "evaluate",
            *PATTERN.place,
            "{network}",
        ),
    benchmark:
        layout.benchmark(
            "evaluate",
            *PATTERN.place,
            "{network}",
        )
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=480,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.evaluate_options,
        revision=REVISIONS["evaluate"],
    shell:
        "python -m satm evaluate --config {params.config:q} --dataset {wildcards.dataset} --ipc {wildcards.ipc}"
        " --method {wildcards.method} --seed {wildcards.seed} --network {wildcards.network} --threads {threads}"
        " > {log} 2>&1"


rule variants:
    input:
        data=campaigns.prepared,
        teacher=campaigns.teacher,
        distilled=rules.distill.output.distilled,
    output:
        evaluation=layout.variants(PATTERN, "{network}"),
    log:
        layout.log(
            "variants",
            *PATTERN.place,
            "{network}",
        ),
    benchmark:
        layout.benchmark(
            "variants",
            *PATTERN.place,
            "{network}",
        )
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=960,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.evaluate_options,
        revision=REVISIONS["evaluate"],
    shell:
        "python -m satm evaluate --config {params.config:q} --what variants --dataset {wildcards.dataset}"
        " --ipc {wildcards.ipc} --method {wildcards.method} --seed {wildcards.seed} --network {wildcards.network}"
        " --threads {threads} > {log} 2>&1"


rule full:
    input:
        data=campaigns.prepared,
    output:
        evaluation=layout.full("{dataset}", "{recipe}", "{network}"),
    log:
        layout.log("full", "{dataset}", "{recipe}", "{network}"),
    benchmark:
        layout.benchmark("full", "{dataset}", "{recipe}", "{network}")
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=2880,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.full_options,
        revision=REVISIONS["evaluate"],
    shell:
        "python -m satm evaluate --config {params.config:q} --what full --dataset {wildcards.dataset}"
        " --recipe {wildcards.recipe} --network {wildcards.network} --threads {threads} > {log} 2>&1"
